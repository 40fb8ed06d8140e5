# SPDX-License-Identifier: MIT
"""The workloads of the program `traffic` (and of `grpc_call`, which prints the same)."""

import json
import re
import subprocess

from cells import Result, Workload
from measure import descriptors, memory_bytes, shmem_bytes, tree
from modes import CLIENT
from processes import BenchError, wait_until
from programs import own_program

SERVICE_S = 3600  # a server ends by itself, whatever happens
WARMUP_MS = 100
REQUESTS_FIRST = 40  # of each connection, so that they get upgraded
IDLE_REQUESTS_FIRST = 200  # so that none is idle in the middle of it
FIRST_PER_S = 30_000  # of them, roughly
DESCRIPTORS_EACH = 3  # of a connection, in the middle of its upgrade


def parse_client(text):
    """The one line of JSON that a client prints."""
    try:
        found = json.loads(text)
        return {**found, "latency_us": {name: ns / 1000 for name, ns in found["latency_ns"].items()}}
    except (ValueError, KeyError, AttributeError):
        raise BenchError(f"the client printed something else than its result: {text[:200]!r}") from None


def in_whole_run(operations, seconds, warmup_ms):
    """The program counts what comes after the warm-up; before, it does the same at the same speed."""
    return round(operations * (seconds + warmup_ms / 1000) / seconds)


class Traffic(Workload):
    program = "traffic"
    server_options = ()  # after `serve`

    def start(self, stage):
        address = f"unix:{stage.unix_path}" if stage.mode.unix else "tcp"
        command = [own_program(stage.build, self.program), "serve", *self.server_options, "--address", address, "--seconds", SERVICE_S]
        found = stage.start_server(command, lambda server: re.search(r"^(PORT|PATH) (.+)$", server.output(), re.M), self.program)
        stage.address = f"tcp:{found[2]}" if found[1] == "PORT" else f"unix:{found[2]}"

    def client(self, stage, name, *options):
        return [own_program(stage.build, self.program), name, "--address", stage.address, *options]

    def measured(self, stage, seconds, name, *options):
        return parse_client(stage.run_client(self.client(stage, name, "--seconds", seconds, *options), seconds))


class PingPong(Traffic):
    def __init__(self, size, mode):
        self.size, self.mode = size, mode
        self.server_options = ("echo", "--mode", mode, "--bytes", size)

    overhead_s = WARMUP_MS / 1000

    def ping(self, stage, seconds, *options):
        return self.measured(stage, seconds, "pingpong", "--mode", self.mode, "--bytes", self.size, "--warmup-ms", WARMUP_MS, *options)

    def run(self, stage, seconds):
        found = self.ping(stage, seconds)
        operations = in_whole_run(found["operations"], found["seconds"], WARMUP_MS)
        return Result(found["operations_per_second"], operations, 2 * operations * self.size, found["latency_us"], found["errors"])


class FixedRate(PingPong):
    """At a share of what TCP does when it is asked as fast as it answers. `rates` holds that for all the cells of one kind."""

    def __init__(self, size, mode, share, rates):
        super().__init__(size, mode)
        self.share, self.rates = share, rates

    def prepare(self, tcp_stage, seconds):
        key = (self.size, self.mode)
        if key not in self.rates:
            self.rates[key] = self.ping(tcp_stage, seconds)["operations_per_second"]
        self.rate = self.share * self.rates[key]
        return {"closed_loop_tcp_per_second": self.rates[key], "rate_per_second": self.rate}

    def run(self, stage, seconds):
        found = self.ping(stage, seconds, "--rate", f"{self.rate:.1f}")
        # The operations of the warm-up, a closed loop, are not known; and before each message the client waits for its time by spinning.
        kept = found["operations_per_second"] / self.rate
        return Result(found["operations_per_second"], None, None, found["latency_us"], found["errors"], {"share_of_rate_kept": kept})


