# SPDX-License-Identifier: MIT
"""redis-server, without persistence, and redis-benchmark."""

import csv

from cells import Result, Workload
from processes import BenchError
from programs import program

FIRST_COUNT = 2000  # requests, to learn how many make a run of the length wanted
MOST = 5_000_000
PERCENTILES = {"p50_latency_ms": "p50", "p95_latency_ms": "p95", "p99_latency_ms": "p99", "max_latency_ms": "max"}


class Redis(Workload):
    unit = "requests/s"

    def __init__(self, test, connections, pipeline, size):
        self.test, self.connections, self.pipeline, self.size = test, connections, pipeline, size

    def start(self, stage):
        def command(port):
            options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", stage.directory]
            return [program("redis-server"), "--port", port, "--unixsocket", stage.unix_path, *options]

        stage.address = stage.start_on_free_port(command)
        if self.test == "get":
            self.first_load(stage, "set", 1)  # what GET reads must be there
        stage.memory["rate"] = self.first_load(stage, self.test, FIRST_COUNT).rate

    def run(self, stage, seconds):
        """redis-benchmark does a number of requests: as many as would have taken that time in the run before."""
        count = min(MOST, max(FIRST_COUNT, round(stage.memory["rate"] * seconds)))
        result = self.load(stage, self.test, count, seconds)
        stage.memory["rate"] = result.rate
        return result

    def first_load(self, stage, test, count):
        result = self.load(stage, test, count, seconds=1)
        stage.belongs_to_no_round(count)
        return result

    def load(self, stage, test, count, seconds):
        where = ["-s", stage.unix_path] if stage.mode.unix else ["-h", "127.0.0.1", "-p", stage.address]
        options = ["-t", test, "-n", count, "-c", self.connections, "-P", self.pipeline, "-d", self.size, "--csv"]
        result = parse_redis(stage.run_client([program("redis-benchmark"), *where, *options], seconds), test, count)
        result.bytes = count * self.size
        return result


def parse_redis(text, test, count):
    rows = [row for row in csv.DictReader(text.splitlines()) if row.get("test") == test.upper()]
    if len(rows) != 1:
        raise BenchError(f"redis-benchmark printed no {test.upper()}: {text[-200:]!r}")
    latency = {name: 1000 * float(rows[0][key]) for key, name in PERCENTILES.items()}
    return Result(float(rows[0]["rps"]), count, None, latency)
