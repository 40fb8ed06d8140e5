# SPDX-License-Identifier: MIT
"""Death, stopping and shortage: what TCP would have delivered arrives, then TCP's end or error; nothing hangs, nothing crashes."""

import os
import pathlib
import re
import signal
import struct
import subprocess
import time

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, Bench, Combo, eventually
from servers import Nginx

neither_and_both = pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)

ENDS = {"EOF", "ECONNRESET", "EPIPE"}
OTHER = {CLIENT: SERVER, SERVER: CLIENT}


def start_pump(bench, server_options=(), client_options=(), common=(), tracer=()):
    """A pump pair; `tracer` maps a side to an strace command line. (server, client)."""
    tracer = dict(tracer)
    n = len(bench.procs)
    server = bench.start(
        [bench.program("pump"), "server", *common, *server_options], SERVER, name=f"server-{n}", tracer=tracer.get(SERVER, ())
    )
    client = bench.start(
        [bench.program("pump"), "client", f"--port={server.port()}", *common, *client_options], CLIENT, name=f"client-{n}",
        tracer=tracer.get(CLIENT, ()),
    )  # fmt: skip
    return server, client


def pump_result(proc) -> tuple:
    """(bytes moved, how it ended) of a survivor, which must have ended well."""
    text = proc.bench.succeed(proc, timeout_s=20)
    match = re.search(r"^RESULT moved=(\d+) end=(\w+)$", text, re.M)
    return int(match.group(1)), match.group(2)


def progress(path) -> int:
    data = path.read_bytes() if path.exists() else b""
    return struct.unpack("<Q", data)[0] if len(data) == 8 else 0


def kill(bench, proc, side) -> None:
    bench.killed.add(side)
    proc.send_signal(signal.SIGKILL)
    proc.wait()


# ---- SIGKILL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["up", "down"])
def test_sender_killed(bench, flow):
    """The receiver gets every byte that send() had accepted, then end of file (or a reset during the warm-up)."""
    sender_side = CLIENT if flow == "up" else SERVER
    for n, delay_ms in enumerate([0, 1, 2, 4, 8, 15, 30, 60, 120]):
        path = bench.dir / f"progress-{n}"
        option = [f"--progress={path}"]
        server, client = start_pump(
            bench, option if flow == "down" else (), option if flow == "up" else (), [f"--flow={flow}", "--bytes=100000000000"]
        )
        sender, receiver = (client, server) if flow == "up" else (server, client)
        client.wait_line("^CONNECTED$")
        time.sleep(delay_ms / 1000)
        kill(bench, sender, sender_side)
        moved, end = pump_result(receiver)
        assert end in ENDS, end
        assert moved >= progress(path), f"after {delay_ms} ms: {moved} of {progress(path)} accepted bytes, {end}"
        if progress(path) > 4000:  # beyond the warm-up nothing was on its way to the dead: a clean end
            assert end == "EOF"
    bench.assert_ring(streams=3, min_bytes=100_000, sides=[OTHER[sender_side]])


@pytest.mark.parametrize("flow", ["up", "down"])
def test_receiver_killed(bench, flow):
    """The sender gets ECONNRESET or EPIPE, also when it is blocked."""
    receiver_side = SERVER if flow == "up" else CLIENT
    for delay_ms in [10, 20, 40, 80, 150]:
        # A slow receiver: the sender is blocked on a full stream most of the time.
        slow = ["--delay-us=500", "--chunk=2000"]
        server, client = start_pump(
            bench, slow if flow == "up" else (), slow if flow == "down" else (), [f"--flow={flow}", "--bytes=100000000000"]
        )
        sender, receiver = (client, server) if flow == "up" else (server, client)
        client.wait_line("^CONNECTED$")
        time.sleep(delay_ms / 1000)
        kill(bench, receiver, receiver_side)
        moved, end = pump_result(sender)
        # In the warm-up the sender may be reading itself, and see the end of file of an orderly-looking death.
        assert end in ("ECONNRESET", "EPIPE") or (end == "EOF" and moved <= 4000), (moved, end)
    bench.assert_ring(streams=2, min_bytes=20_000, sides=[OTHER[receiver_side]])


