# SPDX-License-Identifier: MIT
"""Programs that take SIGSEGV for their own ends (the JVM, node, Go with cgo): with the library and its fault report they go on as ever."""

import re
import shutil
import subprocess

import pytest

from guard_test import use_guard
from harness import SCRIPTS, SERVER, Combo

ROUNDS = 2000
MESSAGE_BYTES = 500

settings = pytest.mark.parametrize(
    "combo,guard,report",
    [(Combo.NEITHER, "off", 0), (Combo.BOTH, "pkey", 1), (Combo.BOTH, "pkey", 0), (Combo.BOTH, "off", 1)],
    ids=["neither", "pkey", "pkey-unreported", "off"],
)


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def assert_undisturbed(bench, guard, report, argv, faults) -> None:
    """It prints how many of its faults it has caught: all; nobody reports one; and the messages went over the ring."""
    use_guard(bench, guard)
    bench.settings["FAULT_REPORT"] = report
    text = bench.run(argv, SERVER, timeout_s=120)
    assert f"checked {ROUNDS} rounds" in text
    counts = dict(re.findall(r"(\d+) ([a-z ]+)", text.split("rounds,")[1]))
    assert sorted(counts) == sorted(str(n) for n in faults), text
    assert "guarded memory" not in bench.all_output()
    bench.assert_ring(streams=2, min_bytes=2 * (ROUNDS - 20) * MESSAGE_BYTES, sides=[SERVER])


@settings
def test_node_traps(bench, guard, report):
    assert_undisturbed(bench, guard, report, ["node", SCRIPTS / "node_trap.js", ROUNDS], [ROUNDS])


@settings
def test_jvm_null_checks(bench, guard, report):
    need("java")
    if subprocess.run(["java", "--list-modules"], capture_output=True, text=True).stdout.find("jdk.compiler") < 0:
        pytest.skip("this java has no compiler")
    # Compiled at once, or the interpreter would compare instead of fault.
    argv = ["java", "-XX:TieredStopAtLevel=1", SCRIPTS / "Faults.java", ROUNDS]
    assert_undisturbed(bench, guard, report, argv, [ROUNDS, ROUNDS // 100])


@pytest.fixture(scope="module")
def go_program(tmp_path_factory):
    need("go")
    where = tmp_path_factory.mktemp("go")
    built = subprocess.run(
        ["go", "build", "-o", where / "faults", SCRIPTS / "faults.go"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(where), "CGO_ENABLED": "1", "GOFLAGS": "-mod=mod"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    where.chmod(0o755)
    return where / "faults"


@settings
def test_go_nil_pointers(bench, guard, report, go_program):
    assert_undisturbed(bench, guard, report, [go_program, ROUNDS], [ROUNDS])
