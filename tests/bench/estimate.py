# SPDX-License-Identifier: MIT
"""How long it will take, roughly: said before anything is started."""

from modes import MODES

SERVER_S = 0.15  # to start one, and to end it
RUN_S = 0.15  # above its seconds: starting, warming up, ending, reading the statistics


def modes_measured(cell):
    return sum(1 for name in cell.modes if cell.workload.why_not(MODES[name]) is None)


def cell_s(cell, rounds, seconds):
    workload = cell.workload
    servers = rounds if workload.server_per_run else 1
    run_s = workload.seconds(seconds) + workload.overhead_s + RUN_S
    return modes_measured(cell) * (rounds * run_s + servers * SERVER_S)


def estimate_s(cells, rounds, seconds):
    return sum(cell_s(cell, rounds, seconds) for cell in cells)


def minutes(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
