# SPDX-License-Identifier: MIT
"""The run of soak.sh.

Of each server there are two: the *steady* one lives through, is stopped and limited but never killed, and is looked at for leaks; the *victim* is
killed or reloaded. Of each kind of client one lives through and one is killed or ends soon. An error counts as a loss unless something was
done to that connection's server at that time (`excuse`). What the clients check and report is in tests/programs/soak_*.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import sys
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests" / "integration"))

import harness  # noqa: E402
from harness import CLIENT, PYTHON, SCRIPTS, SERVER, eventually, free_port, wait_for_port  # noqa: E402
from servers import Nginx  # noqa: E402

PERIOD = 1_048_573  # of tests/programs/soak_lib.py
KINDS = {  # server-client: (the client's program, its way)
    "nginx-python": ("python", "http"), "redis-python": ("python", "redis"), "python-python": ("python", "stream"),
    "node-python": ("python", "stream"), "python-node": ("node", None), "node-node": ("node", None),
}  # fmt: skip
CONNECTIONS = 3  # of a client at a time
WARM_S, SWEEP_S, MORTAL_S = 6, 2.5, 8
# Beyond what was there when the process had served its first clients: pairs of peers that died last are collected with the next new one.
# Of descriptors each such peer has left its control channel and the bells of its threads.
SLACK = {"descriptors": 32, "memfds": 0, "channels": 0, "boards": 4, "shared KiB": 600, "private KiB": 48 << 10}
STACKS_MAX = 2
ENDS = {"ECONNRESET", "EPIPE", "EOF", "connect ECONNREFUSED", "connect ECONNRESET"}


def parse():
    parser = argparse.ArgumentParser(prog="soak.sh")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1000 % 1_000_000)
    parser.add_argument("--hang-seconds", type=float, default=5)
    parser.add_argument("--break", dest="broken", choices=["byte", "drop", "hang", "leak", "plain"])
    parser.add_argument("--keep", action="store_true")
    return parser.parse_args()


def first_free_number(pid):
    taken = {int(n) for n in os.listdir(f"/proc/{pid}/fd")}
    return next(n for n in range(1 << 20) if n not in taken)


def family(pid):
    return [pid, *harness.descendants(pid)]


def overlap(a, b, intervals):
    return sum(max(0, min(b, end) - max(a, begin)) for begin, end in intervals)


def holdings(pid):
    """What a process has, by the names of SLACK."""
    names = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    maps, status = harness.read_text(f"/proc/{pid}/maps"), harness.read_text(f"/proc/{pid}/status")
    rss = lambda key: int(re.search(rf"^{key}:\s*(\d+) kB", status, re.M).group(1))
    return {
        "descriptors": len(names), "memfds": sum("/memfd:mpklink" in n and "-status" not in n for n in names), "channels": maps.count("/memfd:mpklink-channel"),
        "boards": maps.count("/memfd:mpklink-board"), "shared KiB": rss("RssShmem"), "private KiB": rss("RssAnon"),
    }  # fmt: skip


class Server:
    """One of the eight servers: started, killed and started again on the same port."""

    def __init__(self, soak, kind, steady):
        self.soak, self.kind, self.steady = soak, kind, steady
        self.name = f"{kind}-{'steady' if steady else 'victim'}"
        self.port, self.starts = free_port(), 0
        self.down = []    # [begin, end) of what was done to it and ends connections
        self.short = []   # … when descriptors were short
        self.start()

    def start(self):
        soak, bench, name = self.soak, self.soak.bench, f"{self.name}-{self.starts}"
        settings = {"STATS": soak.stats_file(self.name), **({} if self.steady else soak.some_settings())}
        self.starts += 1
        self.nginx = None
        if self.kind == "nginx":
            # Workers of another user cannot be limited from here without CAP_SYS_RESOURCE.
            user = "root" if self.steady and os.getuid() == 0 else None
            self.nginx = Nginx(bench, soak.root, workers=2, settings=settings, name=name, user=user)
            self.proc, self.port = self.nginx.proc, self.nginx.port
            return
        argv = {
            "redis": ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--dir", bench.dir, "--save", ""],
            "python": [PYTHON, SCRIPTS / "soak_server.py", soak.table, self.port, soak.args.seed + self.starts],
            "node": ["node", SCRIPTS / "soak_peer.js", "server", soak.table, self.port],
        }[self.kind]
        env = {"SOAK_BREAK": soak.args.broken or ""} if self.kind == "python" else {}
        self.proc = bench.start(argv, SERVER, name=name, settings=settings, env=env)

    def serving(self):
        """The processes that have connections."""
        return self.nginx.worker_pids() if self.nginx else [self.proc.pid]


class ClientProc:
    def __init__(self, soak, kind, seconds, targets, seed, settings):
        server_kind = kind.split("-")[0]
        program, way = KINDS[kind]
        self.kind, self.server_kind, self.seconds, self.killed, self.read = kind, server_kind, seconds, None, 0
        named = [f"{s.name}={s.port}" for s in soak.servers.values() if s.kind == server_kind and (s.steady or targets == "all")]
        options = [soak.table, *([way] if way else []), seed, CONNECTIONS, seconds, *named]
        argv = [PYTHON, SCRIPTS / "soak_client.py"] if program == "python" else ["node", SCRIPTS / "soak_peer.js", "client"]
        settings = {**settings, "STATS": soak.stats_file(kind), **({"DISABLE": 1} if soak.args.broken == "plain" else {})}
        self.proc = soak.bench.start(
            [*argv, *options], CLIENT, name=f"{kind}-{len(soak.bench.procs)}", settings=settings, env={"SOAK_HANG_S": str(soak.args.hang_seconds)}
        )

    def new_lines(self):
        with open(self.proc.out_path) as file:
            file.seek(self.read)
            text = file.read()
        text = text[: text.rfind("\n") + 1]
        self.read += len(text.encode())
        return text.splitlines()


class Soak:
    def __init__(self, args):
        self.args, self.rng = args, random.Random(args.seed)
        self.bench = harness.Bench(harness.Combo.BOTH)
        self.root = self.bench.dir / "root"
        self.root.mkdir()
        self.table = self.root / "table"
        self.table.write_bytes(hashlib.shake_256(b"soak").digest(PERIOD))
        self.injected = collections.Counter()
        self.reports, self.losses, self.hangs = [], [], {}
        self.clients, self.resting = [], collections.Counter()
        self.looking = []
        self.paused, self.pauses, self.limited = {}, collections.defaultdict(list), {}
        self.servers = {}
        for kind in ("nginx", "redis", "python", "node"):
            for steady in (True, False):
                server = Server(self, kind, steady)
                self.servers[server.name] = server
        for server in self.servers.values():
            wait_for_port(server.port, server.proc, timeout_s=60)
        self.steady_clients = [self.add_client(kind, 0, "all", {}) for kind in KINDS]

    def stats_file(self, name):
        path = self.bench.dir / f"stats-of-{name}.jsonl"
        if not path.exists():
            path.touch()
            path.chmod(0o666)
        return path

    def some_settings(self):
        settings = {"RING_KIB": self.rng.choice([4, 64, 256, 256]), "WARMUP": self.rng.choice([0, 2, None])}
        return {name: value for name, value in settings.items() if value is not None}

    def add_client(self, kind, seconds, targets, settings):
        client = ClientProc(self, kind, seconds, targets, self.rng.randrange(1 << 30), settings)
        self.clients.append(client)
        return client

    # -- what is done to them

    def kill_client(self):
        mortal = [c for c in self.clients if c.seconds and c.proc.running()]
        if mortal:
            client = self.rng.choice(mortal)
            client.killed = time.monotonic()
            client.proc.send_signal(signal.SIGKILL)
            self.injected["client killed"] += 1

    def kill_server(self):
        server = self.servers[self.rng.choice(["redis-victim", "python-victim", "node-victim"])]
        if server.name in self.paused:
            return
        if not server.proc.running():
            return  # it has been counted as a loss
        begin = time.monotonic()
        server.proc.send_signal(signal.SIGKILL)
        server.proc.wait()
        server.start()
        wait_for_port(server.port, server.proc, timeout_s=60)
        server.down.append((begin, time.monotonic()))
        self.injected[f"{server.kind} killed"] += 1

    def kill_worker(self):
        server = self.servers["nginx-victim"]
        workers = server.nginx.worker_pids()
        if workers:
            os.kill(self.rng.choice(workers), signal.SIGKILL)
            server.down.append((time.monotonic() - 0.1, time.monotonic() + 0.5))
            self.injected["nginx worker killed"] += 1

    def reload(self):
        self.servers["nginx-victim"].nginx.reload()
        self.injected["nginx reloaded"] += 1

    def pause(self):
        """SIGSTOP, until `resume` is due."""
        if len(self.paused) >= 2:
            return
        named = [(s.name, pid) for s in self.servers.values() for pid in s.serving()]
        named += [(c.kind, c.proc.pid) for c in self.clients if c.proc.running()]
        name, pid = self.rng.choice(named)
        if name in self.paused:
            return
        if self.signal(pid, signal.SIGSTOP):
            self.paused[name] = (pid, time.monotonic(), time.monotonic() + self.rng.choice([0.02, 0.1, 0.7, 1.5]))
            self.injected["stopped and continued"] += 1

    def resume(self, all_of_them=False):
        for name, (pid, begin, until) in list(self.paused.items()):
            if all_of_them or time.monotonic() >= until:
                self.signal(pid, signal.SIGCONT)
                self.pauses[name].append((begin, time.monotonic()))
                del self.paused[name]

    def limit(self):
        """RLIMIT_NOFILE: as many numbers as there are, and a few."""
        named = [(s, pid) for s in self.servers.values() for pid in s.serving()] + [(None, c.proc.pid) for c in self.steady_clients]
        server, pid = self.rng.choice(named)
        if pid in self.limited or not os.path.exists(f"/proc/{pid}"):
            return
        try:
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free_number(pid) + self.rng.randrange(7), hard))
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            return
        now = time.monotonic()
        self.limited[pid] = (server, now, now + self.rng.uniform(0.3, 2), (soft, hard))
        self.injected["descriptors limited"] += 1

    def unlimit(self, all_of_them=False):
        for pid, (server, begin, until, limits) in list(self.limited.items()):
            if all_of_them or time.monotonic() >= until:
                try:
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
                except ProcessLookupError:
                    pass
                if server:
                    server.short.append((begin, time.monotonic()))
                del self.limited[pid]

    @staticmethod
    def signal(pid, number):
        try:
            os.kill(pid, number)
            return True
        except ProcessLookupError:
            return False

    # -- what comes of it

    def read_reports(self):
        for client in self.clients:
            for line in client.new_lines():
                report = json.loads(line)
                if "end" in report:
                    self.reports.append((client, report))
                elif "wrong" in report:
                    self.loss(f"{client.proc.name}: {report['wrong']}")
                elif "resting" in report:
                    self.resting[client.proc.name] += 1
                elif "hang" in report:
                    self.note_hang(client, report)
        for client in list(self.clients):
            if not client.proc.running() and client not in self.steady_clients and not client.new_lines():
                self.check_end(client)
                self.clients.remove(client)

    def note_hang(self, client, report):
        stopped = [i for name, intervals in self.pauses.items() if name == client.kind or name.startswith(client.server_kind) for i in intervals]
        stopped += self.looking
        stopped += [(begin, report["t1"]) for name, (_, begin, _) in self.paused.items() if name == client.kind or name.startswith(client.server_kind)]
        if report["t1"] - report["t0"] - overlap(report["t0"], report["t1"], stopped) <= self.args.hang_seconds:
            return
        key = (report["pid"], report["t0"])
        if key not in self.hangs:
            self.hangs[key] = report
            self.loss(f"{client.proc.name}: {report['hang']} hung, pid {report['pid']}\n{self.look_at(client, report['pid'])}")
        elif report.get("ended"):
            print(f"  … and returned after {report['t1'] - report['t0']:.1f} s", flush=True)
        self.hangs[key] = report

    def look_at(self, client, pid):
        """The stacks of whoever has to do with it, of the first hangs. Everybody waits meanwhile."""
        if len(self.looking) >= STACKS_MAX:
            return ""
        self.resume(all_of_them=True)
        begin = time.monotonic()
        servers = [p for s in self.servers.values() if s.kind == client.server_kind for p in family(s.proc.pid)]
        text = harness.stacks([pid, *servers])
        self.looking.append((begin, time.monotonic() + self.args.hang_seconds))
        return text

    def check_end(self, client):
        code = client.proc.popen.returncode
        if code != (-signal.SIGKILL if client.killed else 0) and not (client.killed and code == 0):
            self.loss(f"{client.proc.name} ended with {code}\n{client.proc.output()}")
        elif client.proc.stderr().strip():
            self.loss(f"{client.proc.name} complained\n{client.proc.output()}")

    def loss(self, what):
        self.losses.append(what)
        print(f"LOSS at {time.monotonic() - self.began:.1f} s: {what}", flush=True)

    def excuse(self, report):
        """Why a connection may have ended as it did, or None."""
        server = self.servers[report["target"]]
        meets = lambda intervals: overlap(report["t0"] - 0.5, report["t1"] + 0.5, intervals) > 0
        end = report["end"]
        if end == "ok":
            return "nothing happened"
        if end in ENDS and meets(server.down):
            return "killed"
        if end.startswith("retired") and not server.steady:
            return "reloaded or killed"
        if (end in ENDS or end.startswith("not served")) and not report["first"] and meets(server.short):
            return "short of descriptors"
        if end.startswith("not served") and meets(server.short):
            return "short of descriptors"
        return None

    def judge(self):
        for client, report in self.reports:
            if not self.excuse(report):
                self.loss(f"{client.proc.name}: {report}")
        for server in self.servers.values():
            for proc in [p for p in self.bench.procs if re.fullmatch(rf"{server.name}-\d+", p.name)]:
                for line in proc.stdout().splitlines() if server.kind in ("python", "node") else []:
                    self.loss(f"{proc.name}: {line}")
                if server.kind in ("python", "node") and proc.stderr().strip():
                    self.loss(f"{proc.name} complained\n{proc.output()}")
            if server.nginx:
                for line in server.nginx.error_log().splitlines():
                    expected = "(24: Too many open files)" in line or not server.steady and "exited on signal 9" in line
                    if re.search(r"\[(alert|crit|emerg)\]", line) and not expected:
                        self.loss(f"{server.name}: {line}")

    # -- the run

    def chaos(self, seconds):
        acts = [self.kill_client] * 4 + [self.kill_server] * 2 + [self.kill_worker] * 1 + [self.reload] * 1 + [self.pause] * 5 + [self.limit] * 3
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for kind in KINDS:
                if not any(c.kind == kind and c.seconds and c.proc.running() for c in self.clients):
                    self.add_client(kind, self.rng.uniform(1, MORTAL_S), "all", self.some_settings())
            self.rng.choice(acts)()
            wake = min(end, time.monotonic() + self.rng.uniform(0.02, 0.5))
            while time.monotonic() < wake:
                self.resume()
                self.unlimit()
                time.sleep(0.02)
            self.read_reports()
            self.look_alive()
        self.resume(all_of_them=True)
        self.unlimit(all_of_them=True)

    def look_alive(self):
        for server in self.servers.values():
            if not server.proc.running():
                raise AssertionError(f"{server.name} died: {server.proc.popen.returncode}\n{server.proc.output()}")
        for client in self.steady_clients:
            if not client.proc.running():
                raise AssertionError(f"{client.proc.name} died: {client.proc.popen.returncode}\n{client.proc.output()}")

    def rest(self):
        """Everybody ends what is in hand; until no connection is left."""
        before = dict(self.resting)
        for client in self.steady_clients:
            client.proc.send_signal(signal.SIGUSR2)
        self.until(lambda: all(self.resting[c.proc.name] > before.get(c.proc.name, 0) for c in self.steady_clients), "the steady clients' rest")
        self.until(lambda: self.clients == self.steady_clients, "the end of the other clients")
        self.until(lambda: self.connections() == 0, "the end of all connections")

    def sweep(self):
        """A short visit to each steady server, the same before and after: what a new peer sets free is gone then."""
        for kind in KINDS:
            self.add_client(kind, SWEEP_S, "steady", {"WARMUP": 0})
        self.until(lambda: self.clients == self.steady_clients, "the end of the sweep")
        self.until(lambda: self.connections() == 0, "the end of the sweep's connections")
        time.sleep(1)
        return {f"{m.name if isinstance(m, Server) else m.kind} {i}": holdings(pid) for m in self.steady() for i, pid in enumerate(family(m.proc.pid))}

    def until(self, condition, what):
        def look():
            self.read_reports()
            return condition()

        eventually(look, 60, what)

    def steady(self):
        return [s for s in self.servers.values() if s.steady] + self.steady_clients

    def connections(self):
        ports = {f"{s.port:04X}" for s in self.servers.values()}
        count = 0
        for line in harness.read_text("/proc/net/tcp").splitlines()[1:]:
            fields = line.split()
            ends = {fields[1].split(":")[1], fields[2].split(":")[1]}
            count += bool(ends & ports) and fields[3] not in ("0A", "06")  # LISTEN, TIME_WAIT
        return count

    def run(self):
        self.began = time.monotonic()
        time.sleep(WARM_S)
        self.rest()
        before = self.sweep()
        for client in self.steady_clients:
            client.proc.send_signal(signal.SIGHUP)
        self.chaos(self.args.minutes * 60)
        self.rest()
        after = self.sweep()
        self.stop()
        self.judge()
        return before, after

    def stop(self):
        for client in self.steady_clients:
            client.proc.send_signal(signal.SIGTERM)
        for client in self.steady_clients:
            client.proc.wait()
            self.check_end(client)
        self.read_reports()
        for server in self.servers.values():
            server.proc.stop(signal.SIGQUIT if server.nginx else signal.SIGTERM)
        eventually(lambda: all(harness.is_zombie(pid) for pid in harness.descendants()), 60, "the end of all processes")


def table(rows):
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(str(cell).ljust(w) if i == 0 else str(cell).rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


def verdict(soak, before, after):
    """Prints the tables; (passed, what failed)."""
    checks = []
    rows = [("pair", "connections", "whole", "cut by us", "MiB checked", "MiB by ring", "MiB by TCP", "upgraded", "revoked")]
    for kind in KINDS:
        reports = [r for c, r in soak.reports if c.kind == kind]
        stats = harness.parse_stats(soak.stats_file(kind).read_text())
        whole = sum(r["end"] == "ok" for r in reports)
        checked = sum(r["bytes"] for r in reports)
        rows.append((kind, len(reports), whole, sum(r["end"] != "ok" and bool(soak.excuse(r)) for r in reports), checked >> 20, stats.ring >> 20,
                     stats.tcp >> 20, stats.upgraded, stats.revoked))  # fmt: skip
        checks.append((f"{kind}: bytes were checked and the ring carried some", checked > 0 and stats.ring > 0))
        checks.append((f"{kind}: the gate was never found open", stats.sum("gate_found_open") == 0))
    table(rows)
    print("\n  faults injected:", ", ".join(f"{n} × {what}" for what, n in sorted(soak.injected.items())))
    print("  in mid-stream, by clients:", dict(collections.Counter(r["op"] for _, r in soak.reports if r.get("op"))), "(servers do the same)\n")
    rows = [("long-lived process", *SLACK)]
    for name in before:
        rows.append((name, *(f"{before[name][what]} → {after[name][what]}" if name in after else "gone" for what in SLACK)))
        grown = [what for what, more in SLACK.items() if name in after and after[name][what] > before[name][what] + more]
        checks.append((f"{name}: leaks {', '.join(grown)}", name in after and not grown))
    table(rows)
    for server in soak.servers.values():
        stats = harness.parse_stats(soak.stats_file(server.name).read_text())
        checks.append((f"{server.name}: the gate was never found open", stats.sum("gate_found_open") == 0))
        if server.steady:
            checks.append((f"{server.name}: the ring carried bytes", stats.ring > 0))
    print(f"\n  losses: {len(soak.losses)}")
    checks.append((f"{len(soak.losses)} losses", not soak.losses))
    return sum(ok for _, ok in checks), [what for what, ok in checks if not ok]


def main():
    args = parse()
    harness.become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {args.seed}; again: scripts/soak.sh --minutes {args.minutes} --seed {args.seed}", flush=True)
    soak = Soak(args)
    try:
        passed, failed = verdict(soak, *soak.run())
    except AssertionError as error:
        print(error)
        passed, failed = 0, ["the run"]
    finally:
        if args.keep:
            kept = shutil.copytree(soak.bench.dir, f"{soak.bench.dir}-kept", ignore=shutil.ignore_patterns("*.sock"))
            print("output kept in", kept)
        soak.bench.cleanup()
    for what in failed:
        print("FAILED", what)
    print(f"seed {args.seed}")
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
