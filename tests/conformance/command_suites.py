# SPDX-License-Identifier: MIT
"""Suites whose tests are one command each: libevent's regress and libuv's run-tests."""

import sources
from suite import Outcome, Suite


class CommandSuite(Suite):
    extra = ()  # words NAME=VALUE for the environment
    skip_code = 0

    def run(self, sandbox, quick, limit, without=()):
        chosen = [test_id for test_id in self.test_ids(sandbox) if test_id not in without]
        return {test_id: self.run_alone(sandbox, test_id, limit) for test_id in chosen}

    def run_alone(self, sandbox, test_id, limit):
        done = sandbox.run([*self.argv(), test_id], timeout=limit, extra=self.extra)
        if done.code is None:
            return Outcome("hang", done.output[-4000:])
        if done.code not in (0, self.skip_code):
            return Outcome("crash" if done.code > 128 else "fail", f"exit code {done.code}\n{done.output[-4000:]}")
        return self.judge(test_id, done.output)

    def listed(self, sandbox, flag):
        done = sandbox.run([*self.argv(), flag], timeout=60, extra=self.extra)
        if done.code != 0:
            raise RuntimeError(f"{self.name}: {flag}: {done.output}")
        return [line.split()[0] for line in done.output.splitlines() if line.strip()]


class LibEvent(CommandSuite):
    """With one of its back ends; each waits by other calls."""

    def __init__(self, name, *extra):
        self.name, self.extra = name, extra

    def prepare(self, cache):
        self.program = sources.libevent(cache) / "test/regress"

    def argv(self):
        return [str(self.program)]

    def test_ids(self, sandbox):
        return [word for word in self.listed(sandbox, "--list-tests") if "/" in word]

    def judge(self, test_id, output):
        if "SKIPPED" in output or "DISABLED" in output:
            return Outcome("skip", output[-200:])
        # A name that matches nothing ends well, too.
        return Outcome("pass" if "1 tests ok" in output else "fail", output[-4000:])


class LibUv(CommandSuite):
    name = "libuv"
    skip_code = 7
    extra = ("UV_TEST_TIMEOUT_MULTIPLIER=10",)  # it allows 5 s: too little for 120 MB, or 1000 timers, through a ring of 64 bytes

    def prepare(self, cache):
        self.folder = sources.libuv(cache)

    def argv(self):
        return [str(self.folder / "build/uv_run_tests_a")]

    def test_ids(self, sandbox):
        # The tests read and write files below the current folder.
        sandbox.give(self.folder / "test/fixtures", "test/fixtures")
        return self.listed(sandbox, "--list")

    def judge(self, test_id, output):
        (line,) = [line for line in output.splitlines() if line.startswith(("ok ", "not ok "))] or ["not ok"]
        if line.startswith("not"):
            return Outcome("fail", output[-4000:])
        return Outcome("skip", line) if "# SKIP" in line else Outcome("pass")


def suites():
    return [
        LibEvent("libevent"),
        LibEvent("libevent-poll", "EVENT_NOEPOLL=1"),
        LibEvent("libevent-select", "EVENT_NOEPOLL=1", "EVENT_NOPOLL=1"),
        LibUv(),
    ]
