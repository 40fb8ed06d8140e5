# SPDX-License-Identifier: MIT
"""Death and stopping between two steps that no system call separates: a library built with -Dstop_points=true (shm/stop_point.h) kills or
stops its process at a named place. Building it takes half a minute, so all but the last test here are slow."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

import harness
from bad_cases_test import ENDS, OTHER, progress
from harness import BUILD, CLIENT, REPO, SERVER, Combo, Hang, eventually

only_both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

# All names in the source: none can be forgotten here.
SOURCES = [*REPO.glob("shm/*.[ch]*"), *REPO.glob("preload/*.[ch]*")]
NAMES = sorted({name for path in SOURCES for call in re.findall(r"STOP_POINT\((.*)\)", path.read_text()) for name in re.findall(r'"([\w-]+)"', call)})
SHARED = {"process-lock-wanted", "process-lock-held"}  # only where two processes have one end
EPOLL_ONLY, BLOCKING_ONLY = {"set-armed", "leaf-set"}, {"armed"}

TOTAL, WARM = 240_000, 40 * 100
# The ring is smaller than a chunk, so it is full now and then; the client leaves it half-way.
PUMP = ["--flow=echo", f"--bytes={TOTAL}", "--chunk=6000"]
REVOKE = [f"--revoke-at={TOTAL}"]

LATE_S = 5  # from a death to the survivor's end, at most; and SIGCONT to the end of both
LOCK_S = 1  # a lock in the hands of the dead, at most


@pytest.fixture(scope="module")
def stopping_library():
    """The library with stop points, in a build folder of its own."""
    folder = BUILD / "stop_points"
    if not (folder / "build.ninja").exists():
        subprocess.run(["meson", "setup", folder, REPO, "-Dtests=false", "-Dstop_points=true"], check=True, timeout=120, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", folder, "-j2", "preload/libmpklink.so"], check=True, timeout=900, stdout=subprocess.DEVNULL)
    return folder / "preload" / "libmpklink.so"


@pytest.fixture
def stopping(stopping_library, monkeypatch):
    monkeypatch.setattr(harness, "SO", stopping_library)


def is_stopped(proc) -> bool:
    return pathlib.Path(f"/proc/{proc.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def result(proc) -> tuple:
    """(bytes received, how it ended) of a pump."""
    text = proc.bench.succeed(proc, timeout_s=20)
    match = re.search(r"^RECEIVED (\d+)\nRESULT moved=\d+ end=(\w+)$", text, re.M)
    return int(match.group(1)), match.group(2)


class Case:
    """One pair of pumps whose `victim` meets its end, or a stop, at the `passage`-th passage of `point`."""

    def __init__(self, bench, point, passage, number, victim, epoll):
        n = len(bench.procs)
        self.bench, self.victim, self.number = bench, victim, number
        self.what = f"{victim.value}, {'epoll' if epoll else 'blocking'}, {signal.Signals(number).name} at passage {passage} of {point}"
        self.path = bench.dir / f"progress-{n}"
        own = {"settings": {"STOP_AT": f"{point}:{passage}:{int(number)}"}}
        options = [*PUMP, f"--epoll={int(epoll)}"]
        mine = [f"--progress={self.path}"]
        self.server = bench.start(
            [bench.program("pump"), "server", *options, *(mine if victim is SERVER else ())], SERVER, name=f"server-{n}",
            **(own if victim is SERVER else {}),
        )  # fmt: skip
        self.client = bench.start(
            [bench.program("pump"), "client", f"--port={self.server.port()}", *options, *REVOKE, *(mine if victim is CLIENT else ())], CLIENT,
            name=f"client-{n}", **(own if victim is CLIENT else {}),
        )  # fmt: skip
        self.dead, self.survivor = (self.client, self.server) if victim is CLIENT else (self.server, self.client)

    def run(self):
        """None: the place was not passed so often. Otherwise seconds from the death, or from SIGCONT, to the end."""
        try:
            return self.killed() if self.number == signal.SIGKILL else self.stopped()
        except AssertionError as error:
            raise AssertionError(f"{self.what}: {error}") from error

    def killed(self):
        code = self.dead.wait(20)
        start = time.monotonic()
        if code == 0:
            self.complete()
            return None
        assert code == -signal.SIGKILL, f"ended with {code}\n{self.bench.all_output()}"
        received, end = result(self.survivor)
        assert end in ENDS or end == "done", end
        assert received >= progress(self.path), f"{received} of {progress(self.path)} accepted bytes, {end}"
        return time.monotonic() - start

    def stopped(self):
        eventually(lambda: not self.dead.running() or is_stopped(self.dead), what="the stop, or the end", timeout_s=20)
        reached = self.dead.running()
        if reached:
            time.sleep(0.12)  # longer than anybody waits for a peer (revoke.cc)
            self.dead.send_signal(signal.SIGCONT)
        start = time.monotonic()
        self.complete()
        return time.monotonic() - start if reached else None

    def complete(self):
        """Nobody died: everything has arrived."""
        assert result(self.client) == (TOTAL + WARM, "done")
        assert result(self.server) == (TOTAL + WARM, "EOF")


@pytest.mark.slow
@only_both
@pytest.mark.parametrize("epoll", [False, True], ids=["blocking", "epoll"])
@pytest.mark.parametrize("point", [name for name in NAMES if name not in SHARED])
def test_at_every_point(bench, stopping, point, epoll):
    """What send() had accepted is delivered, then TCP's end; who was only stopped goes on as if nothing had been."""
    bench.settings = {"RING_KIB": 4}
    bench.killed |= {CLIENT, SERVER}
    seconds = []
    for victim in (CLIENT, SERVER):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for passage in (1, 2, 7):
                took = Case(bench, point, passage, number, victim, epoll).run()
                if took is None:
                    break
                seconds.append(took)
    if point not in (BLOCKING_ONLY if epoll else EPOLL_ONLY):
        assert len(seconds) >= 2, f"nobody came by {point}"
    print(f"{point}: {len(seconds)} times, at most {max(seconds, default=0):.3f} s to the end")
    assert max(seconds, default=0) < LATE_S, seconds
    bench.assert_gates()


