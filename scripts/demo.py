# SPDX-License-Identifier: MIT
"""nginx and wrk over loopback, plain and with libmpklink, side by side. The measuring part of scripts/demo.sh.

Both servers run the whole time; the runs alternate (plain, mpklink, plain, mpklink, ...) so that a change of the
machine's mood meets both. Reported are medians over the rounds. What was upgraded, and under which guard, is read
from the statistics of the processes themselves (MPKLINK_STATS), never assumed.
"""
import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONNECTIONS = (1, 16, 64, 256)
ROUNDS = 5
SYSTEM_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"  # nginx is not on an ordinary user's PATH
# Not the user's to set here: the demo decides which side is accelerated, and where the statistics go.
NOT_INHERITED = ("LD_PRELOAD", "MPKLINK_STATS", "MPKLINK_DISABLE", "MPKLINK_LIBRARY")

NGINX_CONF = """\
worker_processes 1;
daemon off;
master_process on;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  # nginx closes a connection after 1000 requests by default; here one connection is to last for a whole run.
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 "Hello from nginx.\\n"; }}
  }}
}}
"""


class DemoError(Exception):
    """Ends the demo with one sentence."""


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ---- processes ------------------------------------------------------------------------------------


def plain_environment():
    return {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("MPKLINK_")}


