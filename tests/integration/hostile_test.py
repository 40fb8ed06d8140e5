# SPDX-License-Identifier: MIT
"""A hostile peer: tests/programs/hostile.cc speaks the rendezvous and then lies. The victim must live and leak nothing, and an honest stream
of the same victim must go on over its ring, with the right bytes and no round above a second."""

import collections
import functools
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from harness import CLIENT, SERVER, SANITIZER_OPTIONS, Combo, Hang, descendants, stacks
from servers import Nginx, Redis

both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

WORST_MS = 1000 if not SANITIZER_OPTIONS else 5000
SECONDS = float(os.environ.get("MPKLINK_HOSTILE_SECONDS", "0.2"))  # of each case
SEED = int(os.environ.get("MPKLINK_SEED", "0")) or int(time.time() * 1000) % 1_000_000_007
SETTINGS = {"WARMUP": 0, "LOG": "off"}  # an upgrade at the first chance, however short the connections of this port have been

Counts = collections.namedtuple("Counts", "fds eventfds memfds mappings")
Result = collections.namedtuple("Result", "streams upgraded refused resets ends rounds")


def counts(pid: int) -> Counts:
    """What a process holds. A mapping of shared memory is one of a memfd; the others are counted together."""
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    maps = [line for line in maps if "mpklink-status" not in line]  # the process' own page
    memfds = sum("memfd:" in line for line in maps)
    names = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    eventfds = sum("eventfd" in name for name in names)
    return Counts(len(names) - eventfds, eventfds, memfds + sum("memfd:" in name and "mpklink-status" not in name for name in names), len(maps) - memfds)


class Victim:
    """A process under attack, and the honest stream that it serves meanwhile."""

    def __init__(self, bench, pid, port, speak="echo"):
        self.bench, self.pid, self.port, self.speak = bench, pid, port, speak
        self.results = []
        self.visitor()
        self.steady = self.be_steady()
        time.sleep(0.2)
        self.before = counts(pid)

    def be_steady(self):
        argv = [self.bench.program("hardy"), "steady", f"--port={self.port}", f"--speak={self.speak}"]
        return self.bench.start(argv, CLIENT, stdin=subprocess.PIPE, settings=SETTINGS)

    @staticmethod
    def end_steady(bench, proc) -> tuple:
        """(rounds, milliseconds of the slowest)"""
        proc.stdin.close()
        match = re.search(r"^STEADY rounds=(\d+) worst_ms=(\d+)$", bench.succeed(proc, 10), re.M)
        return int(match.group(1)), int(match.group(2))

    def visitor(self) -> None:
        """A new honest process: the victim gives up what it kept of peers that have ended."""
        proc = self.be_steady()
        time.sleep(0.05)
        self.end_steady(self.bench, proc)

    def attack(self, case, *options, seconds=SECONDS, least=6) -> Result:
        argv = [self.bench.program("hostile"), case, f"--port={self.port}", f"--speak={self.speak}", f"--seed={SEED}", f"--seconds={seconds}", f"--least={least}"]
        proc = self.bench.start([*argv, *options], name=f"hostile-{case}-{len(self.bench.procs)}")
        return self.attacked(proc, seconds)

    def attacked(self, proc, seconds=SECONDS) -> Result:
        text = self.bench.succeed(proc, timeout_s=seconds + 25)
        numbers = re.search(r"^RESULT (.*)$", text, re.M).group(1)
        result = Result(*(int(n) for n in re.findall(r"=(\d+)", numbers)))
        print(proc.name, numbers, text.splitlines()[0])
        self.results.append(result)
        assert result.streams > 0, text
        return result

    def must_hold_as_before(self, limit_s=5) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            now = counts(self.pid)
            # Of the last visitor board and control channel may be left until the next one; one bell stays for each thread that ever slept at
            # the same time; the library's and malloc's own memory comes in pieces and stays. A leak is one of each for each stream of a liar.
            slack = Counts(1, 8, 1, 24)
            if all(n <= b + s for n, b, s in zip(now, self.before, slack)):
                return
            if time.monotonic() > deadline:
                links = [os.readlink(f"/proc/{self.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{self.pid}/fd")]
                raise AssertionError(f"before {self.before}, now {now}\n{collections.Counter(links)}\n{stacks([self.pid])}")
            self.visitor()

    def check_steady(self) -> None:
        rounds, worst_ms = self.end_steady(self.bench, self.steady)
        print("steady", rounds, "rounds, the slowest", worst_ms, "ms")
        assert rounds > 20, rounds
        assert worst_ms < WORST_MS, f"the honest stream waited {worst_ms} ms"
        lines = [line for line in self.bench.stats(CLIENT).lines if line["pid"] == self.steady.pid]
        assert len(lines) == 1 and lines[0]["upgraded"] == 1 and lines[0]["revoked"] == 0 and not lines[0]["plain"], lines
        carried = lines[0]["ring_tx_bytes"] + lines[0]["ring_rx_bytes"]
        # Not a byte over TCP but those of the warm-up and the switch.
        assert carried >= 10 * rounds and lines[0]["tcp_tx_bytes"] + lines[0]["tcp_rx_bytes"] < 100_000, lines

    def check_statistics(self, reasons=()) -> None:
        """The victim has counted every upgrade that the liar saw, and what it refused or reset (one of `reasons`)."""
        stats = self.bench.stats(SERVER)
        assert stats.upgraded >= 1 + sum(r.upgraded for r in self.results), (self.results, str(stats))
        refused = sum(r.refused for r in self.results)
        counted = sum(stats.plain[reason] for reason in reasons)
        assert not reasons or counted >= max(1, refused), (self.results, str(stats))
        self.bench.assert_gates()