def test_sender_killed_with_full_buffers(bench):
    """What a crashed peer had sent is still delivered, however much later it is read."""
    path = bench.dir / "progress"
    server, client = start_pump(bench, (), [f"--progress={path}"], ["--bytes=100000000000"])
    eventually(lambda: progress(path) > 100_000, what="some transfer")
    server.send_signal(signal.SIGSTOP)
    last = -1
    while progress(path) != last:  # until the sender is blocked
        last = progress(path)
        time.sleep(0.2)
    kill(bench, client, CLIENT)
    time.sleep(0.2)
    server.send_signal(signal.SIGCONT)
    moved, end = pump_result(server)
    assert moved >= progress(path), f"{moved} of {progress(path)} accepted bytes"
    assert end == "EOF"
    bench.assert_ring(streams=1, min_bytes=50_000, sides=[SERVER])


@pytest.mark.parametrize("victim", [CLIENT, SERVER], ids=["client-dies", "server-dies"])
@pytest.mark.parametrize("warmup", [None, 0], ids=["default", "warm0"])
def test_killed_after_each_operation(bench, victim, warmup):
    """kill -9 after the 1st, 2nd, 3rd, … socket call: every state of the upgrade that the program's own calls can see."""
    if warmup is not None:
        bench.settings = {"WARMUP": warmup}
    bench.killed.add(victim)
    for n in [*range(1, 40), 60, 79, 80, 81, 90, 120, 150]:
        path = bench.dir / f"progress-{n}"
        die = [f"--die-after-ops={n}", f"--progress={path}"]
        server, client = start_pump(
            bench, die if victim is SERVER else (), die if victim is CLIENT else (), ["--flow=echo", "--bytes=20000", "--chunk=100"]
        )
        dead, survivor = (client, server) if victim is CLIENT else (server, client)
        dead.finish(-signal.SIGKILL)
        moved, end = pump_result(survivor)
        assert end in ENDS, end
        if survivor is server:  # it says what it received, the dead one what it sent
            assert moved >= progress(path), f"operation {n}: {moved} of {progress(path)} accepted bytes, {end}"
    bench.assert_ring(streams=10, min_bytes=20_000, sides=[OTHER[victim]])


@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
@pytest.mark.parametrize("flow", ["up", "echo"])
def test_parent_dies_and_its_child_goes_on(bench, flow, side):
    """kill -9 of a process whose forked child goes on with the stream: the other end notices nothing."""
    total, heir = 400_000, ["--heir-at=200000"]
    server, client = start_pump(
        bench, heir if side is SERVER else (), heir if side is CLIENT else (), [f"--flow={flow}", f"--bytes={total}", "--chunk=3000"]
    )
    parent, other = (client, server) if side is CLIENT else (server, client)
    parent.finish(-signal.SIGKILL)
    bench.killed.add(side)
    warm = 40 * 100
    assert pump_result(other) == (total + warm, "done" if other is client else "EOF")
    bench.wait_for_orphans()
    assert re.search(rf"^RESULT moved={total + warm} end=(done|EOF)$", parent.stdout(), re.M), parent.output()  # the child's words
    bench.assert_ring(streams=1, min_bytes=100_000, sides=[OTHER[side]])


def memory_group(limit):
    """A control group of this much memory, as a path; None with the reason where there is none to be had."""
    names = {"memory.limit_in_bytes": "/sys/fs/cgroup/memory", "memory.max": "/sys/fs/cgroup"}
    why = "no memory controller"
    for name, root in names.items():
        group = pathlib.Path(root) / f"mpklink-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            why = str(error)
            continue
        try:
            (group / name).write_text(str(limit))
            return group, ""
        except OSError as error:
            why = str(error)
            group.rmdir()
    return None, why


@pytest.mark.parametrize("victim", [CLIENT, SERVER], ids=["client", "server"])
def test_out_of_memory(bench, victim):
    """The kernel ends a process that has eaten all its control group allows: what it had sent is delivered, then TCP's end."""
    group, why = memory_group(48 << 20)
    if group is None:
        pytest.skip(f"no control group of our own: {why}")
    try:
        path = bench.dir / "progress"
        eat = ["--eat-at=100000", f"--progress={path}"]
        enter = ["/bin/sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
        options = ["--flow=echo", "--bytes=400000", "--chunk=3000"]
        prefix = {victim: (enter, eat)}
        before, more = prefix.get(SERVER, ((), ()))
        server = bench.start([*before, bench.program("pump"), "server", *options, *more], SERVER, name="server")
        before, more = prefix.get(CLIENT, ((), ()))
        client = bench.start([*before, bench.program("pump"), "client", f"--port={server.port()}", *options, *more], CLIENT, name="client")
        dead, survivor = (client, server) if victim is CLIENT else (server, client)
        dead.finish(-signal.SIGKILL)
        bench.killed.add(victim)
        moved, end = pump_result(survivor)
        assert end in ENDS, end
        assert survivor is client or moved >= progress(path), f"{moved} of {progress(path)} accepted bytes, {end}"
        bench.assert_ring(streams=1, min_bytes=50_000, sides=[OTHER[victim]])
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), what="the control group to be empty")
        group.rmdir()


