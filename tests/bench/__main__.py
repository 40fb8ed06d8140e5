# SPDX-License-Identifier: MIT
"""The measuring part of scripts/bench.sh: options, the order of things, the exit code."""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

import terminal
import verdicts
from cells import FREE, ONE_CORE, TWO_CORES
from environment import Watch, describe, raise_descriptors
from estimate import estimate_s, minutes
from plots import write_plots
from processes import BenchError, Interrupted, Processes
from report import make_report, write_json, write_markdown
from run import Context, measure_cell
from suites import SUITES, cells_of
from summary import summarize

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, SECONDS = 5, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 3, 0.5


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from None


def number_in(kind, low, high):
    def check(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"a number from {low} to {high} is needed, not {text!r}")
        return value

    return check


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench.sh", usage="bench.sh [options] [SUITE...]", allow_abbrev=False)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--quick", action="store_true", help=f"the most telling cells, {QUICK_ROUNDS} rounds of {QUICK_SECONDS} s")
    parser.add_argument("--list", action="store_true", help="print the cells and the time they take, and measure nothing")
    parser.add_argument("--cell", type=pattern, metavar="REGEX", help="only the cells whose name (suite/cell) it is found in")
    parser.add_argument("--rounds", type=number_in(int, 1, 1000), metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--seconds", type=number_in(float, 0.05, 600), metavar="S", help=f"of one run, default {SECONDS:.0f}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go, default bench/ in the build folder")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help=argparse.SUPPRESS)
    placement = parser.add_mutually_exclusive_group()
    for name, text in ((ONE_CORE, "both ends on one CPU"), (TWO_CORES, "each on a CPU of its own"), (FREE, "wherever (the default)")):
        placement.add_argument(f"--{name}", dest="placement", action="store_const", const=name, default=FREE, help=text)
    options = parser.parse_args()
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        parser.error(f"unknown suite {unknown[0]}; known: {', '.join(SUITES)}")
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.build = options.build.resolve()
    options.out = (options.out or options.build / "bench").resolve()
    options.cells = cells_of(options.suites, options.quick, options.cell)
    if not options.cells:
        parser.error("no cell has that name")
    return options


# ---- the run --------------------------------------------------------------------------------------


def measure_all(context, cells, records):
    suite = None
    for cell in cells:
        if cell.suite != suite:
            suite = cell.suite
            terminal.print_suite_head(suite)
        record = {}
        records.append(record)
        measure_cell(context, cell, record)
        summarize(record)
        terminal.print_cell(record, verdicts.problems_of(record))


def measure(options, processes, records):
    """The number of the signal that ended it early, or None."""
    directory = Path(tempfile.mkdtemp(prefix="mpklink-bench-"))
    directory.chmod(0o755)  # nginx's workers are another user when the suite is started by root
    context = Context(
        processes, options.build, directory, options.rounds, options.seconds, options.placement, terminal.progress
    )  # fmt: skip
    try:
        measure_all(context, options.cells, records)
        return None
    except Interrupted as interruption:
        print("\ninterrupted: what there is so far is written", file=sys.stderr)
        return interruption.number
    finally:
        processes.stop_all()
        shutil.rmtree(directory, ignore_errors=True)


def guards_of(records):
    entries = [entry for record in records for name, entry in record["modes"].items() if name == "mpklink"]
    return "/".join(sorted({guard for entry in entries for guard in entry.get("library", {}).get("guards", [])}))


def write_results(options, records, watch, complete):
    records = [record for record in records if record.get("modes")]
    for record in records:
        summarize(record)
    said = {
        "suites": options.suites or list(SUITES), "cell": options.cell and options.cell.pattern, "quick": options.quick,
        "rounds": options.rounds, "seconds": options.seconds, "placement": options.placement, "guards": guards_of(records),
    }  # fmt: skip
    report = make_report(records, describe(ROOT, options.build, watch), said, complete)
    options.out.mkdir(parents=True, exist_ok=True)
    files = [options.out / "results.json", options.out / "results.md"]
    plots = plots_of(report, options.out)
    write_json(report, files[0])
    write_markdown(report, files[1], plots)
    terminal.print_end(report, [*files, *plots])
    return report


def plots_of(report, directory):
    try:
        return write_plots(report, directory)
    except BenchError as error:
        report["problems"].append({"cell": "plots", "modes": [], "text": str(error)})
        return []


def main():
    options = parse_arguments()
    estimate = f"{len(options.cells)} cells, {options.rounds} rounds of {options.seconds} s: about "
    estimate += minutes(estimate_s(options.cells, options.rounds, options.seconds))
    if options.list:
        print("\n".join(cell.full_name for cell in options.cells))
        print(estimate)
        return 0
    print(estimate, flush=True)
    complaint = raise_descriptors(max(cell.workload.descriptors for cell in options.cells))
    if complaint:
        print(complaint, file=sys.stderr)
    watch, records = Watch(), []
    interrupted = measure(options, Processes(), records)
    report = write_results(options, records, watch, interrupted is None)
    if interrupted is not None:
        return 128 + interrupted
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
