# SPDX-License-Identifier: MIT
"""What the library may leave in a process: no dependency, no thread, no low descriptor, no work while nothing happens."""

import os
import pathlib
import re
import statistics
import subprocess
import time

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, SO, Combo, eventually
from servers import Nginx

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")
only_both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
neither_and_both = pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)

GAP = 64  # a descriptor of ours is at least so far above the program's


class IdlePair:
    """Two processes of tests/programs/idle.cc asleep on upgraded streams."""

    def __init__(self, bench, wait="poll", connections=1):
        self.bench = bench
        options = [f"--wait={wait}", f"--connections={connections}"]
        self.server = bench.start([bench.program("idle"), "server", *options], SERVER, name=f"server-{wait}")
        self.client = bench.start(
            [bench.program("idle"), "client", f"--port={self.server.port()}", *options], CLIENT, name=f"client-{wait}", stdin=subprocess.PIPE
        )
        self.procs = (self.server, self.client)
        for proc in self.procs:
            proc.wait_line("^IDLE$")
        time.sleep(0.3)  # asleep, and any bounded spinning over

    def end(self):
        self.client.stdin.close()
        for proc in self.procs:
            self.bench.succeed(proc)


def fds(pid) -> dict:
    """Descriptor → what it is."""
    found = {}
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        found[int(entry.name)] = os.readlink(entry)
    return found