def echo_victim(bench, wait="epoll", **settings) -> Victim:
    server = bench.start([bench.program("hardy"), "server", f"--wait={wait}"], SERVER, settings={**SETTINGS, **settings}, name="victim")
    victim = Victim(bench, server.pid, server.port())
    victim.proc = server
    return victim


def finish(victim, *reasons) -> None:
    victim.must_hold_as_before()
    victim.check_steady()
    victim.proc.stop(signal.SIGTERM)
    victim.check_statistics(reasons)


# ---- what is said and what is handed over --------------------------------------------------------------------------------

REFUSED = {
    "offer-fields": ["peer-protocol", "peer-version"],
    "offer-sizes": ["peer-protocol", "short-lived"],
    "offer-fds": ["peer-protocol"],
    "memory-kinds": ["peer-protocol"],
    "noise": ["peer-protocol", "peer-version", "short-lived"],
}


@both
@pytest.mark.parametrize("case", REFUSED)
def test_refused(bench, case):
    victim = echo_victim(bench)
    result = victim.attack(case)
    assert result.refused > 3, result
    finish(victim, *REFUSED[case])


@both
def test_memory_that_cannot_be_written(bench):
    """Open for reading only, or sealed against writing later: the mapping succeeded and the first store was a SIGSEGV."""
    victim = echo_victim(bench, "threads", GUARD="mprotect")
    assert victim.attack("memory-kinds").refused > 3
    finish(victim, "peer-protocol")


@both
@pytest.mark.parametrize("case", ["offer-replays", "memory-punched", "bell-kinds", "waiters-race"])
def test_accepted_and_survived(bench, case):
    victim = echo_victim(bench)
    assert victim.attack(case).upgraded > 1
    finish(victim)


# ---- words ---------------------------------------------------------------------------------------------------------------

WORDS = [
    "magic", "version", "slot", "capacity", "accept-state", "waiters-ours", "waiters-theirs", "out-tail", "out-base", "out-switch-at",
    "out-want-space", "out-returned", "out-look-back", "out-head", "out-closed", "in-tail", "in-base", "in-switch-at", "in-want-space", "in-returned",
    "in-look-back", "in-head", "in-closed", "board-magic", "board-version", "cpu", "armed", "summary", "leaf",
]  # fmt: skip


@both
def test_each_word(bench):
    """A liar for each word, five at a time."""
    victim = echo_victim(bench)
    for at in range(0, len(WORDS), 5):
        procs = [
            bench.start([bench.program("hostile"), f"word-{word}", f"--port={victim.port}", f"--seed={SEED}", "--seconds=0.25", "--least=3"], name=f"hostile-{word}")
            for word in WORDS[at : at + 5]
        ]
        for proc in procs:
            assert victim.attacked(proc).upgraded > 0
    finish(victim, "peer-lied")


@both
@pytest.mark.parametrize("wait", ["threads", "epoll-et", "poll"])
def test_words(bench, wait):
    victim = echo_victim(bench, wait)
    assert victim.attack("words", least=16).upgraded > 1
    finish(victim, "peer-lied")


