# SPDX-License-Identifier: MIT
"""Starts, watches and ends the processes of the integration tests, and reads what libmpklink says about them.

A test gets a `Bench`. It starts processes on a *side* (client or server); the combination under test says which sides are
preloaded. Nothing may hang: every wait has a limit, and what does not come in time is reported with the stacks of all processes
and then killed. Bytes that arrive prove nothing about the ring, so every test ends with `bench.assert_ring(...)`.
"""

import collections
import contextlib
import enum
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid

REPO = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MPKLINK_BUILD", REPO / "build")).resolve()
SO = pathlib.Path(os.environ.get("MPKLINK_SO", BUILD / "preload" / "libmpklink.so")).resolve()
PROGRAMS = BUILD / "tests" / "programs"
SCRIPTS = REPO / "tests" / "programs"
PYTHON = "/usr/bin/python3"

# Other libraries before and after ours in LD_PRELOAD, separated by colons; scripts/sanitize.sh puts a sanitizer's runtime here.
PRELOAD_FIRST = [p for p in os.environ.get("MPKLINK_PRELOAD_FIRST", "").split(":") if p]
PRELOAD_LAST = [p for p in os.environ.get("MPKLINK_PRELOAD_LAST", "").split(":") if p]
SANITIZER_OPTIONS = {name: value for name, value in os.environ.items() if name.endswith("SAN_OPTIONS")}

WAIT_S = 30  # one process, unless the test knows better
RUN_ID = f"mpklink-test-{uuid.uuid4().hex}"  # in the environment of everything we start

STATS_KEYS = {
    "pid", "comm", "guard", "upgraded", "revoked", "plain", "ring_tx_bytes", "ring_rx_bytes", "ring_returned_bytes", "tcp_tx_bytes", "tcp_rx_bytes",
    "bells", "sleeps", "spin_hits", "gates", "gate_found_open",
}  # fmt: skip


class Side(enum.Enum):
    CLIENT = "client"
    SERVER = "server"


CLIENT, SERVER = Side.CLIENT, Side.SERVER


class Combo(enum.Enum):
    """Which ends of the connections run with libmpklink.so."""

    NEITHER = "neither"
    CLIENT = "client"
    SERVER = "server"
    BOTH = "both"

    def preloads(self, side: Side) -> bool:
        return self is Combo.BOTH or self.value == side.value


ALL_COMBOS = list(Combo)


class Hang(AssertionError):
    """Something did not happen in time."""


# ---- looking at processes ------------------------------------------------------------------------------------------------


def read_text(path) -> str:
    """A file of /proc, or a dash when it is gone."""
    try:
        return pathlib.Path(path).read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return "-"


def descendants(root: int = None) -> list:
    """The pids below `root` (this process), also the ones whose parent has ended (we are their subreaper)."""
    children = collections.defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = pathlib.Path(f"/proc/{entry}/stat").read_text(errors="replace")
                children[int(stat.rpartition(")")[2].split()[1])].append(int(entry))
    found, queue = [], [root or os.getpid()]
    while queue:
        below = children[queue.pop()]
        found += below
        queue += below
    return found


def is_zombie(pid: int) -> bool:
    return read_text(f"/proc/{pid}/stat").rpartition(")")[2].strip().startswith("Z")


