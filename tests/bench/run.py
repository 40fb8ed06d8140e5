# SPDX-License-Identifier: MIT
"""Measures a cell: a server per mode, started once; round by round all modes one after the other; then the servers' statistics."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from measure import merge_statistics
from modes import CLIENT, MODES, SERVER
from processes import BenchError, Processes
from stage import Stage, switches


@dataclass
class Context:
    processes: Processes
    build: Path
    directory: Path
    rounds: int
    seconds: float
    placement: str
    progress: Callable  # told in words what is being done


def measure_cell(context, cell, record):
    """Fills `record` as it goes, so that what there is survives an interruption."""
    record.update(suite=cell.suite, name=cell.full_name, unit=cell.workload.unit, ratio_of=cell.ratio_of, modes={})
    record.update(placement=cell.placement or context.placement)
    record.update(upgrade_expected=cell.upgrade_expected)
    CellRun(context, cell, record).measure()


class CellRun:
    def __init__(self, context, cell, record):
        self.context, self.cell, self.record = context, cell, record
        self.workload = cell.workload
        self.seconds = self.workload.seconds(context.seconds)
        self.stages = {}
        self.directory = context.directory / "cell"

    def measure(self):
        self.directory.mkdir()
        self.directory.chmod(0o755)
        try:
            for name in self.cell.modes:
                self.set_up(name)
            self.prepare()
            for number in range(self.context.rounds):
                self.one_round(number)
        finally:
            for name in list(self.stages):
                self.tear_down(name)
            shutil.rmtree(self.directory, ignore_errors=True)

    def set_up(self, name):
        mode = MODES[name]
        entry = self.record["modes"][name] = {"runs": []}
        reason = self.workload.why_not(mode)
        if reason:
            entry["not_applicable"] = reason
            return
        stage = Stage(self.context.processes, self.context.build, self.cell, mode, self.record["placement"], self.directory / name)
        self.stages[name] = stage
        if not self.workload.server_per_run:
            self.attempt(name, self.workload.start, stage)

    def attempt(self, name, action, *arguments):
        """A mode that fails is left out from there on, and says why; the others go on."""
        try:
            action(*arguments)
        except BenchError as error:
            self.record["modes"][name]["failed"] = str(error)
            self.tear_down(name)

    def prepare(self):
        try:
            if "tcp" not in self.stages:
                raise BenchError("there is no TCP to compare with")
            known = self.workload.prepare(self.stages["tcp"], self.seconds)
            if known:
                self.record["prepared"] = known
        except BenchError as error:
            for name in list(self.stages):
                self.record["modes"][name]["failed"] = str(error)
                self.tear_down(name)

    def one_round(self, number):
        names = list(self.stages)
        first = number % len(names) if names else 0  # nobody always comes after the same one
        for name in names[first:] + names[:first]:
            self.context.progress(f"{self.cell.full_name}: round {number + 1} of {self.context.rounds}, {name}")
            self.attempt(name, self.one_run, name, number)

    def one_run(self, name, number):
        stage = self.stages[name]
        if self.workload.server_per_run:
            self.workload.start(stage)
            result = self.workload.run(stage, self.seconds)
            server_cpu_s = stage.end_of_server()
        else:
            before_s = stage.server_cpu_s()
            result = self.workload.run(stage, self.seconds)
            stage.check_server()
            server_cpu_s = stage.server_cpu_s() - before_s
        self.record["modes"][name]["runs"].append(run_record(stage, number, result, server_cpu_s))

    def tear_down(self, name):
        entry, stage = self.record["modes"][name], self.stages.pop(name)
        try:
            stage.stop_server()
            entry["statistics"] = {
                CLIENT: merge_statistics([run["statistics"] for run in entry["runs"]] + [s for _, s in stage.outside]),
                SERVER: stage.statistics(SERVER),
            }
            entry["server_switches"] = stage.server_switches
            entry["operations_outside_rounds"] = sum(operations for operations, _ in stage.outside)
        except BenchError as error:
            entry.setdefault("failed", str(error))


def run_record(stage, number, result, server_cpu_s):
    usage = stage.last_client.usage
    return {
        "round": number + 1,
        "rate": result.rate,
        "operations": result.operations,
        "bytes": result.bytes,
        "latency_us": result.latency_us,
        "errors": result.errors,
        "details": result.details,
        "cpu_s": {CLIENT: usage.ru_utime + usage.ru_stime, SERVER: server_cpu_s},
        "client_switches": switches(usage),
        "statistics": stage.statistics(CLIENT),
    }
