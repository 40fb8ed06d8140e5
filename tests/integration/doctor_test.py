# SPDX-License-Identifier: MIT
"""`mpklink doctor`, as somebody types it whose connections are not accelerated: it finds the cause, says it in a sentence, and says what to type.

Run: /usr/bin/python3 -m pytest tests/integration/doctor_test.py"""

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess

import pytest

import harness
from harness import BUILD, CLIENT, PROGRAMS, PYTHON, SERVER, Bench, Combo, eventually, free_port, read_text

TOOL = BUILD / "tools" / "mpklink"
OTHER_SO = PROGRAMS / "libmpklink_other.so"
NOBODY = 65534
GIVEN_UP = 6000  # messages after which an end without an answer gives up for good (preload/rendezvous_step.cc)
LEVELS = ("ok", "note", "warn", "fail")
SECTIONS = {"machine", "environment", "connection", "program", "process", "listener", "streams"}

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users, namespaces")


def one(combo):
    """A test for one combination: the harness runs a `bench` in all four otherwise."""
    return pytest.mark.parametrize("combo", [combo], ids=lambda c: c.value)


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


# ---- this machine, this shell ----------------------------------------------------------------------------------------------


def has_pku() -> bool:
    return " ospke" in read_text("/proc/cpuinfo")


def assert_connected(answer: Answer, guard=None):
    """The test's own connection used the ring."""
    facts = answer.one("connection", "upgrade")["facts"]
    assert facts["upgraded"] and facts["ring_bytes"] > 100_000, answer
    assert guard is None or facts["guard"] == guard, answer


def test_healthy_machine():
    answer = ask()
    assert answer.target == {"kind": "machine", "name": ""}
    assert_connected(answer, "pkey" if has_pku() else "off")
    guard = answer.one("machine", "guard")
    if has_pku():
        assert guard["level"] == "ok" and guard["facts"]["keys_free"] == 15, guard
    else:
        assert guard["level"] == "warn" and "-cpu host" in guard["remedy"] or "Xeon" in guard["remedy"], guard
    for name in ("kernel", "calls", "identity", "descriptors", "memory", "processors", "secret-memory"):
        answer.one("machine", name)
    times = answer.one("connection", "round-trips")["facts"]
    assert times["with_ns"] > 0 and times["tcp_ns"] > 0
    library = answer.one("environment", "library")["facts"]
    assert library["path"] == str(harness.SO) and library["layout"] > 0 and library["version"]


def test_text_for_people():
    result = run()
    assert result.returncode in (0, 1) and result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "machine" and "environment" in lines and "connection" in lines
    assert re.search(r"^  ok +upgrade +It moved to shared memory behind a guard \(pkey\)" if has_pku() else r"^  note +upgrade ", result.stdout, re.M)
    assert lines[-1] in ("All well.", 'It works, with less than there could be: see "warn" above.')
    assert all(len(line) <= 130 for line in lines)


def test_nothing_is_left_behind(tmp_path):
    run(env={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    assert os.listdir(tmp_path) == []


def test_guard_off_as_asked_for():
    answer = ask(env={"MPKLINK_GUARD": "off"})
    assert_connected(answer, "off")
    finding = answer.one("connection", "upgrade")
    assert finding["level"] == "note" and finding["facts"]["guard_why"] == "asked-for"


def test_few_descriptors():
    answer = ask(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)))
    finding = answer.one("machine", "descriptors")
    assert finding["level"] == "warn" and finding["facts"]["limit"] == 100 and "ulimit -n" in finding["remedy"]


def test_hardly_any_descriptors():
    """The test's connection itself finds none; all else is said."""
    answer = ask(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)))
    assert answer.one("machine", "descriptors")["level"] == "warn"
    assert not answer.one("connection", "upgrade")["facts"]["upgraded"]


def test_one_processor():
    finding = ask(preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})).one("machine", "processors")
    assert finding["level"] == "note" and finding["facts"]["usable"] == 1 and "second CPU" in finding["remedy"]


@needs_root
def test_little_locked_memory():
    """Root may lock what it wants; other users have a limit."""
    answer = ask(
        env={"MPKLINK_BACKING": "secret"}, user=NOBODY, group=NOBODY, extra_groups=[],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)),
    )  # fmt: skip
    finding = answer.one("machine", "secret-memory")
    assert finding["facts"]["wanted"] and finding["facts"]["locked_bytes"] == 65536
    assert finding["level"] == ("warn" if finding["facts"]["there"] else "fail")
    assert not answer.one("connection", "upgrade")["facts"]["upgraded"]


