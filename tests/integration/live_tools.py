# SPDX-License-Identifier: MIT
"""Runs the commands of mpklink that look into running processes."""

import json
import os
import re
import subprocess

from harness import BUILD, Bench, Proc

TOOL = BUILD / "tools" / "mpklink"
NOBODY = 65534


def tool(bench: Bench, *args, code=0, uid=None, timeout_s=60, **kwargs) -> subprocess.CompletedProcess:
    """The command, run to its end, which must be `code`; it is never preloaded."""
    user = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    kwargs.setdefault("stdout", subprocess.PIPE)
    done = subprocess.run([TOOL, *map(str, args)], env=bench.env_for(None), cwd=bench.dir, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, timeout=timeout_s, **user, **kwargs)  # fmt: skip
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
    return bench.start([TOOL, *args], None, **kwargs)


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
