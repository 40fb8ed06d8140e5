# SPDX-License-Identifier: MIT
"""iperf3: one connection that carries bytes, one that controls it. Its server ends after one run, so each run has a server of its own."""

import json

from cells import Result, Workload
from processes import BenchError
from programs import program


class Iperf(Workload):
    unit = "bytes/s"
    unix = False
    client_name = "iperf3"
    server_per_run = server_ends_by_itself = True

    def __init__(self, size):
        self.size = size  # of a write

    def seconds(self, wanted):
        return max(1, round(wanted))  # iperf3 takes whole seconds

    def start(self, stage):
        stage.address = stage.start_on_free_port(
            lambda port: [program("iperf3"), "--server", "--one-off", "--bind", "127.0.0.1", "--port", port]
        )

    def run(self, stage, seconds):
        where = ["--client", "127.0.0.1", "--port", stage.address]
        return parse_iperf(stage.run_client([program("iperf3"), *where, "--length", self.size, "--time", seconds, "--json"], seconds))


def parse_iperf(text):
    try:
        received = json.loads(text)["end"]["sum_received"]
        return Result(received["bits_per_second"] / 8, None, received["bytes"])
    except (ValueError, KeyError):
        raise BenchError(f"iperf3 printed no result: {text[-200:]!r}") from None