def test_little_address_space():
    limit = 1 << 30
    finding = ask(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))).one("machine", "memory")
    assert finding["facts"]["address_space_bytes"] == limit and finding["facts"]["streams"] == limit // 8 // (2 * 256 * 1024 + 4096)


def test_preload_of_a_wrong_path():
    answer = ask(env={"LD_PRELOAD": "/nowhere/libmpklink.so"})
    finding = answer.one("environment", "preload")
    assert finding["level"] == "warn" and "/nowhere/libmpklink.so" in finding["sentence"] and "No such file" in finding["sentence"]
    assert_connected(answer)  # the right one was added


def test_no_library():
    answer = ask(env={"MPKLINK_LIBRARY": "/nowhere/libmpklink.so"})
    finding = answer.one("environment", "library")
    assert finding["level"] == "fail" and "MPKLINK_LIBRARY" in finding["remedy"]
    assert not answer.all("connection")


def test_a_library_that_does_nothing():
    """What gets in and is not ours: the statistics stay empty."""
    answer = ask(env={"MPKLINK_LIBRARY": str(PROGRAMS / "libinert.so")})
    finding = answer.one("connection", "upgrade")
    assert finding["level"] == "fail" and not finding["facts"]["upgraded"]


@pytest.mark.parametrize(
    "name,value,word",
    [
        ("MPKLINK_SPIN_US", "fast", "auto or a number"),
        ("MPKLINK_GUARD", "yes", "require"),
        ("MPKLINK_PORTS", "80-", "ports"),
        ("MPKLINK_RULES", "igonre,port=22", "mpklink rules"),
    ],
)
def test_setting_that_is_not_understood(name, value, word):
    answer = ask(env={name: value})
    finding = answer.one("environment", "settings")
    assert finding["level"] == "warn" and finding["facts"] == {"variable": name, "value": value}
    assert word in finding["remedy"]
    assert_connected(answer)


def test_misspelt_variable():
    finding = ask(env={"MPKLINK_WARMPU": "1"}).one("environment", "settings")
    assert finding["level"] == "warn" and "MPKLINK_WARMUP" in finding["remedy"]
    assert ask(env={"MPKLINK_TEST_RUN_OF_MINE": "1"}).one("environment", "settings")["level"] == "ok"


def test_switched_off():
    answer = ask(env={"MPKLINK_DISABLE": "1"})
    assert answer.one("environment", "settings")["level"] == "fail"
    assert not answer.one("connection", "upgrade")["facts"]["upgraded"]


def test_ports_of_this_shell_do_not_spoil_the_test():
    answer = ask(env={"MPKLINK_PORTS": "80"})
    assert answer.one("environment", "settings")["level"] == "note"
    assert_connected(answer)


# ---- seccomp ---------------------------------------------------------------------------------------------------------------

SECCOMP_ERRNO, SECCOMP_KILL, SECCOMP_ALLOW = 0x00050000, 0x80000000, 0x7FFF0000
PKEY_ALLOC, MEMFD_CREATE = 330, 319


def refuse_call(number: int, action: int):
    """A filter that answers one system call of x86-64 with `action`, and lets all others pass (seccomp(2))."""

    def install():
        libc = ctypes.CDLL(None, use_errno=True)
        load, jump_equal, ret = 0x20, 0x15, 0x06
        program = b"".join(
            struct.pack("HBBI", *i) for i in [(load, 0, 0, 0), (jump_equal, 0, 1, number), (ret, 0, 0, action), (ret, 0, 0, SECCOMP_ALLOW)]
        )
        buffer = ctypes.create_string_buffer(program)

        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

        fprog = Program(4, ctypes.addressof(buffer))
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0  # PR_SET_SECCOMP, a filter

    return install