# ---- kill and failure at every system call of the upgrade ----------------------------------------------------------------

# Calls that an upgrade may make; the program itself makes few of them.
UPGRADE_CALLS = (
    "socket bind listen connect accept4 accept sendmsg recvmsg sendto recvfrom memfd_create ftruncate fallocate fcntl"
    " pkey_alloc pkey_mprotect eventfd2 epoll_create1 epoll_ctl epoll_wait epoll_pwait ppoll poll getsockopt setsockopt"
    " getsockname getpeername close dup3 getrandom futex ioctl write read rt_sigprocmask fstat"
).split()

TRACED_PUMP = ["--flow=echo", "--bytes=6000", "--chunk=100", "--warm=20"]


def trace_calls(bench, victim, disabled) -> dict:
    """System call → how often the victim makes it in a run without faults (`disabled`: with MPKLINK_DISABLE=1)."""
    out = bench.dir / f"trace-{victim.value}-{disabled}"
    saved, bench.settings = bench.settings, {**bench.settings, "DISABLE": 1} if disabled else bench.settings
    server, client = start_pump(bench, (), (), TRACED_PUMP, {victim: ["strace", "-f", "-qq", "-o", out]})
    bench.settings = saved
    for proc in (server, client):
        assert pump_result(proc)[1] in ("done", "EOF")
    counts = {}
    for name in re.findall(r"^\d+\s+(\w+)\(", out.read_text(), re.M):
        counts[name] = counts.get(name, 0) + 1
    return counts


def upgrade_calls(bench, victim) -> list:
    """(system call, n): the n-th such call of the victim is made for the upgrade, or by it. At most six of a kind."""
    with_us, without = trace_calls(bench, victim, False), trace_calls(bench, victim, True)
    found = []
    for name in UPGRADE_CALLS:
        first, last = without.get(name, 0) + 1, with_us.get(name, 0)
        if name in ("sendto", "recvfrom", "setsockopt"):
            first = 1  # the program's own: there are fewer of them once the ring is used
        found += [(name, n) for n in range(first, min(last, first + 5) + 1)]
    return found


@neither_and_both
@pytest.mark.limit(180)
@pytest.mark.parametrize("victim", [CLIENT, SERVER], ids=["client-dies", "server-dies"])
def test_killed_at_each_system_call(bench, victim):
    """kill -9 at the entry of every system call that the upgrade makes."""
    calls = upgrade_calls(bench, victim)
    if bench.combo is Combo.BOTH:
        assert len(calls) > 10, f"no upgrade in the traced run?\n{calls}"
    else:
        calls = [("sendto", 3), ("recvfrom", 4)]
    bench.killed.add(victim)
    survivors = 0
    for name, n in calls:
        tracer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={n}"]
        survivors += kill_at(bench, victim, tracer, f"{name} number {n}")
    # The calls are picked by count, so some fall before the connection, where there is nobody to survive.
    assert survivors >= len(calls) // 3, f"only {survivors} of {len(calls)} kills fell into the life of the connection"
    bench.assert_ring(streams=1, min_bytes=1000, sides=[OTHER[victim]])


