# SPDX-License-Identifier: MIT
"""Everything the suite starts, so that everything can be ended: by process id, in any state of a measurement."""

import os
import select
import signal
import subprocess
import time
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_LIMIT_S = 15


class BenchError(Exception):
    """A cell that could not be measured, in one sentence."""


class Interrupted(BaseException):
    """A signal asks the suite to end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Process:
    """A running program. Its output goes to files, so it never blocks on us."""

    def __init__(self, command, popen, out_path, err_path):
        self.command, self._popen, self._out, self._err = command, popen, out_path, err_path
        self.usage = None  # of it and its children, once it has ended
        self._pidfd = os.pidfd_open(popen.pid)

    @property
    def pid(self):
        return self._popen.pid

    @property
    def returncode(self):
        return self._popen.returncode

    def running(self):
        return self.returncode is None and not self._ends_within(0)

    def output(self):
        return self._out.read_text(errors="replace")

    def last_words(self):
        text = (self._err.read_text(errors="replace") + self.output()).strip()
        return text.splitlines()[-1][:300] if text else "it says nothing"

    def close_stdin(self):
        self._popen.stdin.close()

    def send(self, number):
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, seconds):
        """Whether it has ended by then; afterwards `returncode` and `usage` are known."""
        if self.returncode is not None:
            return True
        if not self._ends_within(seconds):
            return False
        _, status, self.usage = os.wait4(self.pid, 0)
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._pidfd)
        return True

    def _ends_within(self, seconds):
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


def how_it_ended(process):
    code = process.returncode
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


class Processes:
    def __init__(self):
        self._running = []
        self._busy = False
        self._signal = None
        self._number = 0
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, _frame):
        self._signal = number
        if not self._busy:  # else a process could be running that is not in the list yet
            raise Interrupted(number)

    def start(self, command, env, directory, stdin=subprocess.DEVNULL):
        """In a session of its own: Ctrl-C reaches the suite alone. It ends with the suite, however that does."""
        self._number += 1
        out, err = (directory / f"{self._number}.{kind}" for kind in ("out", "err"))
        command = ["setpriv", "--pdeathsig", "TERM", "--", *map(str, command)]
        self._busy = True
        try:
            with open(out, "wb") as out_file, open(err, "wb") as err_file:
                popen = subprocess.Popen(
                    command, env=env, cwd=directory, stdin=stdin, stdout=out_file, stderr=err_file, start_new_session=True
                )
            process = Process(command, popen, out, err)
            self._running.append(process)
        finally:
            self._busy = False
        if self._signal is not None:
            raise Interrupted(self._signal)
        return process

    def wait(self, process, seconds):
        ended = process.wait(seconds)
        if ended and process in self._running:
            self._running.remove(process)
        return ended

    def stop(self, process, number=signal.SIGTERM):
        """Whether it has ended by itself, with its children; SIGKILL for whatever is left."""
        children = descendants(process.pid)
        process.send(number)
        graceful = self.wait(process, STOP_LIMIT_S)
        if not graceful:
            process.send(signal.SIGKILL)
            self.wait(process, STOP_LIMIT_S)
        left = [pid for pid in children if is_running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return graceful and not left

    def stop_all(self):
        for number in SIGNALS:  # a second Ctrl-C must not leave half of it running
            signal.signal(number, signal.SIG_IGN)
        for process in list(self._running):
            self.stop(process)


def descendants(pid):
    """The pids below `pid`."""
    found = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        children = [int(c) for t in tasks for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]
    except OSError:
        return found
    for child in children:
        found += [child, *descendants(child)]
    return found


def is_running(pid):
    """A zombie has ended; its parent's business."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, process, seconds, what):
    """The first true value of condition(), while `process` runs."""
    deadline = time.monotonic() + seconds
    while True:
        alive = process.running()
        value = condition()
        if value:
            return value
        if not alive:
            process.wait(0)
            raise BenchError(f"{what}: the program ended ({how_it_ended(process)}): {process.last_words()}")
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {seconds} s: {process.last_words()}")
        time.sleep(0.005)