@both
def test_words_by_way_of_mprotect(bench):
    """Every access of a lied-to stream is inside a gate."""
    victim = echo_victim(bench, GUARD="mprotect")
    assert victim.attack("words", least=16).upgraded > 1
    finish(victim, "peer-lied")


# ---- what went wrong once ------------------------------------------------------------------------------------------------


@both
def test_half_open_handshakes_by_the_hundred(bench):
    victim = echo_victim(bench, "epoll")
    assert victim.attack("half-open", seconds=2 * SECONDS).streams > 50
    finish(victim)


@both
def test_frozen_bytes_that_drip_do_not_stop_an_event_loop(bench):
    """A receive that may not wait waited half a second for what was promised, again for every byte that came."""
    victim = echo_victim(bench, "epoll")
    assert victim.attack("freeze-and-drip", seconds=1.2).upgraded > 4
    finish(victim)


@both
@pytest.mark.parametrize("case", ["told-and-taken-back", "told-and-frozen"])
def test_announced_bytes_that_never_come_do_not_hang_a_blocking_receive(bench, case):
    """select said "readable", the peer took the bytes back, and the server, which believes select, was stuck in recv."""
    victim = echo_victim(bench, "select-blocking")
    assert victim.attack(case, seconds=1).upgraded > 4
    finish(victim, *(["peer-lied"] if case == "told-and-taken-back" else []))


@both
def test_control_channel_that_is_never_empty(bench):
    """The look for a bell went on as long as something came."""
    victim = echo_victim(bench, "epoll")
    assert victim.attack("control-flood", least=1).upgraded == 1
    finish(victim)


@both
def test_lingering_descriptors_do_not_block_their_close(bench):
    """A TCP socket with SO_LINGER and unsent bytes, handed over instead of memory: closing it waited for an hour."""
    victim = echo_victim(bench, "epoll")
    assert victim.attack("lingering-fds").refused > 3
    finish(victim, "peer-protocol")


@both
@pytest.mark.skipif(os.getuid() != 0, reason="needs two users")
def test_full_bell_of_another_user_does_not_block_who_rings_it(bench):
    """write(2) on a full eventfd waits; whoever shares it sets and clears O_NONBLOCK."""
    victim = echo_victim(bench, "epoll")
    argv = [bench.program("hostile"), "bell-blocks", f"--port={victim.port}", f"--seed={SEED}", f"--seconds={SECONDS}", "--least=6"]
    assert victim.attacked(bench.start(argv, uid=12345, name="hostile-bell-blocks")).upgraded > 1
    finish(victim)


@both
def test_bells_of_many_peers_do_not_use_up_the_descriptors(bench):
    victim = echo_victim(bench, "epoll")
    argv = [bench.program("hostile"), "many-bells", f"--port={victim.port}", f"--seed={SEED}", "--seconds=1"]
    proc = bench.start(argv, name="hostile-many-bells")
    most = 0
    while proc.running():
        most = max(most, counts(victim.pid).eventfds)
        time.sleep(0.02)
    assert victim.attacked(proc).upgraded > 30
    assert 1000 < most < 4096 + 200, most
    finish(victim)


