# SPDX-License-Identifier: MIT
"""Whatever runs out: every byte arrives over TCP, the statistics say why, and with room again new connections use the ring."""

import contextlib
import os
import pathlib
import signal
import subprocess

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, Combo, eventually, read_text

only_both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
neither_and_both = pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
each_victim = pytest.mark.parametrize("victim", [CLIENT, SERVER], ids=["client", "server"])
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root for a mount namespace, cgroups or another user")
OTHER_UID = 12345
ROUNDS, SIZE = 60, 1000


class MemoryGroup:
    """A memory cgroup of version 1 or 2."""

    def __init__(self, path, limit):
        self.path, self.old = path, (path / "memory.limit_in_bytes").exists()
        if limit:
            (path / ("memory.limit_in_bytes" if self.old else "memory.max")).write_text(str(limit))
        self.prefix = ("sh", "-c", 'echo $$ >"$0" && exec "$@"', path / "cgroup.procs")

    def used(self) -> int:
        return int((self.path / ("memory.usage_in_bytes" if self.old else "memory.current")).read_text())


@contextlib.contextmanager
def memory_group(limit=None):
    """Skips where none can be made."""
    for root in (pathlib.Path("/sys/fs/cgroup/memory"), pathlib.Path("/sys/fs/cgroup")):
        path = root / f"mpklink-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            group = MemoryGroup(path, limit)
            group.used()
        except OSError:  # the controller is not delegated
            path.rmdir()
            continue
        try:
            yield group
        finally:
            for pid in (path / "cgroup.procs").read_text().split():  # after a failure
                os.kill(int(pid), signal.SIGKILL)
            eventually(lambda: not (path / "cgroup.procs").read_text(), what="the end of the group's processes")
            path.rmdir()
        return
    pytest.skip("no memory cgroup can be made here")


class Told:
    """A process of programs/limited.py."""

    def __init__(self, bench, side, *arguments, prefix=(), **options):
        self.proc = bench.start([*prefix, PYTHON, SCRIPTS / "limited.py", *arguments], side, name=f"{side.value}-{len(bench.procs)}", stdin=subprocess.PIPE, **options)
        self.asked = 0

    def ask(self, command):
        """Without waiting; the number of the answer."""
        self.proc.stdin.write(f"{command}\n".encode())
        self.proc.stdin.flush()
        self.asked += 1
        return self.asked - 1

    def answer(self, number, word="OK"):
        got = self.proc.wait_line(rf"^(OK|FAILED) {number} (.*)$", timeout_s=20)
        assert got.group(1) == word, f"{got.group(0)}\n{self.proc.bench.all_output()}"
        return got.group(2)

    def do(self, command, word="OK"):
        return self.answer(self.ask(command), word)

    def end(self):
        self.proc.stdin.close()
        self.proc.finish()


class Couple:
    """A server and a client; both talk when one is told to."""

    def __init__(self, bench, server_options=None, client_options=None, **options):
        self.bench = bench
        bench.settings = {"WARMUP": 0, **bench.settings}
        self.server = Told(bench, SERVER, "server", **options, **(server_options or {}))
        self.client = Told(bench, CLIENT, "client", self.server.proc.port(), **options, **(client_options or {}))

    def of(self, side):
        return self.server if side is SERVER else self.client

    def talk(self, rounds=ROUNDS, size=SIZE):
        served = self.server.ask("serve")
        self.client.do(f"talk {rounds} {size}")
        assert int(self.server.answer(served)) == rounds * size

    def open(self, count):
        """So many connections, kept at both ends."""
        held = self.server.ask(f"hold {count}")
        self.client.do(f"open {count}")
        self.server.answer(held)

    def close(self):
        self.client.do("close")
        self.server.do("close")

    def end(self):
        self.client.end()
        self.server.end()

    def assert_once_short(self, victim, reason):
        """The first connection stayed on TCP for `reason`, the second one did not; as seen by the victim."""
        stats = self.bench.stats(victim)
        self.bench.assert_gates()
        assert stats.plain[reason] >= 1, f"no {reason} at the {victim.value}\n{stats}"
        assert stats.upgraded == 1, f"not upgraded with room again\n{stats}"
        assert stats.ring > ROUNDS * SIZE // 2, stats


# ---- limits of a process ---------------------------------------------------------------------------------------------------


def mapped(told, what) -> int:
    return read_text(f"/proc/{told.proc.pid}/maps").count(f"/memfd:mpklink-{what}")


def short_of(bench, victim, command, reason, **options):
    couple = Couple(bench, **options)
    couple.of(victim).do(command)
    couple.talk()
    couple.of(victim).do("free")
    couple.talk()
    couple.end()
    couple.assert_once_short(victim, reason)


@only_both
@each_victim
def test_descriptors(bench, victim):
    short_of(bench, victim, "nofile 1", "no-fds")


@only_both
@each_victim
def test_address_space(bench, victim):
    short_of(bench, victim, f"as {4 << 20}", "no-memory")


@only_both
@each_victim
def test_mappings(bench, victim):
    short_of(bench, victim, "maps 0", "no-memory")


@only_both
@needs_root
@each_victim
def test_locked_memory(bench, victim):
    bench.settings = {"BACKING": "secret"}
    short_of(bench, victim, "memlock 0", "no-secret-memory", uid=OTHER_UID)


