# SPDX-License-Identifier: MIT
"""Runs `mpklink doctor`, checks the shape of its answers, and has programs for it to look at."""

import contextlib
import json
import os
import subprocess

import pytest

import harness
from harness import BUILD, CLIENT, PYTHON, SERVER, Bench, read_text

TOOL = BUILD / "tools" / "mpklink"
NOBODY = 65534
LEVELS = ("ok", "note", "warn", "fail")
SECTIONS = {"machine", "environment", "connection", "program", "process", "listener", "streams"}

needs_tool = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users, namespaces")


def one(combo):
    """A test for one combination: the harness runs a `bench` in all four otherwise."""
    return pytest.mark.parametrize("combo", [combo], ids=lambda c: c.value)


def has_pku() -> bool:
    return " ospke" in read_text("/proc/cpuinfo")


# ---- running it ------------------------------------------------------------------------------------------------------------


def environment(**extra) -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LD_", "MPKLINK_"))}
    return {**env, "MPKLINK_LIBRARY": str(harness.SO), **extra}


def run(*args, env=None, **options) -> subprocess.CompletedProcess:
    options.setdefault("timeout", 60)
    return subprocess.run([TOOL, "doctor", *map(str, args)], env=environment(**(env or {})), text=True, capture_output=True, **options)


class Answer:
    """The JSON of one run, checked for the shape that scripts rely on."""

    def __init__(self, result):
        assert result.returncode in (0, 1), (result.returncode, result.stdout, result.stderr)
        self.code, self.stderr = result.returncode, result.stderr
        document = json.loads(result.stdout)
        assert list(document) == ["doctor", "target", "verdict", "findings"] and document["doctor"] == 1
        assert list(document["target"]) == ["kind", "name"]
        self.target, self.verdict, self.findings = document["target"], document["verdict"], document["findings"]
        for f in self.findings:
            assert list(f) == ["section", "name", "level", "sentence", "remedy", "facts"], f
            assert f["section"] in SECTIONS and f["level"] in LEVELS, f
            assert f["sentence"].endswith((".", "?")), f
            assert f["remedy"] or f["level"] in ("ok", "note"), f"a bad finding says what to do: {f}"
            assert all(isinstance(v, (str, int, bool)) for v in f["facts"].values()), f
        bad = [f for f in self.findings if f["level"] in ("warn", "fail")]
        assert self.verdict == ("degraded" if bad else "well")
        assert self.code == (1 if bad else 0), self

    def all(self, section, name=None):
        return [f for f in self.findings if f["section"] == section and name in (None, f["name"])]

    def one(self, section, name):
        found = self.all(section, name)
        assert len(found) == 1, f"{section}/{name}: {len(found)} findings\n{self}"
        return found[0]

    def __str__(self):
        return json.dumps(self.findings, indent=1)


def ask(*args, **options) -> Answer:
    return Answer(run("--json", *args, **options))


def assert_refused(result, code, *words):
    """One sentence on stderr and nothing else; it ends with what to do."""
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    assert result.stdout == ""
    assert result.stderr.startswith("mpklink: "), result.stderr
    assert result.stderr.count("\n") == (2 if code == 2 else 1), result.stderr
    for word in words:
        assert str(word) in result.stderr, result.stderr


# ---- programs that are looked at -------------------------------------------------------------------------------------------

ECHO = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
print('PORT', listener.getsockname()[1], flush=True)
for _ in range(int(sys.argv[2])):
    connection, _ = listener.accept()
    got = 0
    while True:
        data = connection.recv(65536)
        if not data:
            break
        got += len(data)
        connection.sendall(data)
    print('GOT', got, flush=True)
"""
# Talks, and keeps the connection until its standard input ends.
TALK = """
import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])))
for i in range(int(sys.argv[3])):
    c.sendall(b'x' * 100)
    got = 0
    while got < 100:
        got += len(c.recv(100 - got))
print('READY', flush=True)
sys.stdin.read()
"""


def echo(bench: Bench, *, connections=1, host="127.0.0.1", **options):
    return bench.start([PYTHON, "-c", ECHO, host, str(connections)], SERVER, name="echo", **options)


@contextlib.contextmanager
def talk(bench: Bench, port: int, messages: int = 300, **options):
    client = bench.start([PYTHON, "-c", TALK, "127.0.0.1", str(port), str(messages)], CLIENT, name="talk", stdin=subprocess.PIPE, **options)
    client.wait_line("^READY$")
    yield client
    client.stdin.close()
    client.finish()


def compile_c(target, source, *flags):
    subprocess.run(["gcc", "-O1", "-x", "c", "-", "-o", str(target), *flags], input=source, text=True, check=True)
    return target


SLEEPER = "#include <unistd.h>\nint main(void) { for (;;) pause(); }"


def kill(proc) -> None:
    """Ends one that does not end by itself."""
    proc.popen.kill()
    proc.popen.wait(10)
