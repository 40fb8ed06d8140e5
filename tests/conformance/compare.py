# SPDX-License-Identifier: MIT
"""Compares a suite's outcomes with those of its baseline, and with the differences that are known."""

import dataclasses

from sandbox import SETTINGS


class BadList(Exception):
    pass


def read_differences(path, suite_names):
    """{(suite, setting, test id): reason}; a line may name several settings, separated by commas."""
    known = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=3)
        if len(words) != 4:
            raise BadList(f"{path.name}:{number}: expected `suite setting test-id  reason`")
        suite, settings, test_id, reason = words
        for setting in settings.split(","):
            if suite not in suite_names or setting not in SETTINGS or setting == "baseline":
                raise BadList(f"{path.name}:{number}: no suite {suite} or no setting {setting}")
            known[suite, setting, test_id] = reason
    return known


@dataclasses.dataclass
class Verdict:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    lines: list = dataclasses.field(default_factory=list)

    def fail(self, text):
        self.failed += 1
        self.lines.append(f"FAILED {text}")

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def compare(suite, setting, baseline, preloaded, known):
    """`baseline` and `preloaded` are {test id: status}; what passes in the baseline has to pass preloaded."""
    verdict = Verdict()
    for test_id, before in sorted(baseline.items()):
        if before != "pass":
            verdict.skipped += 1
            continue
        now = preloaded.get(test_id, "missing")
        reason = known.get((suite, setting, test_id))
        if now == "pass" and reason is None:
            verdict.passed += 1
        elif now == "pass":
            verdict.fail(f"{suite} {setting} {test_id}: no longer differs: remove this line from differences.txt")
        elif reason is None:
            verdict.fail(f"{suite} {setting} {test_id}: pass in the baseline, {now} preloaded")
        else:
            verdict.skipped += 1
            verdict.lines.append(f"known  {suite} {setting} {test_id}: {now}: {reason}")
    return verdict


def unknown_tests(suite, setting, baseline, known):
    """Lines of the list whose test does not exist, or does not pass without us either: they excuse nothing."""
    return [
        f"{suite} {setting} {test_id}: {baseline.get(test_id, 'missing')} in the baseline: remove this line from differences.txt"
        for (a, b, test_id) in sorted(known)
        if (a, b) == (suite, setting) and baseline.get(test_id) != "pass"
    ]
