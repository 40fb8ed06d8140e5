# SPDX-License-Identifier: MIT
"""The promises of TCP, call by call: tests/programs/semantics_*.cc, as two processes and as one."""

import subprocess

import pytest

from harness import PROGRAMS, SERVER, Combo, Side
from program_cases import (
    BEYOND, BOTH_ENDS_IN_SERVER, CASES, COMBO_VARIANT_IDS, COMBO_VARIANTS, FALLS_BACK, IN_ONE_PROCESS, NOT_IN_ONE_PROCESS, ONE_PROCESS_IDS,
    ONE_PROCESS_VARIANTS, ORPHANS, REVOKES, RING_BYTES, RING_BYTES_AT_MOST, SILENT,
)  # fmt: skip

# Of the warm-up's 8000 bytes both ways at least a quarter must have gone over the ring before a case begins.
WARM_RING_BYTES = 2000

CASE_LIMIT_S = 15  # none takes more than a second


def case_params(exclude=(), programs=CASES):
    return [
        pytest.param(program, case, id=f"{program}-{case}", marks=[pytest.mark.beyond] if (program, case) in BEYOND else [])
        for program in programs
        for case in CASES[program]
        if case not in exclude
    ]


def with_slow_variants(variants, ids):
    """Plain, one end, both, and the setting that finds most; what is between them takes minutes."""
    return [
        pytest.param(*variant, id=name, marks=[pytest.mark.slow] if name in ("both-ring4", "both-warm0", "both-mprotect") else [])
        for variant, name in zip(variants, ids)
    ]


def skip_if_missing(program, case):
    """Some kernels and containers have no io_uring or forbid pidfd_getfd: the program knows."""
    reason = subprocess.run(
        [PROGRAMS / program, "missing", f"--case={case}"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("combo,settings", with_slow_variants(COMBO_VARIANTS, COMBO_VARIANT_IDS))
@pytest.mark.parametrize("program,case", case_params())
def test_two_processes(bench, program, case, settings):
    bench.settings = settings
    skip_if_missing(program, case)
    bench.run_pair(program, f"--case={case}", timeout_s=CASE_LIMIT_S)
    if (program, case) in ORPHANS:
        bench.wait_for_orphans()
    if bench.combo is Combo.SERVER and (program, case) in BOTH_ENDS_IN_SERVER:
        return
    if (program, case) in FALLS_BACK:
        bench.assert_fell_back()
        return
    bench.assert_ring(streams=1, min_bytes=RING_BYTES.get((program, case), WARM_RING_BYTES), sides=reporting_sides(program, case))
    if (program, case) in REVOKES:
        bench.assert_revoked()
    if (program, case) in RING_BYTES_AT_MOST:
        bench.assert_ring_at_most(RING_BYTES_AT_MOST[program, case])


def reporting_sides(program, case):
    """All but the one that cannot say at its end what it has done."""
    return [side for side in Side if side is not SILENT.get((program, case))]


@pytest.mark.parametrize("combo,settings", with_slow_variants(ONE_PROCESS_VARIANTS, ONE_PROCESS_IDS))
@pytest.mark.parametrize("program,case", case_params(NOT_IN_ONE_PROCESS, IN_ONE_PROCESS))
def test_one_process(bench, program, case, settings):
    bench.settings = settings
    skip_if_missing(program, case)
    bench.succeed(bench.start([bench.program(program), "both", f"--case={case}"], SERVER), CASE_LIMIT_S)
    bench.assert_ring(streams=2, min_bytes=2 * WARM_RING_BYTES, sides=[SERVER])


@pytest.mark.parametrize("case", [case for case in CASES["semantics_data"] if ("semantics_data", case) not in BEYOND])
def test_fortified(bench, case):
    """The same calls through __recv_chk, __read_chk and so on."""
    bench.run_pair("semantics_data_fortified", f"--case={case}")
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES)


@pytest.mark.parametrize("program", CASES)
@pytest.mark.parametrize("combo", [None], ids=["neither"])
def test_all_cases_are_run(program, combo):
    listed = subprocess.run([PROGRAMS / program, "list"], capture_output=True, text=True, check=True, timeout=10).stdout.split()
    assert listed == CASES[program]