class Stream(Traffic):
    unit = "bytes/s"
    server_options = ("sink",)

    def __init__(self, size, streams):
        self.size, self.streams = size, streams

    def run(self, stage, seconds):
        found = self.measured(stage, seconds, "stream", "--bytes", self.size, "--streams", self.streams)
        return Result(found["bytes_per_second"], found["operations"], found["operations"] * self.size, found["latency_us"], found["errors"])


class Churn(Traffic):
    unit = "connections/s"
    server_options = ("echo", "--mode", "epoll", "--bytes", 64)

    def run(self, stage, seconds):
        found = self.measured(stage, seconds, "churn", "--bytes", 64)
        return Result(
            found["operations_per_second"], found["operations"], 128 * found["operations"], found["latency_us"], found["errors"]
        )


class Many(Traffic):
    server_options = ("echo", "--mode", "epoll", "--bytes", 64)

    def __init__(self, connections, busy):
        self.connections, self.busy = connections, busy
        self.overhead_s = connections * REQUESTS_FIRST / FIRST_PER_S
        self.descriptors = connections * DESCRIPTORS_EACH

    def run(self, stage, seconds):
        counts = ("--connections", self.connections, "--busy", self.busy, "--requests-first", REQUESTS_FIRST)
        found = self.measured(stage, seconds, "many", "--bytes", 64, *counts)
        operations = found["operations"] + self.connections * REQUESTS_FIRST
        return Result(found["operations_per_second"], operations, 128 * operations, found["latency_us"], found["errors"])


class Gateway(Many):
    """One client that calls many services, all at once: processes that share a port, so that the kernel chooses who gets which connection."""

    def __init__(self, services, connections):
        super().__init__(connections, connections)
        self.server_options = ("echo", "--mode", "epoll", "--bytes", 64, "--processes", services)

    def why_not(self, mode):
        return "the processes share a TCP port" if mode.unix else None


class Idle(Traffic):
    """What one more idle connection costs: `connections` of them against one, in both processes together. Where the library is at work,
    only the upgraded ones count."""

    unit = "KiB/connection"
    unix = False
    client_name = "the comparison"
    server_per_run = True
    server_options = ("echo", "--mode", "epoll", "--bytes", 64)

    def __init__(self, connections):
        self.connections = connections
        self.overhead_s = connections * IDLE_REQUESTS_FIRST / FIRST_PER_S
        self.descriptors = connections * DESCRIPTORS_EACH

    def seconds(self, wanted):
        return 0  # it looks once

    def why_not(self, mode):
        return "the question is about TCP connections, with and without the library" if mode.unix else None

    def run(self, stage, seconds):
        one, many = (self.held(stage, count) for count in (1, self.connections))
        each = {key: (many[key] - one[key]) / (many["connections"] - one["connections"]) for key in one if key != "connections"}
        return Result((each["pss"] + each["page_tables"]) / 1024, details=each)

    def held(self, stage, connections):
        options = ("--connections", connections, "--requests-first", IDLE_REQUESTS_FIRST, "--bytes", 64, "--hold-only")
        shmem = shmem_bytes()
        client = stage.start_client(self.client(stage, "many", *options), subprocess.PIPE)
        wait_until(lambda: "READY" in client.output(), client, self.largest_limit_s, f"{connections} idle connections")
        pids = [*tree(client.pid), *tree(stage.server.pid)]
        found = {**memory_bytes(pids), "system_shmem": shmem_bytes() - shmem, "descriptors": descriptors(pids)}
        client.close_stdin()
        stage.last_client = client
        stage.finish_client(client, self.largest_limit_s)
        statistics = stage.statistics(CLIENT)
        return {**found, "connections": statistics["upgraded"] if statistics else connections}


class Grpc(Traffic):
    """Unary calls, one after the other, over one connection."""

    unit = "calls/s"
    program = "grpc_call"

    def __init__(self, size):
        self.size = size

    def run(self, stage, seconds):
        found = self.measured(stage, seconds, "call", "--bytes", self.size, "--warmup-ms", WARMUP_MS)
        operations = in_whole_run(found["operations"], found["seconds"], WARMUP_MS)
        return Result(found["operations_per_second"], operations, None, found["latency_us"], found["errors"])