@pytest.mark.skipif(not has_pku(), reason="without protection keys none can be refused")
@pytest.mark.parametrize("action,word", [(SECCOMP_ERRNO | 1, "EPERM"), (SECCOMP_KILL, "Bad system call")], ids=["errno", "kill"])
def test_seccomp_without_keys(action, word):
    result = run("--json", preexec_fn=refuse_call(PKEY_ALLOC, action))
    answer = Answer(result)
    finding = answer.one("machine", "guard")
    assert finding["level"] == "warn" and finding["facts"]["why"] == "no-key" and finding["facts"]["keys_free"] == 0
    assert "seccomp" in finding["sentence"] and word in finding["sentence"] and "pkey_alloc" in finding["remedy"]
    assert answer.one("machine", "calls")["facts"]["seccomp"] == 2
    if action != SECCOMP_KILL:
        assert answer.one("connection", "upgrade")["facts"]["guard_why"] == "no-key"


@pytest.mark.skipif(not has_pku(), reason="without protection keys none can be refused")
def test_guard_required_and_refused():
    answer = ask(env={"MPKLINK_GUARD": "require"}, preexec_fn=refuse_call(PKEY_ALLOC, SECCOMP_ERRNO | 1))
    assert answer.one("machine", "guard")["level"] == "fail"
    finding = answer.one("connection", "upgrade")
    assert finding["level"] == "fail" and "no-pku" in (finding["facts"]["client_reason"], finding["facts"]["server_reason"])


def test_seccomp_without_shared_memory():
    answer = ask(preexec_fn=refuse_call(MEMFD_CREATE, SECCOMP_ERRNO | 1))
    finding = answer.one("machine", "calls")
    assert finding["level"] == "fail" and not finding["facts"]["memfd_create"] and "EPERM" in finding["sentence"] and "seccomp" in finding["remedy"]
    assert answer.one("connection", "upgrade")["level"] == "fail"


# ---- a program -------------------------------------------------------------------------------------------------------------


def test_program():
    answer = ask("sleep")
    assert answer.target == {"kind": "program", "name": "sleep"} and answer.code == 0
    finding = answer.one("program", "preload")
    assert finding["facts"]["path"].endswith("/sleep") and finding["remedy"] == "mpklink run -- sleep"


def test_static_program(tmp_path):
    path = compile_c(tmp_path / "static", SLEEPER, "-static")
    finding = ask(path).one("program", "preload")
    assert finding["level"] == "fail" and "statically linked" in finding["sentence"] and "dynamically linked" in finding["remedy"]


def test_script(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    assert ask(script).code == 0
    script.write_text(f"#!{compile_c(tmp_path / 'static', SLEEPER, '-static')}\n")
    finding = ask(script).one("program", "preload")
    assert finding["level"] == "fail" and "interpreter" in finding["sentence"]


@needs_root
def test_setuid_program(tmp_path):
    path = compile_c(tmp_path / "suid", SLEEPER)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o4755)
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        pytest.skip("the file system is mounted nosuid")
    finding = ask(path).one("program", "preload")
    assert finding["level"] == "fail" and "setuid" in finding["sentence"]


def test_program_that_is_not_there():
    assert_refused(run("no-such-program-here"), 3, "no-such-program-here", "PATH")
    assert_refused(run("/nowhere/at-all"), 3, "does not exist")


# ---- a process -------------------------------------------------------------------------------------------------------------


@one(Combo.BOTH)
def test_upgraded_connection(bench):
    server = echo(bench)
    with talk(bench, server.port()) as client:
        for pid, other in ((server.pid, client.pid), (client.pid, server.pid)):
            answer = ask(pid)
            assert answer.target == {"kind": "process", "name": str(pid)}
            shared = answer.one("streams", "shared")
            assert shared["facts"]["peer_pid"] == other and shared["facts"]["peer_library"] and shared["facts"]["count"] == 1
            assert shared["facts"]["peer_layout"] == answer.one("process", "library")["facts"]["layout"] > 0
            assert answer.one("process", "guard")["facts"]["guard"] == ("pkey" if has_pku() else "off")
            assert answer.code == (0 if has_pku() else 1), answer
    server.finish()
    bench.assert_ring(min_bytes=10_000)


@one(Combo.SERVER)
@pytest.mark.parametrize("messages,mode", [(1, "candidate"), (GIVEN_UP, "plain")], ids=["at-once", "given-up"])
def test_peer_without_the_library(bench, messages, mode):
    """The commonest of all: named is who to start again, and how."""
    server = echo(bench)
    with talk(bench, server.port(), messages) as client:
        answer = ask(server.pid)
        found = answer.one("streams", "peer-absent")
        assert found["level"] == "warn" and answer.code == 1 and found["facts"]["mode"] == mode, found
        assert found["facts"]["peer_pid"] == client.pid and not found["facts"]["peer_library"]
        assert f"(pid {client.pid})" in found["sentence"] and "without the library" in found["sentence"]
        assert found["remedy"].startswith("Start it again with: mpklink run -- /usr/bin/python3 ...")
        text = run(server.pid)
        assert text.returncode == 1 and f"(pid {client.pid})" in text.stdout and "-> Start it again with:" in re.sub(r"\s+", " ", text.stdout)
    server.finish()
    bench.assert_not_used(SERVER)