def cpu_s(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@both
@pytest.mark.parametrize("case, wait", [("closed-odd", "epoll"), ("still", "poll")])
def test_a_lie_and_then_silence_does_not_keep_the_victim_busy(bench, case, wait):
    """A ring that was full for send and writable for poll, because its reader was "closed" by a number that means nothing."""
    victim = echo_victim(bench, wait)
    victim.steady.send_signal(signal.SIGSTOP)
    before = cpu_s(victim.pid)
    victim.attack(case, seconds=0.8)
    used = cpu_s(victim.pid) - before
    victim.steady.send_signal(signal.SIGCONT)
    print("processor time", used)
    assert used < 0.4, used
    victim.must_hold_as_before()
    Victim.end_steady(bench, victim.steady)
    victim.proc.stop(signal.SIGTERM)
    victim.check_statistics()


# ---- servers -------------------------------------------------------------------------------------------------------------

SERVER_CASES = ["words", "offer-fields", "memory-kinds", "offer-replays", "memory-punched", "bell-kinds"]


@both
def test_nginx(bench, docroot):
    nginx = Nginx(bench, docroot.dir, settings=SETTINGS)
    [worker] = nginx.worker_pids()
    victim = Victim(bench, worker, nginx.port, "http")
    for case in SERVER_CASES:
        victim.attack(case, least=16 if case == "words" else 6)
    assert nginx.worker_pids() == [worker]
    victim.must_hold_as_before()
    victim.check_steady()
    nginx.stop()
    victim.check_statistics(["peer-protocol"])
    assert bench.stats(SERVER).plain["peer-lied"] > 0


@both
def test_redis(bench):
    bench.settings = SETTINGS
    redis = Redis(bench)
    victim = Victim(bench, redis.proc.pid, redis.port, "redis")
    for case in SERVER_CASES:
        victim.attack(case, least=16 if case == "words" else 6)
    victim.must_hold_as_before()
    victim.check_steady()
    redis.stop()
    victim.check_statistics(["peer-protocol"])
    assert bench.stats(SERVER).plain["peer-lied"] > 0


# ---- a hostile server ----------------------------------------------------------------------------------------------------

ACCEPTOR_CASES = ["words", "hello-fields", "accept-state-odd", "half-open-acceptor", "memory-punched"]


@both
@pytest.mark.parametrize("case", ACCEPTOR_CASES)
def test_client_of_a_hostile_server(bench, case):
    """The victim connects: to an honest server for good, to the liar again and again."""
    honest = bench.start([bench.program("hardy"), "server", "--wait=epoll"], SERVER, settings=SETTINGS, name="honest")
    argv = [bench.program("hostile"), case, "--role=acceptor", f"--seed={SEED}", f"--seconds={2 * SECONDS}", "--least=6"]
    liar = bench.start(argv, name="hostile")
    port = int(liar.wait_line(r"^PORT (\d+)$").group(1))
    victim = bench.start([bench.program("hardy"), "connect", f"--port={port}", f"--honest-port={honest.port()}"], CLIENT, settings=SETTINGS, name="victim")
    time.sleep(0.2)
    text = bench.succeed(liar)
    result = Result(*(int(n) for n in re.findall(r"=(\d+)", re.search(r"^RESULT (.*)$", text, re.M).group(1))))
    print(case, result, text.splitlines()[0])
    assert result.streams > 3, text
    time.sleep(0.3)  # its threads find nobody any more
    held = counts(victim.pid)
    assert held.memfds <= 4 and held.fds < 30, held  # of the honest stream, and of one liar that nobody has looked for since
    victim.send_signal(signal.SIGTERM)
    output = bench.succeed(victim)
    rounds, worst_ms = map(int, re.search(r"^STEADY rounds=(\d+) worst_ms=(\d+)$", output, re.M).groups())
    assert rounds > 20 and worst_ms < WORST_MS, output
    honest.stop(signal.SIGTERM)
    stats = bench.stats(CLIENT)
    assert stats.upgraded >= 1 and stats.ring > 10 * rounds, str(stats)
    served = bench.stats(SERVER)
    assert served.upgraded == 1 and served.ring >= 10 * rounds and served.tcp < 100_000, str(served)
    refused = {"hello-fields": "peer-protocol", "words": "peer-lied"}
    if case in refused:
        assert stats.plain[refused[case]] > 0, str(stats)
    if case in ("accept-state-odd", "half-open-acceptor"):
        assert sum(stats.plain.values()) > 0, str(stats)
    bench.assert_gates()


# ---- longer --------------------------------------------------------------------------------------------------------------


def test_cases_are_known():
    """Every case of the program is in a test."""
    tested = pathlib.Path(__file__).read_text()
    names = subprocess.run([os.environ.get("MPKLINK_HOSTILE", hostile_path()), "list"], capture_output=True, text=True, check=True, timeout=10)
    missing = [name for name in names.stdout.split() if f'"{name.removeprefix("word-")}"' not in tested]
    assert not missing, missing


def hostile_path() -> str:
    from harness import PROGRAMS

    return str(PROGRAMS / "hostile")


@both
@pytest.mark.slow
@pytest.mark.parametrize("wait", ["threads", "select", "poll", "epoll", "epoll-et"])
def test_words_for_longer(bench, wait):
    victim = echo_victim(bench, wait)
    for word in WORDS:
        victim.attack(f"word-{word}", seconds=2)
    victim.attack("words", seconds=30)
    finish(victim, "peer-lied")
