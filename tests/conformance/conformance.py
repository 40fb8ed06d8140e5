#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs other people's test suites plain and preloaded and compares them test by test. See README.md."""

import argparse
import json
import os
import pathlib
import signal
import sys
import time

import command_suites
import cpython_suite
from compare import BadList, Verdict, compare, read_differences, unknown_tests
from sandbox import SETTINGS, USES_RINGS, Sandbox
from sources import CannotPrepare

HERE = pathlib.Path(__file__).resolve().parent
RETRIES = 2


def say(text):
    print(text, flush=True)


def arguments(suites):
    parser = argparse.ArgumentParser(prog="scripts/conformance.sh", description=__doc__)
    parser.add_argument("suite", nargs="*", help="what to run (default: all; --list names them)")
    parser.add_argument("--setting", action="append", choices=[s for s in SETTINGS if s != "baseline"], help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a selection that takes about a minute, without the setting off")
    parser.add_argument("--list", action="store_true", help="name the suites and end")
    parser.add_argument("--keep-baseline", action="store_true", help="take the baseline from an earlier run if there is one")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one test (default 60)")
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path(os.environ.get("MPKLINK_BUILD", HERE.parents[1] / "build")))
    args = parser.parse_args()
    unknown = set(args.suite) - {suite.name for suite in suites}
    if unknown:
        parser.error(f"unknown: {' '.join(sorted(unknown))}; --list names the suites")
    return args


class Run:
    def __init__(self, args):
        self.args = args
        self.library = args.build / "preload/libmpklink.so"
        self.results = args.build / "conformance"
        self.results.mkdir(parents=True, exist_ok=True)
        self.upgraded = {}  # streams by setting

    def outcomes(self, suite, setting, known=()):
        """({test id: status}, statistics); what did not pass has been run again alone, but for what is known not to."""
        kept = self.results / f"{suite.name}.{setting}{'.quick' if self.args.quick else ''}.json"
        if setting == "baseline" and self.args.keep_baseline and kept.exists():
            return {test_id: one["status"] for test_id, one in json.loads(kept.read_text())["tests"].items()}, None
        begin = time.monotonic()
        with Sandbox(setting, self.library, suite.tiny) as sandbox:
            found = suite.run(sandbox, self.args.quick, self.args.limit, known if self.args.quick else ())
            rings = sandbox.rings()
            tests = {test_id: {"status": one.status, "detail": one.detail} for test_id, one in found.items()}
            for test_id, one in found.items():
                if one.status not in ("pass", "skip") and test_id not in known:
                    self.again(suite, sandbox, test_id, tests[test_id])
        kept.write_text(json.dumps({"tests": tests, "rings": vars(rings)}, indent=1) + "\n")
        note = f": {rings}" if setting != "baseline" else ""
        say(f"{suite.name} {setting}: {summary(tests)} in {time.monotonic() - begin:.0f} s{note}")
        return {test_id: one["status"] for test_id, one in tests.items()}, rings

    def settings(self):
        return self.args.setting or (USES_RINGS if self.args.quick else [name for name in SETTINGS if name != "baseline"])

    def again(self, suite, sandbox, test_id, kept):
        statuses = [kept["status"]]
        while len(statuses) <= RETRIES and statuses[-1] != "pass":
            statuses.append(suite.run_alone(sandbox, test_id, self.args.limit).status)
        kept["status"] = statuses[-1]
        kept["tries"] = statuses
        if statuses[-1] == "pass":
            say(f"flaky  {suite.name} {sandbox.setting} {test_id}: {', then alone '.join(statuses)}")

    def suite(self, suite, known):
        total = Verdict()
        baseline, _ = self.outcomes(suite, "baseline")
        if "pass" not in baseline.values():
            total.fail(f"{suite.name}: nothing passes in the baseline")
        for setting in self.settings():
            preloaded, rings = self.outcomes(suite, setting, [c for (a, b, c) in known if (a, b) == (suite.name, setting)])
            verdict = compare(suite.name, setting, baseline, preloaded, known)
            self.upgraded[setting] = self.upgraded.get(setting, 0) + rings.upgraded
            check_rings(suite, setting, rings, verdict, not self.args.quick)
            if not self.args.quick:
                for text in unknown_tests(suite.name, setting, baseline, known):
                    verdict.fail(text)
            for line in verdict.lines:
                say(line)
            total.add(verdict)
        return total


def summary(tests):
    counts = {}
    for one in tests.values():
        counts[one["status"]] = counts.get(one["status"], 0) + 1
    return ", ".join(f"{counts[status]} {status}" for status in sorted(counts))


def check_rings(suite, setting, rings, verdict, whole):
    """Bytes that arrive prove nothing: TCP is underneath. A selection may happen to upgrade nothing, a whole suite may not."""
    if rings.processes == 0:
        verdict.fail(f"{suite.name} {setting}: no process wrote statistics: was the library there at all?")
    if setting in USES_RINGS and suite.rings_expected and whole and (rings.upgraded == 0 or rings.bytes == 0):
        verdict.fail(f"{suite.name} {setting}: no stream was upgraded: everything ran over TCP and shows nothing")
    if setting not in USES_RINGS and rings.upgraded != 0:
        verdict.fail(f"{suite.name} {setting}: {rings.upgraded} streams upgraded by a library that is off")
    if rings.gate_found_open != 0:
        verdict.fail(f"{suite.name} {setting}: the gate was found open {rings.gate_found_open} times")


def main():
    signal.signal(signal.SIGTERM, lambda *unused: sys.exit(143))  # so that what runs in the sandbox ends, too
    suites = cpython_suite.suites() + command_suites.suites()
    args = arguments(suites)
    chosen = [s for s in suites if (s.name in args.suite or not args.suite) and not (args.quick and s.quick == [])]
    if args.list:
        for suite in chosen:
            say(suite.name)
        return 0
    run = Run(args)
    if not run.library.exists():
        say(f"{run.library} is not built")
        return 1
    total = Verdict()
    try:
        known = read_differences(HERE / "differences.txt", {suite.name for suite in suites})
        for suite in chosen:
            suite.prepare(run.results)
            total.add(run.suite(suite, known))
    except (BadList, CannotPrepare) as error:
        say(f"FAILED {error}")
        total.failed += 1
    for setting in USES_RINGS if args.quick else ():
        if run.upgraded.get(setting) == 0 and any(suite.rings_expected for suite in chosen):
            total.fail(f"{setting}: no stream was upgraded in any suite")
            say(total.lines[-1])
    say(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
