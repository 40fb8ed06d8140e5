# SPDX-License-Identifier: MIT
"""What is shown while the suite runs, and at its end."""

import sys

import report as reports
import wording
from modes import MODES

NAME_WIDTH, RATE_WIDTH, RATIO_WIDTH = 36, 11, 10
RATIOS = ("mpklink", "guard-off", "off", "one-end")


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def print_suite_head(suite):
    columns = [f"{name:>{RATE_WIDTH}}" for name in MODES]
    ratios = [f"{name:>{RATIO_WIDTH}}" for name in RATIOS]
    print(f"\n{suite:<{NAME_WIDTH}}{''.join(columns)}  |{''.join(ratios)} (ratio to tcp)", flush=True)


def print_cell(record, problems):
    progress("")
    columns = [f"{wording.rate_of(record, name):>{RATE_WIDTH}}" for name in MODES]
    ratios = [f"{wording.ratio(record['ratios'].get(name)):>{RATIO_WIDTH}}" for name in RATIOS]
    print(f"{record['name'].partition('/')[2]:<{NAME_WIDTH}}{''.join(columns)}  |{''.join(ratios)}  {wording.unit(record['unit'])}", flush=True)
    for name, entry in record["modes"].items():
        if "not_applicable" in entry:
            print(f"    {name} not measured: {entry['not_applicable']}")
    for problem in problems:
        print(f"    {', '.join(problem['modes'])}: {problem['text']}", flush=True)


def print_end(report, files):
    for one in report["comparisons"]:
        print(f"\n{one['suite']}: {one['text']}: {wording.ratio_with_rounds(one)}", end="")
    print()
    for title, lines in (
        ("losing cells (ratio to TCP, lowest–highest of the rounds)", [reports.losing_line(one) for one in report["losing"]]),
        ("notes", report["notes"]),
        ("problems", [reports.problem_line(one) for one in report["problems"]]),
    ):
        print(f"\n{title}: {'' if lines else 'none'}")
        for line in lines:
            print(f"    {line}")
    run = report["environment"]["run"]
    print(f"\n{run['seconds']:.0f} s; steal {run['steal_percent']} %, load {run['load_before'][0]} before, {run['load_after'][0]} after")
    print("written: " + ", ".join(str(path) for path in files), flush=True)
