# SPDX-License-Identifier: MIT
"""Where the foreign programs run: a network and a process namespace of their own, as an unprivileged user, with or without the library."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

# What is preloaded, and the library's settings then. "baseline" is the same place without us.
SETTINGS = {
    "baseline": None,
    "off": {"MPKLINK_DISABLE": "1"},
    "accelerate": {"MPKLINK_WARMUP": "0"},
    "tiny": {"MPKLINK_WARMUP": "0"},  # and MPKLINK_RING_KIB, as the suite says
}
USES_RINGS = ("accelerate", "tiny")

# The shell stays process 1, so that the program under test has a process number and signals as everywhere else.
INSIDE = 'ip link set lo up && "$@"; exit $?'


@dataclasses.dataclass
class Done:
    code: int | None  # None: it took longer than allowed and was ended
    output: str


@dataclasses.dataclass
class Rings:
    """What the statistics of all processes of a run add up to."""

    processes: int = 0
    upgraded: int = 0
    bytes: int = 0
    gate_found_open: int = 0
    plain: dict = dataclasses.field(default_factory=dict)  # why the others stayed on TCP: {reason: streams}

    def __str__(self):
        plain = ", ".join(f"{n} {reason}" for reason, n in sorted(self.plain.items(), key=lambda item: -item[1]))
        return f"{self.upgraded} streams upgraded in {self.processes} processes, {self.bytes} bytes through rings; on TCP: {plain or 'none'}"


def namespace_argv():
    if os.geteuid() == 0:
        return ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["unshare", "--map-current-user", "--keep-caps", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def user_argv():
    if os.geteuid() == 0:
        return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all"]
    return ["setpriv", "--inh-caps=-all", "--ambient-caps=-all"]


class Sandbox:
    """One setting of one suite. A context manager: its folder is gone afterwards."""

    def __init__(self, setting, library, tiny):
        self.setting = setting
        self.tiny = tiny
        self.library = pathlib.Path(library).resolve()

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="conformance-"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.stats = self.folder / "stats"
        self.folder.chmod(0o777)
        if os.geteuid() == 0:
            shutil.chown(self.home, "nobody", "nogroup")
        return self

    def __exit__(self, *unused):
        shutil.rmtree(self.folder, ignore_errors=True)

    def give(self, source, name):
        """A copy of the folder `source` in the home folder, which the tests may write to."""
        target = self.home / name
        shutil.copytree(source, target)
        if os.geteuid() == 0:
            for path in (target, *target.parents, *target.rglob("*")):
                if path.is_relative_to(self.home):
                    shutil.chown(path, "nobody", "nogroup")

    def environment(self):
        """Settings as NAME=VALUE words for env(1), which alone is to be preloaded, not the shell around it."""
        words = ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", f"HOME={self.home}", f"TMPDIR={self.home}"]
        settings = SETTINGS[self.setting]
        if settings is not None:
            words += [f"LD_PRELOAD={self.library}", f"MPKLINK_STATS={self.stats}"]
            words += [f"{name}={value}" for name, value in settings.items()]
            if self.setting == "tiny":
                words.append(f"MPKLINK_RING_KIB={self.tiny}")
        return words

    def run(self, argv, timeout, cwd=None, extra=()):
        # Default signals: in a background job SIGINT is ignored, and the tests would inherit that.
        command = [*namespace_argv(), "sh", "-c", INSIDE, "sh", *user_argv(), "env", "--default-signal", "-i", *self.environment(), *extra, *argv]
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=cwd or self.home, start_new_session=True
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    # unshare takes its child, the namespace's process 1, with it; all others die with that.
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            out.seek(0)
            return Done(code, out.read().decode(errors="replace"))

    def rings(self):
        total = Rings()
        if not self.stats.exists():
            return total
        for line in self.stats.read_text(errors="replace").splitlines():
            one = json.loads(line)
            total.processes += 1
            total.upgraded += one["upgraded"]
            # What came back at an end, unread, had been in a ring, too.
            total.bytes += one["ring_tx_bytes"] + one["ring_returned_bytes"]
            total.gate_found_open += one["gate_found_open"]
            for reason, n in one["plain"].items():
                total.plain[reason] = total.plain.get(reason, 0) + n
        return total
