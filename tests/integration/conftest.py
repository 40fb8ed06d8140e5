# SPDX-License-Identifier: MIT
"""Fixtures and limits; see harness.py for what a test can do."""

import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import harness  # noqa: E402
from harness import ALL_COMBOS, Bench, Combo, Hang  # noqa: E402

TEST_LIMIT_S = 90
SLOW_LIMIT_S = 1800


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes rather than seconds; left out by -m 'not slow'")
    config.addinivalue_line("markers", "beyond: asks for more than issue 2 does (a design rule that may come later)")
    config.addinivalue_line("markers", "no_ring: must not be upgraded even with both ends preloaded")
    config.addinivalue_line("markers", f"limit(seconds): the time a test may take, instead of {TEST_LIMIT_S} s")
    harness.become_subreaper()


def pytest_generate_tests(metafunc):
    """Every test that takes a `bench` runs in the four combinations, unless it is parametrised over `combo` itself."""
    if "combo" in metafunc.fixturenames:
        own = [m for m in metafunc.definition.iter_markers("parametrize") if "combo" in str(m.args[0]).split(",")]
        if not own:
            metafunc.parametrize("combo", ALL_COMBOS, ids=lambda c: c.value)


@pytest.fixture
def combo():
    """Replaced by pytest_generate_tests."""
    return Combo.NEITHER


@pytest.fixture
def bench(combo, request):
    b = Bench(combo)
    yield b
    left = b.cleanup()
    failed = getattr(request.node, "call_failed", True)
    assert failed or not left, f"the test left processes running: {left}"


@pytest.fixture(scope="session")
def docroot():
    """The files that web servers serve: name → size and checksum in `sizes` and `sums`."""

    class Docroot:
        dir = pathlib.Path(tempfile.mkdtemp(prefix="mpklink-docroot-"))
        sizes = {"f0": 0, "f1": 1, "f100k": 100_000, "f2m": 2_000_000, "f200m": 200_000_000}
        sums = {}

    Docroot.dir.chmod(0o755)
    for name, size in Docroot.sizes.items():
        harness.make_file(Docroot.dir / name, size)
        Docroot.sums[name] = harness.sha256(Docroot.dir / name)
    yield Docroot
    shutil.rmtree(Docroot.dir, ignore_errors=True)


# ---- nothing may hang ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    marker = item.get_closest_marker("limit")
    limit = marker.args[0] if marker else SLOW_LIMIT_S if item.get_closest_marker("slow") else TEST_LIMIT_S

    def too_long(signum, frame):
        raise Hang(f"the test took more than {limit} s\n{harness.stacks(harness.descendants())}")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit)
    try:
        outcome = yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    item.call_failed = outcome.excinfo is not None


def pytest_sessionfinish(session, exitstatus):
    """Nothing that we started may outlive us."""
    harness.reap_orphans()
    left = [pid for pid in harness.descendants() if not harness.is_zombie(pid)]
    for entry in os.listdir("/proc"):  # also what has got away from being our descendant
        if entry.isdigit() and int(entry) not in left and int(entry) != os.getpid():
            if harness.RUN_ID in harness.read_text(f"/proc/{entry}/environ"):
                left.append(int(entry))
    if left:
        print("\nprocesses that survived the tests:", *(harness.read_text(f"/proc/{p}/cmdline") for p in left), sep="\n  ")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items):
    """Marks what known_failures.txt lists: run, and counted as skipped with the reason."""
    known = {}
    for line in (pathlib.Path(__file__).parent / "known_failures.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            node, reason = line.split("  ", 1)
            known[node] = reason
    for item in items:
        reason = known.get(item.nodeid.split("/")[-1])
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
