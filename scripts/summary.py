#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Adds up the results of a test run (Catch2's closing lines, pytest's JUnit files, other suites' last lines) and prints the closing line.
A program that ended badly counts as one failure even when its file says nothing, and so does one that wrote no file."""
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree


def count_catch(path):
    """The same of a Catch2 program's output, by test cases."""
    text = path.read_text(errors="replace")
    if found := re.search(r"^All tests passed \(.* in (\d+) test cases?\)", text, re.MULTILINE):
        return int(found[1]), 0, 0, {}
    if found := re.search(r"^test cases: +\d+ \|(?: +(\d+) passed \|)? +(\d+) failed", text, re.MULTILINE):
        return int(found[1] or 0), int(found[2]), 0, {}
    return 0, 0, 0, {}


def count_junit(path):
    """(passed, failed, skipped, why skipped) of one JUnit file."""
    passed = failed = skipped = 0
    reasons = {}
    for case in ElementTree.parse(path).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            print(f"FAILED {case.get('classname')}::{case.get('name')}")
        elif skip is not None:
            skipped += 1
            reason = skip.get("message", "no reason given")
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            passed += 1
    return passed, failed, skipped, reasons


def count_line(path):
    """(passed, failed, skipped) of a suite that says so in its last line."""
    found = re.findall(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?", path.read_text(errors="replace"), re.MULTILINE)
    return (*(int(n or 0) for n in found[-1]), {}) if found else (0, 0, 0, {})


def main(directory):
    total = [0, 0, 0]
    for code in sorted(pathlib.Path(directory).glob("*.exit")):
        results, catch = code.with_suffix(".xml"), code.with_suffix(".txt")
        ended_well = code.read_text().split()[-1] == "0"
        line = code.with_suffix(".line")
        counted = count_catch(catch) if catch.exists() else count_line(line) if line.exists() else (0, 0, 0, {})
        if results.exists() and results.stat().st_size > 0:
            try:
                counted = count_junit(results)
                again = results.with_name(f"{code.stem}.again.xml")
                if again.exists() and counted[1]:
                    passed_again, failed_again, _, _ = count_junit(again)
                    print(f"run again: {passed_again} passed the second time, {failed_again} failed twice")
                    counted = (counted[0] + counted[1] - failed_again, failed_again, *counted[2:])
            except ElementTree.ParseError:
                ended_well = False
        passed, failed, skipped, reasons = counted
        # A suite that says why it skipped all of it passes; one that ran nothing does not.
        if failed == 0 and (not ended_well or passed == 0 and not (line.exists() and skipped)):
            print(f"FAILED {code.stem}: {code.read_text().strip()}, {passed} tests passed")
            failed = 1
        for reason, times in reasons.items():
            print(f"skipped {times}: {reason}")
        total = [a + b for a, b in zip(total, (passed, failed, skipped))]
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")
    return 1 if total[1] or not total[0] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