def kill_at(bench, victim, tracer, what) -> bool:
    """A pump pair whose `victim` is killed by its tracer. False: that happened before there was a connection."""
    count = len(bench.procs)
    server = bench.start(
        [bench.program("pump"), "server", *TRACED_PUMP], SERVER, name=f"server-{count}", tracer=tracer if victim is SERVER else ()
    )
    eventually(lambda: "PORT" in server.stdout() or not server.running(), what="the server")
    if "PORT" not in server.stdout():
        assert victim is SERVER, server.output()
        return False
    client = bench.start(
        [bench.program("pump"), "client", f"--port={server.port()}", *TRACED_PUMP], CLIENT, name=f"client-{count}",
        tracer=tracer if victim is CLIENT else (),
    )  # fmt: skip
    dead, survivor = (client, server) if victim is CLIENT else (server, client)
    dead.wait(20)
    if victim is CLIENT and "CONNECTED" not in client.stdout():
        server.send_signal(signal.SIGKILL)  # it would wait for a client for ever
        server.wait()
        return False
    if victim is SERVER and client.wait() != 0 and "CONNECTED" not in client.stdout():
        return False  # refused
    try:
        _, end = pump_result(survivor)
    except AssertionError as error:
        raise AssertionError(f"the survivor of a kill at {what}:\n{error}") from error
    # "done": it died after its last byte was on its way.
    assert end in ENDS or end == "done", f"{what}: {end}"
    return True


# (system call, error). Left out: calls that the library makes at load or that carry the program's own bytes over TCP as well (mmap,
# madvise, sendmsg, recvmsg); tests/unit/upgrade_test.cc makes those fail through the table of originals. The first error of a call is also tried on single calls, the others on all of them.
FAULTS = [
    ("memfd_create", "ENOMEM"), ("memfd_create", "EMFILE"), ("memfd_create", "ENOSYS"), ("memfd_create", "EPERM"),
    ("ftruncate", "ENOSPC"), ("ftruncate", "EFBIG"), ("pkey_alloc", "ENOSPC"),
    ("pkey_alloc", "ENOSYS"), ("pkey_mprotect", "ENOMEM"), ("socket", "EMFILE"), ("socket", "EAFNOSUPPORT"), ("socket", "ENOBUFS"),
    ("bind", "EADDRINUSE"), ("bind", "EACCES"), ("listen", "EADDRINUSE"), ("connect", "EACCES"), ("connect", "EAGAIN"),
    ("accept4", "EMFILE"), ("accept4", "ENOMEM"),
    ("eventfd2", "EMFILE"), ("eventfd2", "ENOMEM"), ("fcntl", "EMFILE"),
    ("fcntl", "EPERM"), ("getsockopt", "ENOPROTOOPT"), ("getrandom", "ENOSYS"), ("getsockname", "ENOBUFS"), ("dup3", "EMFILE"),
    ("madvise", "ENOMEM"), ("fstat", "EBADF"),
]  # fmt: skip

# Without these there is no channel, so there must have been no upgrade on the side where they fail.
ESSENTIAL = {CLIENT: {"memfd_create", "ftruncate"}, SERVER: set()}


