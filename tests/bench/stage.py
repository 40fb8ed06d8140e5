# SPDX-License-Identifier: MIT
"""One cell in one mode: its server, which lives through all the rounds, and the runs of its client."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from cells import ONE_CORE, TWO_CORES
from measure import cpu_seconds, listens, make_stats_file, read_statistics, tree
from modes import CLIENT, SERVER, environment
from processes import BenchError, how_it_ended, wait_until

START_LIMIT_S = 30


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pinned(placement, side):
    """The beginning of a command that keeps a process where it belongs."""
    cpus = sorted(os.sched_getaffinity(0))
    if placement == ONE_CORE:
        return ["taskset", "-c", str(cpus[-1])]
    if placement == TWO_CORES:
        return ["taskset", "-c", str(cpus[0] if side == SERVER else cpus[1])]
    return []


def switches(usage):
    return usage.ru_nvcsw + usage.ru_nivcsw if usage else 0


class Stage:
    def __init__(self, processes, build, cell, mode, placement, directory):
        self.cell, self.mode, self.placement, self.build, self.directory = cell, mode, placement, build, directory
        self.server = None
        self.address = None  # the server's, as its clients are told
        self.memory = {}  # of the workload, from run to run
        self.last_client = None
        self.server_switches = 0  # of servers that have ended, and their children
        self.outside = []  # (operations, statistics of the client) of runs that belong to no round, but that the server has counted
        self._processes = processes
        self._library = build / "preload" / "libmpklink.so"
        self._stats = {side: directory / f"statistics-{side}" for side in (CLIENT, SERVER)}
        directory.mkdir()
        directory.chmod(0o755)  # nginx's workers are another user when the suite is started by root
        make_stats_file(self._stats[SERVER])

    @property
    def unix_path(self):
        return self.directory / "socket"

    # ---- the server

    def start_server(self, command, ready, what):
        """`ready(process)`: something true as soon as it can be used."""
        self.server = self._start(command, SERVER)
        return wait_until(lambda: ready(self.server), self.server, START_LIMIT_S, f"{what} does not start")

    def start_on_free_port(self, make_command):
        """For servers that must be told their port; another program may take it between our look and their bind."""
        for attempt in range(3):
            port = free_port()
            command = make_command(port)
            try:
                self.start_server(command, lambda _: listens(port), Path(command[0]).name)
                return port
            except BenchError:
                self._processes.stop(self.server)
                if attempt == 2:
                    raise

    def check_server(self):
        if not self.server.running():
            self.server.wait(0)
            raise BenchError(f"the server ended during the measurement ({how_it_ended(self.server)}): {self.server.last_words()}")

    def stop_server(self):
        """A server that does not end as it should has not written what it counted."""
        server, self.server = self.server, None
        if server is None:
            return
        lived = server.running()
        graceful = self._processes.stop(server)
        self.server_switches += switches(server.usage)
        if lived and not graceful:
            raise BenchError(f"the server did not end at SIGTERM: {server.last_words()}")
        if lived and server.returncode != 0:
            raise BenchError(f"the server ended badly ({how_it_ended(server)}): {server.last_words()}")

    def end_of_server(self):
        """Of one that serves a single run: the CPU time it took."""
        server, self.server = self.server, None
        if not self.cell.workload.server_ends_by_itself:
            self._processes.stop(server)
        elif not self._processes.wait(server, START_LIMIT_S):
            self._processes.stop(server)
            raise BenchError(f"the server did not end after the run: {server.last_words()}")
        if server.returncode != 0:
            raise BenchError(f"the server ended badly ({how_it_ended(server)}): {server.last_words()}")
        self.server_switches += switches(server.usage)
        return server.usage.ru_utime + server.usage.ru_stime

    def server_cpu_s(self):
        """User and system time of the server and its children so far."""
        return cpu_seconds(tree(self.server.pid))

    # ---- clients

    def start_client(self, command, stdin=subprocess.DEVNULL):
        self._stats[CLIENT].unlink(missing_ok=True)
        make_stats_file(self._stats[CLIENT])
        return self._start(command, CLIENT, stdin)

    def finish_client(self, client, limit_s):
        if not self._processes.wait(client, limit_s):
            self._processes.stop(client, signal.SIGKILL)
            raise BenchError(f"{client.command[-1]}: the client did not end within {limit_s:.0f} s")
        if client.returncode != 0:
            raise BenchError(f"the client failed ({how_it_ended(client)}): {client.last_words()}")
        return client.output()

    def run_client(self, command, seconds):
        """Its output. What it took and counted is in `last_client` and `statistics(CLIENT)`."""
        self.last_client = self.start_client(command)
        return self.finish_client(self.last_client, seconds + self.cell.workload.largest_limit_s)

    def belongs_to_no_round(self, operations):
        """The last run of the client."""
        self.outside.append((operations, self.statistics(CLIENT)))

    def statistics(self, side):
        return read_statistics(self._stats[side])

    def _start(self, command, side, stdin=subprocess.DEVNULL):
        env = environment(self.mode, side, self._library, self._stats[side])
        return self._processes.start([*pinned(self.placement, side), *command], env, self.directory, stdin)