@one(Combo.BOTH)
def test_excluded_port(bench):
    server = echo(bench, connections=2, settings={"PORTS": "!1024-65535"})
    port = server.port()
    with talk(bench, port):
        answer = ask(server.pid)
        found = answer.one("streams", "ports")
        assert found["level"] == "warn" and "MPKLINK_PORTS" in found["remedy"]
        assert answer.one("process", "settings")["facts"]["value"] == "!1024-65535"
    eventually(lambda: "GOT" in server.stdout(), what="the end of the first connection")
    answer = ask(f"127.0.0.1:{port}")
    assert answer.one("connection", "ports")["level"] == "warn"
    server.finish()
    bench.assert_not_used(SERVER)


@one(Combo.BOTH)
def test_two_versions(bench):
    """The other end was started before an update."""
    env = {"LD_PRELOAD": bench.env_for(SERVER)["LD_PRELOAD"].replace(str(harness.SO), str(OTHER_SO))}
    server = echo(bench, env=env)
    with talk(bench, server.port()) as client:
        answer = ask(client.pid)
        found = answer.one("streams", "peer-version")
        layout = answer.one("process", "library")["facts"]["layout"]
        assert found["level"] == "warn" and found["facts"]["peer_layout"] == 99 != layout
        assert "memory layout 99" in found["sentence"] and f"memory layout {layout}" in found["sentence"]
        assert "mpklink run" in found["remedy"]
    server.finish()
    bench.assert_fell_back()


@one(Combo.BOTH)
@pytest.mark.parametrize("new", ["other", "same", "none"])
def test_replaced_library(bench, new):
    """Updated under a running service, as package managers do it."""
    installed = bench.dir / "libmpklink.so"
    shutil.copy(harness.SO, installed)
    env = {"LD_PRELOAD": bench.env_for(SERVER)["LD_PRELOAD"].replace(str(harness.SO), str(installed))}
    server = echo(bench, env=env)
    with talk(bench, server.port()):
        if new == "none":
            installed.unlink()
        else:
            shutil.copy(OTHER_SO if new == "other" else harness.SO, bench.dir / "new")
            os.replace(bench.dir / "new", installed)
        found = ask(server.pid).one("process", "library")
        assert found["facts"]["replaced"] and found["facts"]["path"] == str(installed)
        assert found["level"] == ("warn" if new == "other" else "note") and "mpklink run" in found["remedy"]
        assert ("memory layout 99" in found["sentence"]) == (new == "other")
    server.finish()
    bench.assert_ring(min_bytes=10_000)


@one(Combo.BOTH)
def test_disabled_peer(bench):
    server = echo(bench, settings={"DISABLE": "1"})
    with talk(bench, server.port()) as client:
        found = ask(client.pid).one("streams", "peer-absent")
        assert found["facts"]["peer_pid"] == server.pid and "MPKLINK_DISABLE" in found["sentence"] + found["remedy"]
        assert ask(server.pid).one("process", "settings")["level"] == "fail"
    server.finish()


@one(Combo.NEITHER)
def test_process_without_the_library(bench):
    server = echo(bench, connections=1)
    server.port()
    answer = ask(server.pid)
    found = answer.one("process", "library")
    assert found["level"] == "fail" and answer.code == 1
    assert found["remedy"].startswith("Start it again with: mpklink run -- /usr/bin/python3 ...")
    assert not answer.all("streams")
    server.send_signal(signal.SIGKILL)


@one(Combo.NEITHER)
def test_command_that_can_be_typed_again(bench):
    path = compile_c(bench.dir / "sleeper", SLEEPER)
    process = bench.start([path, "1 0", "60"], name="sleeper")
    eventually(lambda: read_text(f"/proc/{process.pid}/comm") == "sleeper", what="exec")
    assert ask(process.pid).one("process", "library")["remedy"] == f"Start it again with: mpklink run -- {path} '1 0' 60"
    process.send_signal(signal.SIGKILL)