@neither_and_both
def test_address_space_is_left_to_the_program(bench):
    """A program whose limit is twice what it needs gets that, whatever we reserved before."""
    couple = Couple(bench)
    for told in (couple.client, couple.server):
        told.do(f"as {2 << 30}")
    couple.talk()
    for told in (couple.client, couple.server):
        told.do(f"take {3 << 29}")
    couple.end()
    bench.assert_ring(min_bytes=ROUNDS * SIZE)


@only_both
def test_mappings_run_out_while_upgraded(bench):
    """A stream that ends when no mapping can be had: its memory comes back once there is room."""
    couple = Couple(bench)
    served = couple.server.ask("serve")
    couple.client.do(f"begin {ROUNDS} {SIZE}")
    couple.client.do("maps 0")
    couple.client.do("end")
    couple.server.answer(served)
    couple.client.do("free")
    couple.talk()
    assert mapped(couple.client, "channel") == 0
    couple.end()
    bench.assert_ring(streams=2, min_bytes=2 * ROUNDS * SIZE, exact=True)


@only_both
def test_few_addresses_are_shared_out(bench):
    """A process that may have few addresses upgrades a few streams, says of the others why not, and has the room again when they end."""
    count = 150
    couple = Couple(bench)
    couple.client.do(f"as {256 << 20}")  # an eighth of that and what it has: room for some eighty channels
    couple.open(count)
    couple.close()
    couple.talk()
    couple.end()
    stats = bench.stats(CLIENT)
    assert stats.plain["no-memory"] >= 10, stats
    assert 10 < stats.upgraded <= count + 1 - stats.plain["no-memory"], stats
    assert stats.ring > ROUNDS * SIZE, stats
    bench.assert_gates()


# ---- what a peer can have us take ------------------------------------------------------------------------------------------


@only_both
def test_large_rings_of_a_client_are_refused(bench):
    """The client chooses the size of the rings, the server what it maps: not more than of a peer with its own setting, or the usual one."""
    couple = Couple(bench, client_options={"settings": {"RING_KIB": 65536}})
    couple.talk()
    couple.end()
    bench.assert_fell_back()
    assert bench.stats(SERVER).plain["no-memory"] == 1, bench.stats(SERVER)


@only_both
@needs_root
def test_the_client_pays_for_what_it_sends(bench):
    """40 rings that a client fills and the server does not read are the client's memory, as its cgroup counts it."""
    with memory_group() as group:
        couple = Couple(bench, server_options={"prefix": group.prefix})
        couple.open(40)
        before = group.used()
        assert int(couple.client.do("fill")) >= 40 * (200 << 10)
        assert group.used() - before < 1 << 20, "the server was charged"
        couple.close()
        couple.end()
    bench.assert_ring(streams=40, min_bytes=40 * (200 << 10))


@only_both
@needs_root
def test_full_rings_leave_memory_to_the_program(bench):
    """200 clients read nothing of what a server with little memory sends: what the rings may take of its cgroup's limit is bounded, so it lives."""
    with memory_group(56 << 20) as group:
        couple = Couple(bench, server_options={"prefix": group.prefix})
        couple.open(200)
        couple.server.do("fill")
        assert group.used() < 56 << 20
        couple.close()
        couple.talk()
        couple.end()
    stats = bench.stats(SERVER)
    assert stats.plain["no-memory"] >= 100, stats
    assert 10 < stats.upgraded <= 60, stats
    assert stats.ring > ROUNDS * SIZE, stats
    bench.assert_gates()


@only_both
def test_pairs_of_dead_clients_are_given_up(bench):
    """A client that ends with news on the control channel that nobody has read leaves nothing behind (found by the soak)."""
    couple = Couple(bench)
    port = couple.server.proc.port()
    for _ in range(6):
        client = Told(bench, CLIENT, "client", port)
        served = couple.server.ask("serve")
        client.do(f"begin {ROUNDS} {SIZE}")
        client.do("naps")
        client.do("end")
        couple.server.answer(served)
        client.end()
    assert 1 <= mapped(couple.server, "board") <= 2  # that of the last one is given up with the next one's
    couple.end()
    bench.assert_ring(streams=6, min_bytes=6 * ROUNDS * SIZE, exact=True)


# ---- limits around it ------------------------------------------------------------------------------------------------------


@only_both
@needs_root
def test_processes(bench):
    """Nothing of ours needs a process or thread: with fork failing in both ends the ring is used."""
    couple = Couple(bench, prefix=("prlimit", "--nproc=1"), uid=OTHER_UID)
    couple.client.do("fork", "FAILED")
    couple.server.do("fork", "FAILED")
    couple.talk()
    couple.end()
    bench.assert_ring(min_bytes=ROUNDS * SIZE, exact=True, conserved=True)


@only_both
@needs_root
def test_dev_shm_full(bench):
    """memfds are not of /dev/shm: full, it stops nothing."""
    fill = "mount -t tmpfs -o size=64k none /dev/shm && ! cat /dev/zero >/dev/shm/full 2>/dev/null && exec \"$@\""
    couple = Couple(bench, prefix=("unshare", "-m", "sh", "-c", fill, "sh"))
    couple.talk()
    couple.end()
    bench.assert_ring(min_bytes=ROUNDS * SIZE, exact=True, conserved=True)


@only_both
@pytest.mark.no_ring
def test_statistics_on_a_full_disk(bench):
    """The line that cannot be written is lost, said at level warn, and the program ends as it would."""
    bench.settings = {"STATS": "/dev/full", "LOG": "warn"}
    couple = Couple(bench)
    couple.talk()
    couple.end()
    for told in (couple.client, couple.server):
        assert "cannot write statistics" in told.proc.stderr(), told.proc.output()