def become_subreaper() -> None:
    """Orphans of the processes we start (old nginx workers, redis children) become ours instead of init's."""
    import ctypes

    PR_SET_CHILD_SUBREAPER = 36
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def stacks(pids) -> str:
    """What every thread of these processes is doing: kernel wait channel, system call and, with gdb, the program's own stack."""
    report = []
    for pid in pids:
        if is_zombie(pid):
            continue
        report.append(f"--- pid {pid}: {read_text(f'/proc/{pid}/cmdline')[:300]}")
        for task in sorted(os.listdir(f"/proc/{pid}/task")) if os.path.isdir(f"/proc/{pid}/task") else []:
            base = f"/proc/{pid}/task/{task}"
            state = re.search(r"^State:\s*(.*)$", read_text(f"{base}/status"), re.M)
            report.append(
                f"  thread {task} ({read_text(f'{base}/comm')}) state {state.group(1) if state else '-'}"
                f" wchan {read_text(f'{base}/wchan')} syscall {read_text(f'{base}/syscall')}"
            )
            report += ["    " + line for line in read_text(f"{base}/stack").splitlines()]
        if shutil.which("gdb"):
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                gdb = subprocess.run(
                    ["gdb", "-nx", "-batch", "-p", str(pid), "-ex", "thread apply all bt 20"],
                    env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
                    capture_output=True, text=True, errors="replace", timeout=20, stdin=subprocess.DEVNULL,
                )  # fmt: skip
                report += ["    " + line for line in gdb.stdout.splitlines() if re.match(r"#|Thread ", line)]
    if shutil.which("ss"):
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            tcp = subprocess.run(["ss", "-tanp"], capture_output=True, text=True, timeout=10).stdout
            report += ["--- TCP sockets"] + [line for line in tcp.splitlines() if "TIME-WAIT" not in line][:60]
    return "\n".join(report)


# ---- one process ---------------------------------------------------------------------------------------------------------


