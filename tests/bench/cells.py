# SPDX-License-Identifier: MIT
"""What a cell of the tables is, and what one run of it yields."""

from dataclasses import dataclass, field

import modes

FREE, ONE_CORE, TWO_CORES = "free", "one-core", "two-cores"
# What the ratio to TCP is made of. Always so that more than 1 is better than TCP.
RATE, MEDIAN_LATENCY, NO_RATIO = "rate", "p50", "none"


@dataclass
class Result:
    """Of one run. `operations` is what CPU time and statistics are divided by: of the whole run, warm-up included; None when not known."""

    rate: float
    operations: int = None
    bytes: int = None
    latency_us: dict = field(default_factory=dict)
    errors: int = 0
    details: dict = field(default_factory=dict)


class Workload:
    """A server, and a client that puts load on it. One object serves all the modes of its cell."""

    unit = "operations/s"
    unix = True  # whether it can use Unix sockets
    server_per_run = False
    server_ends_by_itself = False
    overhead_s = 0  # what a run takes above its seconds
    descriptors = 1024  # that each end must be allowed to have
    largest_limit_s = 60  # above its seconds, a run may take as long

    def seconds(self, wanted):
        """What a run really takes when `wanted` seconds are asked for."""
        return wanted

    def why_not(self, mode):
        """Why it cannot be measured in this mode, or None."""
        return None if self.unix or not mode.unix else f"{self.client_name} speaks TCP only"

    def start(self, stage):
        """Starts the stage's server and waits until it listens."""
        raise NotImplementedError

    def prepare(self, tcp_stage, seconds):
        """Once, before the rounds, on the server of the mode tcp: what must be known first. Returns it, for the results."""

    def run(self, stage, seconds):
        """One run of the client: a Result."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cell:
    suite: str
    name: str  # without the suite's
    workload: Workload
    modes: tuple = modes.ALL
    quick: bool = False
    placement: str = None  # None: as the user wants it
    ratio_of: str = RATE
    upgrade_expected: bool = True

    @property
    def full_name(self):
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True)
class Comparison:
    """A ratio besides the ones to TCP: a cell in a mode, divided by another one."""

    suite: str
    text: str
    cell: str
    mode: str
    base_cell: str
    base_mode: str
    of: str = RATE