@one(Combo.NEITHER)
@pytest.mark.parametrize(
    "flags,preload,words",
    [(["-static"], True, "statically linked"), ([], "/nowhere/libmpklink.so", "/nowhere/libmpklink.so, which is not there"), ([], False, "started without")],
    ids=["static", "wrong-path", "plain"],
)
def test_why_it_is_not_in_it(bench, flags, preload, words):
    path = compile_c(bench.dir / "sleeper", SLEEPER, *flags)
    env = {"LD_PRELOAD": str(harness.SO) if preload is True else preload} if preload else {}
    process = bench.start([path], name="sleeper", env=env)
    eventually(lambda: read_text(f"/proc/{process.pid}/comm") == "sleeper", what="exec")
    found = ask(process.pid).one("process", "library")
    assert found["level"] == "fail" and words in found["sentence"], found
    process.send_signal(signal.SIGKILL)


@needs_root
@one(Combo.NEITHER)
def test_process_in_secure_mode(bench):
    path = compile_c(bench.dir / "sleeper", SLEEPER)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o4755)
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        pytest.skip("the file system is mounted nosuid")
    process = bench.start([path], name="sleeper", env={"LD_PRELOAD": str(harness.SO)})
    eventually(lambda: read_text(f"/proc/{process.pid}/comm") == "sleeper", what="exec")
    found = ask(process.pid).one("process", "library")
    assert found["level"] == "fail" and "secure mode" in found["sentence"], found
    process.send_signal(signal.SIGKILL)


@one(Combo.BOTH)
def test_io_uring(bench):
    script = (
        "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True); p = ctypes.create_string_buffer(120); "
        "fd = libc.syscall(425, 2, p); print('FD', fd if fd >= 0 else -ctypes.get_errno(), flush=True); sys.stdin.read()"
    )
    process = bench.start([PYTHON, "-c", script], SERVER, name="uring", stdin=subprocess.PIPE)
    fd = int(process.wait_line(r"^FD (-?\d+)$").group(1))
    if fd < 0:
        pytest.skip(f"the kernel has no io_uring for us ({os.strerror(-fd)})")
    found = ask(process.pid).one("process", "io-uring")
    assert found["level"] == "warn" and found["facts"]["instances"] == 1 and "io_uring" in found["remedy"]
    process.stdin.close()
    process.finish()


@needs_root
@one(Combo.BOTH)
def test_other_network_namespace(bench):
    process = bench.start(["unshare", "-n", PYTHON, "-c", "import sys; print('READY', flush=True); sys.stdin.read()"], SERVER, name="apart", stdin=subprocess.PIPE)
    process.wait_line("^READY$")
    found = ask(process.pid).one("process", "place")
    assert found["level"] == "note" and "net" in found["facts"]["other_namespaces"] and "network namespace" in found["sentence"]
    process.stdin.close()
    process.finish()


@needs_root
@one(Combo.BOTH)
def test_another_users_process(bench):
    """Nobody may not look into root's; the sentence says who may."""
    server = echo(bench, connections=0)
    sleeper = bench.start([PYTHON, "-c", "import sys; print('READY', flush=True); sys.stdin.read()"], SERVER, name="mine", stdin=subprocess.PIPE)
    sleeper.wait_line("^READY$")
    result = run(sleeper.pid, user=NOBODY, group=NOBODY, extra_groups=[])
    assert_refused(result, 3, "belongs to root", f"sudo mpklink doctor {sleeper.pid}")
    sleeper.stdin.close()
    sleeper.finish()
    server.finish()


@needs_root
@one(Combo.BOTH)
def test_ends_of_different_users(bench):
    server = echo(bench, uid=NOBODY)
    with talk(bench, server.port()) as client:
        facts = ask(client.pid).one("streams", "shared")["facts"]
        assert facts["peer_uid"] == NOBODY and facts["peer_other_namespaces"] == ""
        assert ask(server.pid).one("process", "place")["facts"]["uid"] == NOBODY
    server.finish()
    bench.assert_ring(min_bytes=10_000)


def test_kernel_thread():
    threads = [p for p in os.listdir("/proc") if p.isdigit() and is_kernel_thread(p)]
    if not threads:
        pytest.skip("no thread of the kernel is visible in this pid namespace")
    assert_refused(run(threads[0]), 3, "thread of the kernel")