def mpklink_environment():
    return {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def children_of(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_running(pid):
    """A zombie has ended; its parent's business."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class Processes:
    """Everything started here, so that everything can be ended: by process id, in any state of the demo."""

    def __init__(self):
        self._running = []
        self._starting = False
        self._signal = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, _frame):
        self._signal = number
        if not self._starting:  # else a process could be running that is not in the list yet
            sys.exit(128 + number)

    def start(self, command, **options):
        self._starting = True
        try:
            # Its own session: Ctrl-C then reaches this script alone, which ends the others in order.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
            self._running.append(process)
        finally:
            self._starting = False
        if self._signal is not None:
            sys.exit(128 + self._signal)
        return process

    def stop(self, process):
        """SIGTERM, which nginx passes to its worker; SIGKILL for whatever is left after some seconds."""
        if process not in self._running:
            return
        workers = children_of(process.pid)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in filter(is_running, workers):
            os.kill(pid, signal.SIGKILL)
        self._running.remove(process)

    def forget(self, process):
        self._running.remove(process)

    def stop_all(self):
        for process in list(self._running):
            self.stop(process)


class Server:
    """One nginx, with a directory of its own."""

    def __init__(self, processes, nginx, directory, wrapper, environment):
        self._processes = processes
        self.stats_file = directory / "stats.json"
        prepare_stats_file(self.stats_file)
        directory.chmod(0o755)
        for _ in range(3):  # another program may take the port between our look and nginx's bind
            self.port = free_port()
            conf = directory / "nginx.conf"
            conf.write_text(NGINX_CONF.format(dir=directory, port=self.port))
            self.command = [*wrapper(self.stats_file), nginx, "-p", str(directory), "-e", "error.log", "-c", str(conf)]
            self._log = directory / "output.log"
            with open(self._log, "wb") as log:
                self.process = processes.start(self.command, env=environment, stdout=log, stderr=log)
            if self._answers():
                return
            processes.stop(self.process)
        raise DemoError(f"nginx does not start: {self._last_words(directory)}")

    def _answers(self):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as s:
                s.settimeout(1)
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.02)
        return False

    def _last_words(self, directory):
        text = ""
        for log in (self._log, directory / "error.log"):
            text += log.read_text(errors="replace") if log.exists() else ""
        return text.strip().splitlines()[-1] if text.strip() else "it says nothing"

    def stop(self):
        self._processes.stop(self.process)


# ---- statistics of the library --------------------------------------------------------------------


def prepare_stats_file(path):
    """nginx's worker runs as another user when nginx is started by root, and appends to the same file."""
    path.touch()
    path.chmod(0o666)


def read_stats(path):
    """One object per process that ended. A line that is not JSON is a fault of the library, and no statistics."""
    objects = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            objects.append(json.loads(line))
        except ValueError:
            raise DemoError(f"a process wrote statistics that are not JSON: {line[:200]}") from None
    return objects


def total(objects, key):
    return sum(entry.get(key, 0) for entry in objects)


def plain_reasons(objects):
    reasons = {}
    for entry in objects:
        for reason, count in entry.get("plain", {}).items():
            reasons[reason] = reasons.get(reason, 0) + count
    return reasons


def guards(objects):
    """Those of the processes that shared something; the nginx master, for one, never does."""
    return sorted({str(entry.get("guard", "?")) for entry in objects if entry.get("upgraded", 0) > 0})


# ---- wrk ------------------------------------------------------------------------------------------

UNIT_US = {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}


def parse_wrk(text):
    def percentile(number):
        match = re.search(rf"^\s+{number}%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.M)
        if match is None:
            raise DemoError(f"wrk printed no {number}% latency")
        return float(match[1]) * UNIT_US[match[2]]

    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.M)
    if rate is None:
        raise DemoError("wrk printed no Requests/sec")
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    bad_status = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return {
        "requests_per_second": float(rate[1]),
        "p50_us": percentile(50),
        "p99_us": percentile(99),
        "socket_errors": sum(map(int, socket_errors.groups())) if socket_errors else 0,
        "bad_responses": int(bad_status[1]) if bad_status else 0,
    }


def run_wrk(processes, command, environment, seconds):
    process = processes.start(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=seconds + 20)
    except subprocess.TimeoutExpired:
        raise DemoError(f"wrk did not end by itself: {' '.join(command)}") from None
    processes.forget(process)
    if process.returncode != 0:
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise DemoError(f"wrk failed ({how}): {(errors or output).strip()[-500:]}")
    return parse_wrk(output)


# ---- the measurement ------------------------------------------------------------------------------


class Demo:
    def __init__(self, options, directory, processes):
        self.options = options
        self.directory = directory
        self.processes = processes
        self.tool = str(options.build / "tools" / "mpklink")
        self.nginx = find_program("nginx")
        self.wrk = find_program("wrk")
        self.results = {(c, side): [] for c in CONNECTIONS for side in ("plain", "mpklink")}
        self.client_stats = []
        self.server_stats = []
        self.commands = {}

    def wrapper(self, stats_file):
        return [self.tool, "run", "--stats", str(stats_file), "--"]

    def start_server(self, side):
        directory = self.directory / side
        directory.mkdir()
        if side == "plain":
            return Server(self.processes, self.nginx, directory, lambda _: [], plain_environment())
        return Server(self.processes, self.nginx, directory, self.wrapper, mpklink_environment())

    def measure(self):
        servers = {side: self.start_server(side) for side in ("plain", "mpklink")}
        for number in range(ROUNDS):
            for connections in CONNECTIONS:
                for side in ("plain", "mpklink"):
                    progress(f"round {number + 1} of {ROUNDS}: {connections} connections, {side}")
                    self.results[connections, side].append(self.one_run(servers[side], side, connections))
        progress("")
        for side, server in servers.items():
            self.commands[f"nginx, {side}"] = server.command
            if server.process.poll() is not None:
                raise DemoError(f"nginx ({side}) ended during the measurement")
            server.stop()
        self.server_stats = read_stats(servers["mpklink"].stats_file)

    def one_run(self, server, side, connections):
        seconds = self.options.seconds
        url = f"http://127.0.0.1:{server.port}/"
        command = [self.wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
        if side == "plain":
            self.commands["wrk, plain"] = command
            return run_wrk(self.processes, command, plain_environment(), seconds)
        stats_file = self.directory / "wrk.json"
        prepare_stats_file(stats_file)
        command = self.wrapper(stats_file) + command
        self.commands["wrk, mpklink"] = command
        result = run_wrk(self.processes, command, mpklink_environment(), seconds)
        stats = read_stats(stats_file)
        stats_file.unlink()
        result["upgraded"] = total(stats, "upgraded")
        if result["upgraded"] == 0:
            raise DemoError(not_accelerated(stats, connections))
        self.client_stats += stats
        return result


def find_program(name):
    path = shutil.which(name, path=SYSTEM_PATH)
    if path is None:
        raise DemoError(f"{name} is not installed; run scripts/setup.sh")
    return path


def not_accelerated(stats, connections):
    where = f"wrk with {connections} connection{'s' if connections > 1 else ''}"
    if not stats:
        return f"NOTHING WAS ACCELERATED: {where} left no statistics, so libmpklink was not at work in it"
    reasons = ", ".join(f"{reason}: {count}" for reason, count in plain_reasons(stats).items()) or "no reason given"
    return f"NOTHING WAS ACCELERATED: {where} upgraded no stream to shared memory (plain TCP because of {reasons})"


# ---- the report -----------------------------------------------------------------------------------


def first_match(path, pattern):
    try:
        match = re.search(pattern, Path(path).read_text(), re.M)
    except OSError:
        return None
    return match[1] if match else None


def machine():
    flags = (first_match("/proc/cpuinfo", r"^flags\s*:(.*)$") or "").split()
    return {
        "cpu": first_match("/proc/cpuinfo", r"^model name\s*:\s*(.*)$") or "unknown CPU",
        "usable_cpus": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "protection_keys": "ospke" in flags,  # the CPU has them (pku) and the kernel switched them on
    }


def version_of(command, pattern):
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, env=plain_environment())
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    match = re.search(pattern, result.stdout + result.stderr)
    return match[1] if match else "unknown"


def median_side(runs):
    side = {key: statistics.median(run[key] for run in runs) for key in ("requests_per_second", "p50_us", "p99_us")}
    side["errors"] = sum(run["socket_errors"] + run["bad_responses"] for run in runs)
    side["runs"] = runs
    return side


def make_rows(demo):
    rows = []
    for connections in CONNECTIONS:
        plain, mpklink = (median_side(demo.results[connections, side]) for side in ("plain", "mpklink"))
        mpklink["upgraded_fewest"] = min(run["upgraded"] for run in mpklink["runs"])
        ratio = mpklink["requests_per_second"] / plain["requests_per_second"] if plain["requests_per_second"] else None
        rows.append({"connections": connections, "ratio": ratio, "plain": plain, "mpklink": mpklink})
    return rows


def find_problems(demo, rows):
    problems = []
    kinds = {"socket_errors": "socket errors", "bad_responses": "responses other than 2xx and 3xx"}
    for row in rows:
        for side in ("plain", "mpklink"):
            for kind, name in kinds.items():
                count = sum(run[kind] for run in row[side]["runs"])
                if count:
                    problems.append(f"wrk counted {count} {name} with {row['connections']} connections, {side}")
    if total(demo.server_stats, "upgraded") == 0:
        problems.append("NOTHING WAS ACCELERATED: nginx reports no upgraded stream")
    for entry in demo.client_stats + demo.server_stats:
        if entry.get("gate_found_open", 0):
            problems.append(f"process {entry.get('pid')} ({entry.get('comm')}) found its memory guard open")
    return problems


def listing(words):
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def make_summary(rows, guard):
    ratios = listing(f"{row['ratio']:.1f}" for row in rows)
    connections = listing(str(row["connections"]) for row in rows)
    slower = [str(row["connections"]) for row in rows if row["ratio"] < 1]
    text = (f"With libmpklink (guard: {guard}), unmodified nginx and wrk did {ratios} times the requests per second "
            f"of plain loopback TCP at {connections} connections")
    return text + (f": slower than TCP at {listing(slower)}." if slower else ".")


def make_report(demo):
    rows = make_rows(demo)
    client_guards, server_guards = guards(demo.client_stats), guards(demo.server_stats)
    in_force = "/".join(sorted(set(client_guards + server_guards))) or "unknown"
    ring = total(demo.client_stats, "ring_tx_bytes") + total(demo.client_stats, "ring_rx_bytes")
    tcp = total(demo.client_stats, "tcp_tx_bytes") + total(demo.client_stats, "tcp_rx_bytes")
    return {
        "ok": True,
        "problems": find_problems(demo, rows),
        "summary": make_summary(rows, in_force),
        "guard": {"wrk": client_guards, "nginx": server_guards},
        "rows": rows,
        "ring_share_of_bytes": ring / (ring + tcp) if ring + tcp else None,
        "streams_upgraded": {
            "wrk": total(demo.client_stats, "upgraded"),
            "nginx": total(demo.server_stats, "upgraded"),
        },
        "machine": machine(),
        "versions": {
            "mpklink": version_of([demo.tool, "--version"], r"mpklink (\S+)"),
            "nginx": version_of([demo.nginx, "-v"], r"nginx/(\S+)"),
            "wrk": version_of([demo.wrk, "-v"], r"wrk (?:debian/)?(\S+)"),
        },
        "seconds_per_run": demo.options.seconds,
        "rounds": ROUNDS,
        "commands": demo.commands,
        "settings": {k: v for k, v in mpklink_environment().items() if k.startswith("MPKLINK_")},
    }


def latency(us):
    for unit, scale in (("µs", 1), ("ms", 1e3), ("s", 1e6)):
        if us < 1000 * scale or unit == "s":
            value = us / scale
            return f"{value:.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


def table_cells(row):
    plain, mpklink = row["plain"], row["mpklink"]
    fewest, connections = mpklink["upgraded_fewest"], row["connections"]
    return [
        str(connections),
        f"{plain['requests_per_second']:,.0f}", f"{mpklink['requests_per_second']:,.0f}", f"{row['ratio']:.2f}x",
        latency(plain["p50_us"]), latency(mpklink["p50_us"]), latency(plain["p99_us"]), latency(mpklink["p99_us"]),
        str(plain["errors"] + mpklink["errors"]), f"{fewest} of {connections}",
    ]


def print_table(rows):
    groups = ["", "requests/s", "", "", "p50 latency", "", "p99 latency", "", "", "streams"]
    heads = ["connections", "plain", "mpklink", "ratio", "plain", "mpklink", "plain", "mpklink", "errors", "upgraded"]
    lines = [groups, heads] + [table_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip())
        if line is heads:
            print("  ".join("-" * width for width in widths))


def print_report(report):
    print()
    print_table(report["rows"])
    print()
    m, v = report["machine"], report["versions"]
    for side, names in report["guard"].items():
        print(f"{'guard in ' + side + ':':<16}{', '.join(names) or 'unknown'}")
    if not m["protection_keys"]:
        print(f"{'':<16}(this CPU or kernel has no memory protection keys)")
    print(f"{'machine:':<16}{m['cpu']}, {m['usable_cpus']} usable CPUs, Linux {m['kernel']}")
    print(f"{'what ran:':<16}nginx {v['nginx']} (1 worker, return 200), wrk {v['wrk']} (1 thread), "
          f"libmpklink {v['mpklink']};")
    print(f"{'':<16}medians of {report['rounds']} alternating runs of {report['seconds_per_run']} s each;")
    print(f"{'':<16}streams upgraded: as wrk's side reports them, the run with the fewest")
    if report["ring_share_of_bytes"] is not None:
        print(f"{'shared memory:':<16}{100 * report['ring_share_of_bytes']:.2f} % of wrk's bytes went through it")
    if report["settings"]:
        print(f"{'settings:':<16}{' '.join(f'{k}={x}' for k, x in sorted(report['settings'].items()))}")
    print(f"\n{report['summary']}")


# ---- main -----------------------------------------------------------------------------------------


def measure_in(directory, options, processes):
    try:
        demo = Demo(options, directory, processes)
        demo.measure()
        return make_report(demo)
    finally:
        # A second Ctrl-C must not leave half of it running.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        progress("")
        processes.stop_all()


def measured(options, processes):
    """The report; one with a single problem, and no figures, if the demo could not go to its end."""
    directory = Path(tempfile.mkdtemp(prefix="mpklink-demo-"))
    try:
        directory.chmod(0o755)  # nginx's worker is another user when nginx is started by root
        return measure_in(directory, options, processes)
    except DemoError as error:
        return {"ok": False, "problems": [str(error)], "machine": machine()}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description="The measuring part of scripts/demo.sh.")
    parser.add_argument("--build", type=Path, required=True, help="the build directory")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seconds", type=int, default=1, help="length of each wrk run")
    options = parser.parse_args()
    options.build = options.build.resolve()
    return options


def main():
    options = parse_arguments()
    report = measured(options, Processes())
    report["ok"] = not report["problems"]
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    elif "rows" in report:
        print_report(report)
    for problem in report["problems"]:
        print(f"\ndemo: {problem}", file=sys.stderr)
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