# ---- one end in two processes --------------------------------------------------------------------------------------------


@pytest.mark.slow
@only_both
@pytest.mark.parametrize("flow", ["up", "down"])
@pytest.mark.parametrize("victim", ["parent", "child"])
@pytest.mark.parametrize("point", NAMES)
def test_lock_of_the_dead(bench, stopping, point, victim, flow):
    """Parent and child use one end at once, one is killed with whatever locks it holds: the other one loses no time, and no record."""
    records, reached, longest = 1000, 0, 0
    bench.killed |= {CLIENT, SERVER}
    for passage, late in [(1, True), (1, False), (2, True), (2, False), (10, False)]:
        n = len(bench.procs)
        # A late reader finds a full ring, and of a stream that two processes use that goes back to TCP.
        options = [f"--flow={flow}", f"--records={records}", f"--late-ms={50 * late}"]
        stop = f"--stop-{victim}={point}:{passage}:{int(signal.SIGKILL)}"
        server = bench.start([bench.program("heirs"), "server", *options, stop], SERVER, name=f"server-{n}")
        client = bench.start([bench.program("heirs"), "client", f"--port={server.port()}", *options], CLIENT, name=f"client-{n}")
        survivor = "child" if victim == "parent" else "parent"
        server.wait(30)
        bench.wait_for_orphans() if victim == "parent" else None
        text = server.stdout()
        assert f"DONE {survivor}" in text, f"{point} {passage}: the {survivor} did not survive\n{bench.all_output()}"
        got = bench.succeed(client)
        if flow == "down":
            counts = [int(x) for x in re.search(r"^RECORDS (\d+) (\d+)$", got, re.M).groups()]
            assert counts[survivor == "child"] == records, f"{counts}\n{bench.all_output()}"
        if f"DONE {victim}" in text:
            continue
        reached += 1
        if not late:
            longest = max(longest, *(int(us) for us in re.findall(r"^LONGEST_US (\d+)$", text, re.M)))
    print(f"{point}: {reached} times, the longest call of the living took {longest / 1000:.1f} ms")
    assert reached >= 2 or point not in SHARED or flow == "up", f"nobody came by {point}"
    assert longest < LOCK_S * 1e6, longest
    bench.assert_gates()


def test_nothing_of_it_in_the_library():
    """The library that is delivered has no stop points: no name of one, no variable, no function."""
    content = harness.SO.read_bytes()
    assert b"MPKLINK_STOP_AT" not in content and b"stop_point" not in content
    assert len(NAMES) > 25
    assert not [name for name in NAMES if len(name) > 8 and b"\0" + name.encode() + b"\0" in content]