def ends(text: str, size: int = 3000) -> str:
    """The beginning, which often says why, and the end."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n[…]\n{text[-size:]}"


class Proc:
    """A process started by a test. Its output goes to files, so it never blocks on us."""

    def __init__(self, bench, name, popen, out_path, err_path):
        self.bench, self.name, self.popen, self.out_path, self.err_path = bench, name, popen, out_path, err_path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stdin(self):
        return self.popen.stdin

    def stdout(self) -> str:
        return self.out_path.read_text(errors="replace")

    def stderr(self) -> str:
        return self.err_path.read_text(errors="replace")

    def output(self) -> str:
        """Both, short enough for a failure message."""
        return f"[{self.name}] stdout:\n{ends(self.stdout())}\n[{self.name}] stderr:\n{ends(self.stderr())}"

    def running(self) -> bool:
        return self.popen.poll() is None

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """The exit code; a Hang with all stacks when it does not end in time."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            report = stacks(descendants())
            raise Hang(f"{self.name} (pid {self.pid}) did not end within {timeout_s} s\n{report}\n{self.output()}") from None

    def finish(self, code: int = 0, timeout_s: float = WAIT_S) -> str:
        """Waits for it to end with `code`; its standard output."""
        got = self.wait(timeout_s)
        assert got == code, f"{self.name} ended with {got}, not {code}\n{self.bench.all_output()}"
        return self.stdout()

    def send_signal(self, number: int) -> None:
        if self.running():
            os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM, code: int = 0, timeout_s: float = WAIT_S) -> None:
        """Asks it to end by a signal; it must still be alive and must end properly (or it writes no statistics)."""
        assert self.running(), f"{self.name} is gone already, with code {self.popen.returncode}\n{self.output()}"
        self.send_signal(number)
        self.finish(code, timeout_s)

    def wait_line(self, pattern: str, timeout_s: float = 10) -> "re.Match":
        """The first match of `pattern` in the standard output so far."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = not self.running()
            match = re.search(pattern, self.stdout(), re.M)
            if match:
                return match
            assert not ended, f"{self.name} ended ({self.popen.returncode}) before printing {pattern!r}\n{self.output()}"
            if time.monotonic() > deadline:
                raise Hang(f"{self.name} did not print {pattern!r}\n{stacks(descendants())}\n{self.output()}")
            time.sleep(0.005)

    def port(self) -> int:
        """The port that a program of tests/programs says it listens on."""
        return int(self.wait_line(r"^PORT (\d+)$").group(1))


# ---- statistics ----------------------------------------------------------------------------------------------------------


class Stats:
    """The statistics lines that the processes of one side have written, and their sums."""

    def __init__(self, lines):
        self.lines = lines
        self.plain = collections.Counter()
        for line in lines:
            self.plain.update(line["plain"])

    def sum(self, key: str) -> int:
        return sum(line[key] for line in self.lines)

    upgraded = property(lambda self: self.sum("upgraded"))
    revoked = property(lambda self: self.sum("revoked"))
    ring_tx = property(lambda self: self.sum("ring_tx_bytes"))
    ring_rx = property(lambda self: self.sum("ring_rx_bytes"))
    ring = property(lambda self: self.ring_tx + self.ring_rx)
    returned = property(lambda self: self.sum("ring_returned_bytes"))
    tcp = property(lambda self: self.sum("tcp_tx_bytes") + self.sum("tcp_rx_bytes"))

    def of(self, comm: str) -> "Stats":
        return Stats([line for line in self.lines if line["comm"] == comm])

    def __str__(self) -> str:
        return "\n".join(json.dumps(line) for line in self.lines) or "(no statistics at all)"


def parse_stats(text: str) -> Stats:
    lines = []
    for raw in text.splitlines():
        line = json.loads(raw)
        missing = STATS_KEYS - line.keys()
        assert not missing, f"statistics without {sorted(missing)}: {raw}"
        lines.append(line)
    return Stats(lines)


# ---- the bench -----------------------------------------------------------------------------------------------------------


class Bench:
    """One test's processes, directory and combination."""

    def __init__(self, combo: Combo):
        self.combo = combo
        # Not pytest's tmp_path: other users (www-data) must get in.
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mpklink-"))
        self.dir.chmod(0o755)
        self.procs = []
        self.settings = {}  # MPKLINK_* for every process of this test
        self.preload_first, self.preload_last = list(PRELOAD_FIRST), list(PRELOAD_LAST)
        self.killed = set()  # sides with a process that was killed and cannot report

    # -- starting and ending

    def stats_path(self, side: Side) -> pathlib.Path:
        return self.dir / f"stats-{side.value}.jsonl"

    def env_for(self, side: Side = None, **settings) -> dict:
        """The environment of a process of `side` (None: not an end of anything, never preloaded), with MPKLINK_<NAME> settings."""
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.dir),
            "LANG": "C.UTF-8",
            "MPKLINK_TEST_RUN": RUN_ID,
        }
        if side is not None and self.combo.preloads(side):
            assert SO.is_file(), f"{SO} is missing: build it, or set MPKLINK_BUILD"
            path = self.stats_path(side)
            if not path.exists():
                path.touch()
                path.chmod(0o666)  # workers of another user append to it
            env["LD_PRELOAD"] = ":".join(map(str, [*self.preload_first, SO, *self.preload_last]))
            env.update(SANITIZER_OPTIONS)
            env["MPKLINK_STATS"] = str(path)
            for name, value in {**self.settings, **settings}.items():
                env[f"MPKLINK_{name}"] = str(value)
        return env

    def start(self, argv, side: Side = None, *, name=None, settings=None, env=None, cwd=None, stdin=None, uid=None,
              nofile=None, out=None, tracer=()) -> Proc:  # fmt: skip
        """Starts argv on `side`. `tracer`: an strace command line; the environment is given to the traced program, not to strace."""
        name = name or f"{pathlib.Path(argv[0]).name}-{len(self.procs)}"
        full_env = {**self.env_for(side, **(settings or {})), **(env or {})}
        argv = [str(a) for a in argv]
        if nofile is not None:
            argv = ["prlimit", f"--nofile={nofile}", *argv]
        if tracer:
            extra = [x for k in list(full_env) if k.startswith(("LD_", "MPKLINK_")) for x in ("-E", f"{k}={full_env.pop(k)}")]
            argv = [*tracer, *extra, *argv]
            full_env["MPKLINK_TEST_RUN"] = RUN_ID
        out_path = pathlib.Path(out) if out else self.dir / f"{name}.out"
        err_path = self.dir / f"{name}.err"
        user = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        with open(out_path, "wb") as out_file, open(err_path, "wb") as err_file:
            popen = subprocess.Popen(
                argv, env=full_env, cwd=cwd or self.dir, stdout=out_file, stderr=err_file,
                stdin=stdin if stdin is not None else subprocess.DEVNULL, start_new_session=True, **user,
            )  # fmt: skip
        proc = Proc(self, name, popen, out_path, err_path)
        self.procs.append(proc)
        return proc

    def run(self, argv, side: Side = None, *, code=0, timeout_s=WAIT_S, **options) -> str:
        """start + finish: the standard output."""
        return self.start(argv, side, **options).finish(code, timeout_s)

    def program(self, name: str) -> str:
        path = PROGRAMS / name
        assert path.is_file(), f"{path} is missing: build it, or set MPKLINK_BUILD"
        return str(path)

    def succeed(self, proc: Proc, timeout_s: float = WAIT_S) -> str:
        """Waits for a program of tests/programs to end well."""
        text = proc.finish(0, timeout_s)
        assert text.splitlines()[-1:] == ["EXIT-SUCCESS"], f"{proc.name} did not say EXIT-SUCCESS\n{self.all_output()}"
        return text

    def run_pair(self, name: str, *options, both_options=(), timeout_s=WAIT_S, settings=None, server_name=None) -> None:
        """`NAME server` and `NAME client` against each other until both succeed."""
        server = self.start([self.program(server_name or name), "server", *options], SERVER, settings=settings, name="server")
        client = self.start(
            [self.program(name), "client", f"--port={server.port()}", *options], CLIENT, settings=settings, name="client"
        )
        # Whichever fails first says why; the other one would only hang.
        deadline = time.monotonic() + timeout_s
        while server.running() or client.running():
            for proc in (server, client):
                assert proc.running() or proc.popen.returncode == 0, f"{proc.name} ended with {proc.popen.returncode}\n{self.all_output()}"
            if time.monotonic() > deadline:
                raise Hang(f"{name} {options} did not end\n{stacks(descendants())}\n{self.all_output()}")
            time.sleep(0.005)
        self.succeed(server)
        self.succeed(client)

    def wait_for_orphans(self) -> None:
        """Until the daemons that the programs of this test left behind have ended, and have written their statistics."""
        eventually(lambda: all(is_zombie(pid) for pid in descendants()), what="the end of all daemons")

    def all_output(self) -> str:
        return "\n".join(p.output() for p in self.procs[-6:])

    def cleanup(self) -> list:
        """Kills what is left of this test's processes; says what it was."""
        left = [pid for pid in descendants() if not is_zombie(pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for proc in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                proc.popen.wait(5)
            if proc.popen.stdin:
                with contextlib.suppress(OSError):
                    proc.popen.stdin.close()
        reap_orphans()
        shutil.rmtree(self.dir, ignore_errors=True)
        return left

    # -- judging

    def stats(self, side: Side) -> Stats:
        path = self.stats_path(side)
        return parse_stats(path.read_text() if path.exists() else "")

    def sides(self) -> list:
        return [side for side in Side if self.combo.preloads(side)]

    def assert_gates(self) -> None:
        """No process has ever found the gate open on entry; and every preloaded side has reported."""
        for side in self.sides():
            stats = self.stats(side)
            if not self.stats_path(side).exists():
                continue  # no process of this side was started
            assert stats.lines or side in self.killed, f"the {side.value} side was preloaded but wrote no statistics"
            assert stats.sum("gate_found_open") == 0, f"the gate was found open on the {side.value} side\n{stats}"
            wanted = self.settings.get("GUARD")
            if wanted in ("mprotect", "pkey", "off"):
                wrong = [line for line in stats.lines if line["upgraded"] and line["guard"] != wanted]
                assert not wrong, f"guard {wanted} was asked for\n{wrong}"

    def assert_not_used(self, side: Side) -> None:
        stats = self.stats(side)
        assert stats.lines or side in self.killed, f"the {side.value} side was preloaded but wrote no statistics"
        assert stats.upgraded == 0, f"{stats.upgraded} streams upgraded on the {side.value} side, none was possible\n{stats}"
        assert stats.ring == 0, f"{stats.ring} bytes over a ring on the {side.value} side, none was possible\n{stats}"

    def assert_ring_used(self, side: Side, streams=1, min_bytes=1000, exact=False) -> None:
        stats = self.stats(side)
        assert stats.lines, f"the {side.value} side was preloaded but wrote no statistics"
        if SANITIZER_OPTIONS:  # slow: an end may give up before the other one answers, and such a stream stays on TCP
            streams, min_bytes, exact = max(1, streams // 2), min(min_bytes, 1000), False
        enough = stats.upgraded == streams if exact else stats.upgraded >= streams
        assert enough, (
            f"{stats.upgraded} streams upgraded on the {side.value} side, want {'exactly' if exact else 'at least'} {streams}\n{stats}"
        )
        # What an end puts into a ring and its peer has not read when it finishes comes back, and goes over TCP after all.
        returned = sum(self.stats(other).returned for other in Side if self.combo.preloads(other))
        assert stats.ring + returned >= min_bytes, f"{stats.ring} + {returned} bytes over the ring on the {side.value} side, want {min_bytes}\n{stats}"

    def assert_ring(self, streams=1, min_bytes=1000, *, exact=False, conserved=False, sides=tuple(Side)) -> None:
        """The verdict of every test: used by both ends when both are preloaded (at least `streams` streams and `min_bytes` bytes in and
        out together), by nobody otherwise. `conserved`: what one end put into the ring, the other took out (clean ends only)."""
        if self.combo is Combo.BOTH:
            for side in sides:
                self.assert_ring_used(side, streams, min_bytes, exact)
            if conserved:
                client, server = self.stats(CLIENT), self.stats(SERVER)
                if len(sides) == 1:
                    client = server = self.stats(sides[0])
                assert client.ring_tx == server.ring_rx, f"client → server lost or made up bytes\n{client}\n{server}"
                assert server.ring_tx == client.ring_rx, f"server → client lost or made up bytes\n{client}\n{server}"
        else:
            for side in self.sides():
                self.assert_not_used(side)
        self.assert_gates()

    def assert_revoked(self) -> None:
        """At least one end says that a stream went back to TCP (the other one may be another program by now)."""
        if self.combo is Combo.BOTH:
            revoked = {side.value: self.stats(side).revoked for side in Side}
            assert sum(revoked.values()) >= 1, f"nothing was revoked: {revoked}\n{self.stats(CLIENT)}\n{self.stats(SERVER)}"

    def assert_ring_at_most(self, max_bytes: int) -> None:
        """What came after some moment went over TCP."""
        for side in self.sides():
            stats = self.stats(side)
            assert stats.ring <= max_bytes, f"{stats.ring} bytes over the ring on the {side.value} side, want at most {max_bytes}\n{stats}"

    def assert_fell_back(self) -> None:
        """Everything went over TCP although both ends were preloaded, and the statistics of at least one side say why."""
        for side in self.sides():
            self.assert_not_used(side)
        reasons = [self.stats(side).plain for side in self.sides()]
        assert not reasons or sum(sum(r.values()) for r in reasons) > 0, f"no reason was counted\n{self.stats(CLIENT)}\n{self.stats(SERVER)}"
        self.assert_gates()


def reap_orphans() -> None:
    """Collects orphans that were given to us."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


# ---- small helpers -------------------------------------------------------------------------------------------------------


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def wait_for_port(port: int, proc: Proc, host: str = "127.0.0.1", timeout_s: float = 15) -> None:
    """Until `proc` listens. Looks into /proc/net/tcp: a trial connection would be one more stream to count."""
    needle = f":{port:04X}"
    deadline = time.monotonic() + timeout_s
    while True:
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in read_text(table).splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(needle) and fields[3] == "0A":
                    return
        assert proc.running(), f"{proc.name} ended before it listened\n{proc.output()}"
        if time.monotonic() > deadline:
            raise Hang(f"{proc.name} does not listen on {port}\n{stacks(descendants())}\n{proc.output()}")
        time.sleep(0.01)


def sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_file(path: pathlib.Path, size: int) -> None:
    """A file of incompressible bytes, the same every time."""
    block = hashlib.shake_256(path.name.encode()).digest(1 << 20)
    with open(path, "wb") as file:
        for i in range(size >> 20):
            file.write(i.to_bytes(8, "little") + block[8:])
        file.write(block[: size & ((1 << 20) - 1)])


def eventually(condition, timeout_s: float = 10, what: str = "the condition"):
    """The first true value of condition(); a Hang when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Hang(f"{what} did not come true within {timeout_s} s\n{stacks(descendants())}")
        time.sleep(0.01)