def cpu_ticks(pid) -> int:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def context_switches(pid) -> int:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return sum(int(n) for n in re.findall(r"ctxt_switches:\s*(\d+)", text))


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
@pytest.mark.no_ring
class TestTheLibraryFile:
    def test_needs_libc_only(self, bench):
        bench.env_for(SERVER)  # complains when the library is not there
        text = subprocess.run(["readelf", "-d", SO], capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
        assert needed == {"libc.so.6"}, needed
        assert "TEXTREL" not in text and "RUNPATH" not in text and "RPATH" not in text
        assert re.search(r"BIND_NOW|FLAGS_1.*NOW", text)

    def test_opens_the_key_in_two_places(self, bench):
        """Each WRPKRU is one more for an attacker to jump to: one in Guard::open, one in Guard::close, and no other way to load PKRU."""
        bench.env_for(SERVER)
        text = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", SO], capture_output=True, text=True, check=True).stdout
        where = []
        function = None
        for line in text.splitlines():
            if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
                function = header.group(1)
            elif re.search(r"\twrpkru\b", line):
                where.append(function)
            assert not re.search(r"\txrstors?(64)?\b", line), f"{line} in {function}"
        close, open_ = sorted(where)  # exactly two
        assert close.startswith("mpklink::Guard::close(") and open_.startswith("mpklink::Guard::open("), where
        # The same by their bytes, at any offset: an instruction that begins inside of another can be jumped to as well.
        assert self.code().count(b"\x0f\x01\xef") == 2

    @staticmethod
    def code() -> bytes:
        """The executable segment."""
        text = subprocess.run(["readelf", "-lW", SO], capture_output=True, text=True, check=True).stdout
        offset, size = re.search(r"LOAD\s+(0x\w+)\s+0x\w+\s+0x\w+\s+(0x\w+)\s+0x\w+\s+R E", text).groups()
        return SO.read_bytes()[int(offset, 16) :][: int(size, 16)]

    def test_is_small(self, bench):
        bench.env_for(SERVER)
        stripped = bench.dir / "stripped.so"
        subprocess.run(["strip", "-o", stripped, SO], check=True)
        assert stripped.stat().st_size <= 250_000

    def test_has_no_cxx_names(self, bench):
        """No C++ runtime symbol leaks out, nor comes in from the program."""
        bench.env_for(SERVER)
        text = subprocess.run(["nm", "-D", SO], capture_output=True, text=True, check=True).stdout
        names = [line.split()[-1] for line in text.splitlines()]
        assert not [n for n in names if n.startswith("_Z")], names
        assert " u " not in text, "unique symbols"
        wanted = {name.split("@")[0] for name in names}
        assert not wanted & {"malloc", "calloc", "realloc", "free"}, "it allocates, if only in a constructor of the C++ runtime"


@neither_and_both
def test_no_thread_and_no_low_descriptor(bench):
    pair = IdlePair(bench, connections=3)
    for proc in pair.procs:
        assert os.listdir(f"/proc/{proc.pid}/task") == [str(proc.pid)], "a helper thread"
        # 0–2, then a listener at the server, the streams; the next open() gets the number after that.
        own = 3 + (1 if proc is pair.server else 0) + 3
        assert proc.wait_line(r"^FD (\d+)$").group(1) == str(own)
        found = fds(proc.pid)
        assert set(range(own)) <= set(found)
        ours = {fd: what for fd, what in found.items() if fd >= own}
        if bench.combo is Combo.NEITHER:
            assert not ours
        else:
            assert all(fd >= own + GAP for fd in ours), ours
            flags = [pathlib.Path(f"/proc/{proc.pid}/fdinfo/{fd}").read_text() for fd in ours]
            assert all(int(re.search(r"flags:\s*(\d+)", f).group(1), 8) & os.O_CLOEXEC for f in flags), ours
            memfds = [w for w in ours.values() if "memfd" in w]
            assert len(memfds) == 1 and "mpklink-status" in memfds[0], f"memfds of rings are closed after mmap\n{ours}"
            # A few per pair of processes and poller, not one per stream.
            assert len(ours) <= 12, ours
    pair.end()
    bench.assert_ring(streams=3, min_bytes=10_000, exact=True, conserved=True)


@neither_and_both
def test_idle_costs_nothing(bench):
    """Upgraded streams on which nothing happens: no CPU time and not one wake-up in 3 s, however the program waits."""
    waits = {"recv": 1, "poll": 20, "select": 20, "epoll": 20, "epoll-et": 20}
    pairs = {wait: IdlePair(bench, wait, connections) for wait, connections in waits.items()}
    procs = [(f"{p.name} in {wait}", p.pid) for wait, pair in pairs.items() for p in pair.procs]
    before = {name: (cpu_ticks(pid), context_switches(pid)) for name, pid in procs}
    time.sleep(3)
    after = {name: (cpu_ticks(pid), context_switches(pid)) for name, pid in procs}
    busy = {name: (before[name], after[name]) for name, _ in procs if before[name] != after[name]}
    assert not busy, f"idle processes ran (ticks, switches before and after): {busy}"
    for pair in pairs.values():
        pair.end()
    streams = sum(waits.values())
    bench.assert_ring(streams=streams, min_bytes=streams * 5000, exact=True, conserved=True)


@neither_and_both
def test_idle_makes_no_system_calls(bench):
    """The same seen with strace: attached for 3 s, it sees no call."""
    pair = IdlePair(bench, "epoll", connections=20)
    traces = []
    for proc in pair.procs:
        out = bench.dir / f"strace-{proc.name}"
        traces.append((bench.start(["strace", "-f", "-c", "-o", out, "-p", str(proc.pid)], name=f"strace-{proc.name}"), out, proc))
    for tracer, _, proc in traces:
        traced = lambda p=proc, t=tracer: f"TracerPid:\t{t.pid}\n" in pathlib.Path(f"/proc/{p.pid}/status").read_text()
        eventually(traced, what="strace attached")
    time.sleep(0.2)
    time.sleep(3)
    for tracer, out, proc in traces:
        tracer.send_signal(2)
        tracer.wait()
        text = out.read_text()
        # Attaching interrupts the call it sleeps in, which is then made again: a call or two for that.
        calls = [(m.group(2), int(m.group(1))) for m in re.finditer(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", text, re.M)]
        calls = [(name, n) for name, n in calls if name not in ("total", "restart_syscall")]
        assert sum(n for _, n in calls) <= 4, f"{proc.name} was busy\n{text}"
        assert proc.running()
    pair.end()
    bench.assert_ring(streams=20, min_bytes=10_000, exact=True, conserved=True)


@neither_and_both
def test_idle_nginx(bench, docroot):
    """nginx with idle upgraded keep-alive connections does not run either."""
    nginx = Nginx(bench, docroot.dir)
    client = bench.start([PYTHON, SCRIPTS / "http_hold.py", nginx.port, 10], CLIENT, stdin=subprocess.PIPE, name="client")
    client.wait_line("^HOLDING$")
    [worker] = nginx.worker_pids()
    time.sleep(0.3)
    before = cpu_ticks(worker), context_switches(worker)
    time.sleep(3)
    assert (cpu_ticks(worker), context_switches(worker)) == before
    client.stdin.close()
    client.finish()
    nginx.stop()
    bench.assert_ring(streams=10, min_bytes=10_000, exact=True, conserved=True)


@needs_root
@neither_and_both
def test_proc_not_mounted(bench):
    """An empty /proc, as in some containers and sandboxes: nothing in the design needs it, so the ring is used."""
    options = "--connections=4 --rounds=100"
    prog = bench.program("echo_threads")
    script = """
        mount -t tmpfs none /proc || exit 99
        test ! -e /proc/self || exit 98
        "$1" server $2 & server=$!
        until port=$(sed -n 's/^PORT //p' "$3") && test -n "$port"; do sleep 0.05; done
        LD_PRELOAD=$CLIENT_PRELOAD MPKLINK_STATS=$CLIENT_STATS "$1" client --port=$port $2 || exit 1
        wait $server
    """
    client = bench.env_for(CLIENT)
    out = bench.dir / "hidden.out"
    bench.run(
        ["unshare", "-m", "--propagation", "private", "/bin/bash", "-c", script, "bash", prog, options, out], SERVER, name="hidden",
        env={"CLIENT_PRELOAD": client.get("LD_PRELOAD", ""), "CLIENT_STATS": client.get("MPKLINK_STATS", "")},
    )  # fmt: skip
    assert out.read_text().count("EXIT-SUCCESS") == 2, out.read_text()
    bench.assert_ring(streams=4, min_bytes=100_000, exact=True, conserved=True)


@only_both
@pytest.mark.parametrize(
    "name,value",
    [("GUARD", "bananas"), ("WARMUP", "soon"), ("WARMUP", "-1"), ("SPIN_US", "fast"), ("RING_KIB", "0"), ("RING_KIB", "99999999999999999999"),
     ("RING_KIB", "1x"), ("PEERS", "everybody"), ("LOG", "loud"), ("GUARD", ""), ("PROFILE", "turbo"), ("PORTS", "all of them")],
)  # fmt: skip
def test_unknown_value(bench, name, value):
    """A typo in a setting is one line on stderr; the default is used and the service works."""
    options = ["--connections=2", "--rounds=100", "--max-size=1000"]
    server = bench.start([bench.program("echo_threads"), "server", *options], SERVER, settings={name: value}, name="server")
    client = bench.start([bench.program("echo_threads"), "client", f"--port={server.port()}", *options], CLIENT, name="client")
    bench.succeed(client)
    bench.succeed(server)
    lines = server.stderr().splitlines()
    if value == "":
        assert len(lines) <= 1, lines  # an empty value may count as unset
    else:
        assert len(lines) == 1 and f"MPKLINK_{name}" in lines[0], lines
    assert client.stderr() == ""
    bench.assert_ring(streams=2, min_bytes=10_000, exact=True, conserved=True)


@only_both
def test_silent_by_default(bench):
    """Nothing on stdout or stderr, and no file of ours anywhere."""
    shm = set(os.listdir("/dev/shm"))
    server = bench.start([bench.program("echo_threads"), "server", "--connections=2"], SERVER, name="server")
    client = bench.start([bench.program("echo_threads"), "client", f"--port={server.port()}", "--connections=2"], CLIENT, name="client")
    bench.succeed(client)
    bench.succeed(server)
    for proc in (server, client):
        assert proc.stderr() == ""
        assert [line for line in proc.stdout().splitlines() if not line.startswith("PORT ")] == ["EXIT-SUCCESS"]
    assert set(os.listdir("/dev/shm")) <= shm
    assert "mpklink/" not in pathlib.Path("/proc/net/unix").read_text()
    bench.assert_ring(streams=2, min_bytes=100_000, exact=True, conserved=True)


@pytest.mark.slow
@pytest.mark.no_ring
@only_both
def test_start_cost(bench):
    """Issue 2: `LD_PRELOAD=… true` costs under 0.5 ms over plain `true` (median of 200, interleaved). A measurement: run it alone."""
    plain = bench.env_for(None)
    loaded = {**plain, "LD_PRELOAD": str(SO)}
    assert SO.is_file()
    times = {False: [], True: []}
    for _ in range(200):
        for preload in (False, True):
            start = time.perf_counter()
            subprocess.run(["/bin/true"], env=loaded if preload else plain, check=True)
            times[preload].append(time.perf_counter() - start)
    cost_ms = (statistics.median(times[True]) - statistics.median(times[False])) * 1000
    print(f"preloading costs {cost_ms:.3f} ms")
    assert cost_ms < 0.5
