# SPDX-License-Identifier: MIT
"""Runs the commands of mpklink that look into running processes."""

import json
import os
import re
import subprocess

import status_page
from harness import BUILD, Bench, Proc

TOOL = BUILD / "tools" / "mpklink"
NOBODY = 65534
# These commands act on all processes of a user. Those of a test are a user's of its own, so that nobody else's are touched.
OWN_UID = 61000 + os.getpid() % 1000 if os.geteuid() == 0 else None


def connected(bench: Bench, *args, **kwargs):
    return status_page.connected(bench, *args, **{"uid": OWN_UID, **kwargs})


class Puppet(status_page.Puppet):
    def __init__(self, bench: Bench, side, **options):
        super().__init__(bench, side, **{"uid": OWN_UID, **options})


def own_dir(bench: Bench):
    """Where the commands may write."""
    path = bench.dir / "own"
    if not path.exists():
        path.mkdir()
        if OWN_UID is not None:
            os.chown(path, OWN_UID, OWN_UID)
    return path


def as_user(uid) -> dict:
    """For subprocess."""
    uid = OWN_UID if uid is None else uid
    return {} if uid is None or uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": []}


def tool(bench: Bench, *args, code=0, uid=None, timeout_s=60, **kwargs) -> subprocess.CompletedProcess:
    """The command, run to its end, which must be `code`; it is never preloaded."""
    kwargs.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run([TOOL, *map(str, args)], env=bench.env_for(None), cwd=bench.dir, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, timeout=timeout_s, **as_user(uid), **kwargs)  # fmt: skip
    assert done.returncode == code, f"mpklink {' '.join(map(str, args))} ended with {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    return done


def refused(bench: Bench, *args, code=3, words=(), **kwargs) -> str:
    """The one sentence of a command that could not do what it should; nothing on standard output."""
    done = tool(bench, *args, code=code, **kwargs)
    assert not done.stdout and done.stderr.startswith("mpklink: "), done
    lines = done.stderr.splitlines()
    assert len(lines) == 1 or (code == 2 and len(lines) == 2 and lines[1].startswith("Try 'mpklink ")), done.stderr
    for word in words:
        assert str(word) in lines[0], done.stderr
    return lines[0]


def look(bench: Bench, *args, **kwargs) -> dict:
    return json.loads(tool(bench, "ss", "--json", *args, **kwargs).stdout)


def streams_of(bench: Bench, *puppets) -> list:
    """Their streams; other tests' processes may run beside them."""
    pids = [p.pid for p in puppets]
    return [s for s in look(bench)["streams"] if s["pid"] in pids]


def start_tool(bench: Bench, *args, **kwargs) -> Proc:
    return bench.start([TOOL, *args], None, **{"uid": OWN_UID, **kwargs})


def metrics_samples(text: str) -> dict:
    """Strictly after the text format of Prometheus: {(name, labels): value}; every sample belongs to the metric that was declared last."""
    label = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
    sample = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(%s(?:,%s)*)\})? (\d+(?:\.\d+)?)" % (label, label))
    samples, declared, helped, name = {}, {}, set(), None
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, explanation = line[7:].split(" ", 1)
            assert name not in helped and explanation
            helped.add(name)
        elif line.startswith("# TYPE "):
            of, kind = line[7:].split(" ")
            assert of == name and of not in declared and kind in ("counter", "gauge") and (kind == "counter") == of.endswith("_total")
            declared[of] = kind
        else:
            match = sample.fullmatch(line)
            assert match and match.group(1) == name and name in declared, line
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match.group(2) or ""))
            key = (name, tuple(sorted(labels.items())))
            assert key not in samples, f"twice: {line}"
            samples[key] = float(match.group(3))
    return samples


def values_of(samples: dict, name: str, **labels) -> list:
    return [v for (n, ls), v in samples.items() if n == name and all((k, str(w)) in ls for k, w in labels.items())]


def is_root() -> bool:
    return os.geteuid() == 0