def is_kernel_thread(pid: str) -> bool:
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return len(fields) > 6 and int(fields[6]) & 0x00200000 != 0


def test_vanished_process():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert_refused(run(gone.pid), 3, f"no process {gone.pid}")


def test_zombie():
    zombie = subprocess.Popen(["true"])
    eventually(lambda: harness.is_zombie(zombie.pid), what="the end of true")
    assert_refused(run(zombie.pid), 3, "has ended")
    zombie.wait()


@one(Combo.NEITHER)
def test_names_do_not_speak_to_the_terminal(bench):
    path = bench.dir / "evil\x1b[31m\n"
    shutil.copy("/bin/sleep", path)
    process = bench.start([path, "60"], name="evil")
    eventually(lambda: "evil" in read_text(f"/proc/{process.pid}/comm"), what="exec")
    text = run(process.pid)
    assert text.returncode == 1 and "\x1b" not in text.stdout and "evil" in text.stdout
    assert "\x1b" not in run("--json", process.pid).stdout
    ask(process.pid)
    process.send_signal(signal.SIGKILL)


# ---- a port ----------------------------------------------------------------------------------------------------------------


@one(Combo.SERVER)
def test_wrapped_service(bench):
    server = echo(bench)
    answer = ask(f"localhost:{server.port()}")
    assert answer.target["kind"] == "listener" and answer.code == 0, answer
    listener = answer.one("listener", "library")
    assert listener["facts"]["pid"] == server.pid and listener["level"] == "ok"
    connection = answer.one("connection", "candidate")
    assert connection["facts"]["peer_pid"] == server.pid and connection["facts"]["peer_library"]
    assert server.finish().splitlines()[-1] == "GOT 0", "doctor sends nothing to a service"


@one(Combo.SERVER)
def test_wrapped_service_on_ipv6(bench):
    server = echo(bench, host="::1")
    answer = ask(f"[::1]:{server.port()}")
    assert answer.code == 0 and answer.one("connection", "candidate")["facts"]["peer_pid"] == server.pid
    server.finish()


@one(Combo.NEITHER)
def test_service_without_the_library(bench):
    server = echo(bench)
    answer = ask(f"127.0.0.1:{server.port()}")
    assert answer.code == 1
    assert answer.one("listener", "library")["remedy"].startswith("Start it again with: mpklink run --")
    assert answer.one("connection", "peer-absent")["level"] == "warn"
    server.finish()


@needs_root
@one(Combo.NEITHER)
def test_service_of_another_user(bench):
    server = echo(bench)
    result = run("--json", f"127.0.0.1:{server.port()}", user=NOBODY, group=NOBODY, extra_groups=[])
    found = Answer(result).one("listener", "owner")
    assert "root" in found["sentence"] and found["remedy"].startswith("sudo mpklink doctor")
    server.finish()


def test_nobody_listens():
    port = free_port()
    assert_refused(run(f"127.0.0.1:{port}"), 3, f"127.0.0.1:{port}", "refused")


def test_not_on_this_machine():
    """192.0.2.0/24 is nobody's (RFC 5737); nothing is sent there."""
    answer = ask("192.0.2.1:80")
    found = answer.one("listener", "address")
    assert found["level"] == "fail" and not found["facts"]["local"] and "not-local" in found["sentence"]


# ---- wrong use -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", ["0", "99999999999", "localhost:0", "localhost:70000", "localhost:http", ":80", "::1:80", "a b", "--jsno", "--end"]
)  # fmt: skip
def test_wrong_use(args):
    result = run(*args.split())
    assert result.returncode == 2 and result.stdout == "", (result.stdout, result.stderr)
    assert result.stderr.startswith("mpklink: ") and "mpklink doctor --help" in result.stderr


def test_help_has_examples_and_hides_what_is_not_for_people():
    text = subprocess.run([TOOL, "doctor", "--help"], text=True, capture_output=True, timeout=30).stdout
    assert "Examples:" in text and "localhost:6379" in text and "--json" in text and "--end" not in text


def test_unresolvable_host():
    assert_refused(run("no-such-host.invalid:80"), 3, "no-such-host.invalid")


def test_full_disk():
    with open("/dev/full", "w") as full:
        result = subprocess.run([TOOL, "doctor", "sleep"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=30)
    assert result.returncode == 3 and "No space left" in result.stderr