class FaultRuns:
    """Runs one pair of programs again and again, each time with another system call of the `victim` failing."""

    def __init__(self, combo, victim, program, options):
        self.combo, self.victim, self.program, self.options = combo, victim, program, options
        self.tried = 0

    def _pair(self, bench, tracer):
        server = bench.start(
            [bench.program(self.program), "server", *self.options], SERVER, name="server", tracer=tracer if self.victim is SERVER else ()
        )
        client = bench.start(
            [bench.program(self.program), "client", f"--port={server.port()}", *self.options], CLIENT, name="client",
            tracer=tracer if self.victim is CLIENT else (),
        )  # fmt: skip
        bench.succeed(client)
        bench.succeed(server)

    def count(self, **settings) -> dict:
        """System call → how often the victim makes it when nothing fails."""
        bench = Bench(self.combo)
        try:
            bench.settings = settings
            out = bench.dir / "trace"
            self._pair(bench, ["strace", "-f", "-qq", "-o", out])
            names = re.findall(r"^\d+\s+(\w+)\(", out.read_text(), re.M)
            if not settings:
                bench.assert_ring(streams=1, min_bytes=1000)
        finally:
            bench.cleanup()
        return {name: names.count(name) for name in set(names)}

    def inject(self, name, error, when, must_fall_back=False):
        bench = Bench(self.combo)
        try:
            self._pair(bench, ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={when}"])
            stats = bench.stats(self.victim)
            assert stats.upgraded > 0 or sum(stats.plain.values()) > 0, f"not upgraded and no reason\n{stats}"
            assert not (must_fall_back and stats.upgraded), f"upgraded without it?\n{stats}"
            bench.assert_gates()
        except AssertionError as failure:
            raise AssertionError(f"{name} fails with {error} ({when}) at the {self.victim.value}: {failure}") from failure
        finally:
            bench.cleanup()
        self.tried += 1


@pytest.mark.no_ring
@neither_and_both
@pytest.mark.limit(180)
@pytest.mark.parametrize("victim", [CLIENT, SERVER], ids=["client", "server"])
def test_failing_system_calls(bench, victim):
    """Every system call of the upgrade fails: for ever from its first use on, and just once. Everything arrives all the same, and a
    stream that stays on TCP has a reason."""
    runs = FaultRuns(bench.combo, victim, "echo_threads", ["--connections=1", "--rounds=150", "--max-size=500"])
    with_us, without = runs.count(), runs.count(DISABLE=1)
    seen = set()
    for name, error in FAULTS:
        first, last = without.get(name, 0) + 1, with_us.get(name, 0)
        if last < first:
            continue
        runs.inject(name, error, f"{first}+", must_fall_back=name in ESSENTIAL[victim])
        if name not in seen:
            for n in range(first, min(last, first + 3) + 1):
                runs.inject(name, error, str(n))
        seen.add(name)
    if bench.combo is Combo.BOTH:
        assert runs.tried >= 10, f"no upgrade in the traced run?\n{with_us}\n{without}"


@pytest.mark.no_ring
@neither_and_both
@pytest.mark.limit(180)
@pytest.mark.parametrize("victim", [CLIENT, SERVER], ids=["client", "server"])
def test_failing_epoll_calls(bench, victim):
    """The same for what the library does to the program's epoll set, call by call."""
    runs = FaultRuns(bench.combo, victim, "echo_events", ["--wait=epoll-et", "--connections=1", "--bytes=60000", "--max-size=2000"])
    counts = [runs.count() for _ in range(5)]  # how soon the ends meet differs, and with it how many calls there are
    with_us = counts[0]
    # With epoll-et the program adds its descriptors first and removes one at its end; the calls between are the library's.
    own = 1 if victim is CLIENT else 2
    fewest = min(count.get("epoll_ctl", 0) for count in counts)
    for n in range(own + 1, min(fewest - 1, own + 6) + 1):
        runs.inject("epoll_ctl", "ENOSPC", str(n))
    for name, error in (("eventfd2", "EMFILE"), ("epoll_create1", "EMFILE"), ("memfd_create", "ENOMEM")):
        first = 2 if name == "epoll_create1" else 1
        if with_us.get(name, 0) >= first:
            runs.inject(name, error, f"{first}+")
    if bench.combo is Combo.BOTH:
        assert runs.tried >= 1, str(with_us)


# ---- stopped -------------------------------------------------------------------------------------------------------------


def test_stopped_and_continued(bench):
    """SIGSTOP for 5 s at the receiver, and at the sender of a second pair at the same time: all data arrives."""
    total = 30_000_000
    options = [f"--bytes={total}", "--delay-us=100"]
    first, second = start_pump(bench, (), (), options), start_pump(bench, (), (), options)
    time.sleep(0.15)
    stopped = [first[0], second[1]]
    for proc in stopped:
        assert proc.running(), "too fast: nothing was stopped in the middle"
        proc.send_signal(signal.SIGSTOP)
    time.sleep(5)
    for proc in stopped:
        proc.send_signal(signal.SIGCONT)
    for server, client in (first, second):
        warm = 40 * 100
        assert pump_result(client) == (total + warm, "done")
        assert pump_result(server) == (total + warm, "EOF")
    bench.assert_ring(streams=2, min_bytes=total, exact=True, conserved=True)


def test_stopped_server_in_echo(bench):
    """The same with an event loop that is stopped again and again."""
    server = bench.start([bench.program("echo_threads"), "server", "--connections=4", "--rounds=3000"], SERVER, name="server")
    options = ["--connections=4", "--rounds=3000", "--max-size=8000"]
    client = bench.start([bench.program("echo_threads"), "client", f"--port={server.port()}", *options], CLIENT, name="client")
    for i in range(12):
        proc = (server, client)[i % 2]
        time.sleep(0.03)
        proc.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        proc.send_signal(signal.SIGCONT)
    bench.succeed(client)
    bench.succeed(server)
    bench.assert_ring(streams=4, min_bytes=1_000_000, exact=True, conserved=True)


# ---- too few descriptors -------------------------------------------------------------------------------------------------


@pytest.mark.no_ring
@pytest.mark.parametrize("side,limit", [(CLIENT, 4), (SERVER, 5)], ids=["client", "server"])
def test_no_descriptors_left(bench, side, limit):
    """RLIMIT_NOFILE leaves room for the program's own descriptors only: TCP, and a reason is counted."""
    options = ["--connections=1", "--rounds=200", "--max-size=2000"]
    server = bench.start(
        [bench.program("echo_threads"), "server", *options], SERVER, name="server", nofile=limit if side is SERVER else None
    )
    client = bench.start(
        [bench.program("echo_threads"), "client", f"--port={server.port()}", *options], CLIENT, name="client",
        nofile=limit if side is CLIENT else None,
    )  # fmt: skip
    bench.succeed(client)
    bench.succeed(server)
    bench.assert_fell_back()


@pytest.mark.no_ring
@neither_and_both
@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
def test_few_descriptors_left(bench, side):
    """Every limit from "just enough" upwards, with two connections: it always works, whatever is upgraded."""
    options = ["--connections=2", "--rounds=100", "--max-size=2000"]
    for limit in range(6, 24):
        server = bench.start(
            [bench.program("echo_threads"), "server", *options], SERVER, name="server", nofile=limit if side is SERVER else None
        )
        client = bench.start(
            [bench.program("echo_threads"), "client", f"--port={server.port()}", *options], CLIENT, name="client",
            nofile=limit if side is CLIENT else None,
        )  # fmt: skip
        try:
            bench.succeed(client)
            bench.succeed(server)
        except AssertionError as error:
            raise AssertionError(f"with {limit} descriptors: {error}") from error
    bench.assert_gates()
    if bench.combo is Combo.BOTH:
        stats = bench.stats(side)
        assert stats.upgraded > 0, f"23 descriptors must be enough\n{stats}"


# ---- whole servers -------------------------------------------------------------------------------------------------------


def cpu_ticks(pid) -> int:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def load(nginx, *options) -> list:
    return [PYTHON, SCRIPTS / "http_load.py", f"--port={nginx.port}", "--path=/hello", "--body=hello\n", *options]


def test_clients_killed_under_load(bench, docroot):
    """wrk dies by SIGKILL in full flight, three times: nginx goes on, serves others, and is idle afterwards."""
    nginx = Nginx(bench, docroot.dir)
    bench.killed.add(CLIENT)
    for _ in range(3):
        wrk = bench.start(["wrk", "-t1", "-c32", "-d60s", nginx.url("f100k")], CLIENT, name="wrk")
        time.sleep(0.5)
        kill(bench, wrk, CLIENT)
        bench.run(load(nginx, "--connections=4", "--requests=100"), CLIENT)
    [worker] = nginx.worker_pids()
    eventually(lambda: fd_sockets(worker) <= 6, what="nginx closing the dead connections")
    before = cpu_ticks(worker)
    time.sleep(1)
    assert cpu_ticks(worker) - before <= 2, "nginx is busy with dead connections"
    nginx.stop()
    bench.assert_ring(streams=3 * 32, min_bytes=10_000_000, sides=[SERVER])


def fd_sockets(pid) -> int:
    """TCP sockets of a process (an idle nginx worker: its listener; the rest are its channel to the master)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as file:
            inodes |= {line.split()[9] for line in file.readlines()[1:]}
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
        count += bool(match and match.group(1) in inodes)
    return count


def test_worker_killed_under_load(bench, docroot):
    """An nginx worker dies by SIGKILL: its clients get an error, not a hang; the next worker is upgraded like the first."""
    nginx = Nginx(bench, docroot.dir)
    bench.killed.add(SERVER)
    client = bench.start(load(nginx, "--connections=8", "--until-eof"), CLIENT, name="load", stdin=subprocess.PIPE)
    time.sleep(0.7)
    [worker] = nginx.worker_pids()
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.7)
    client.stdin.close()
    client.wait()  # partial responses count as failed there; any verdict is right but a hang
    match = re.search(r"requests (\d+) retried (\d+) failed (\d+)", client.stdout())
    assert match and int(match.group(1)) > 1000, client.output()
    assert int(match.group(3)) <= 8, client.output()
    bench.run(load(nginx, "--connections=4", "--requests=200"), CLIENT)
    nginx.proc.stop(signal.SIGQUIT)
    bench.assert_ring(streams=12, min_bytes=100_000, sides=[CLIENT])
