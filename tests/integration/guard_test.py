# SPDX-License-Identifier: MIT
"""The guard of the shared memory, seen from the program that it protects: tests/programs/guard_*.cc.

A program touches guarded memory and prints what came of it; what must come of it depends on the guard. Every such test runs with
MPKLINK_GUARD=off too, where nothing may have faulted: so it is seen that the touches are real.
"""

import ctypes
import os
import pathlib
import platform
import re
import subprocess

import pytest

from harness import CLIENT, PROGRAMS, SERVER, SO, Combo

CASES = {
    "guard_poke": "pages gaps threads child wild overrun".split(),
}

CASE_LIMIT_S = 30
WARM_RING_BYTES = 2000

only_both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
neither_and_both = pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
all_guards = pytest.mark.parametrize("guard", ["pkey", "mprotect", "off"])


def why_no_pku() -> str:
    """Why this machine has no protection keys for the library; empty: it has."""
    if " ospke" not in pathlib.Path("/proc/cpuinfo").read_text():
        return "the CPU or the kernel has no protection keys (no ospke in /proc/cpuinfo)"
    if tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2]) < (5, 13):
        return f"Linux {platform.release()} is older than 5.13: its PKRU is not sound"
    libc = ctypes.CDLL(None, use_errno=True)
    key = libc.pkey_alloc(0, 0)
    if key < 0:
        return f"pkey_alloc fails: {os.strerror(ctypes.get_errno())}"
    libc.pkey_free(key)
    return ""


def need_pku() -> None:
    """Skips where there are no protection keys, unless the run was made to test just that."""
    reason = why_no_pku()
    if reason and os.environ.get("MPKLINK_TEST_FORCE_PKU") == "1":
        pytest.fail(f"MPKLINK_TEST_FORCE_PKU=1, but {reason}")
    if reason:
        pytest.skip(reason)


def use_guard(bench, guard) -> None:
    if guard == "pkey":
        need_pku()
    bench.settings["GUARD"] = guard


def tallies(text: str) -> dict:
    """Name → counts, of the TALLY lines that a program has printed."""
    return {
        name: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)}
        for name, counts in re.findall(r"^TALLY (\S+) (.*)$", text, re.M)
    }


def assert_tally(tally: dict, guard: str) -> None:
    """All touches ended as this guard ends them."""
    kind = {"pkey": "pkuerr", "mprotect": "accerr", "off": "let_through"}[guard]
    assert tally["touched"] > 0
    assert tally[kind] == tally["touched"], f"guard {guard}: every touch must count as {kind}: {tally}"
    assert tally["wrong_key"] == 0 and tally["wrong_place"] == 0 and tally["other"] == 0, tally


def run_case(bench, program: str, case: str, settings=None) -> str:
    """Both ends to their end; what the server's has printed."""
    bench.run_pair(program, f"--case={case}", timeout_s=CASE_LIMIT_S, settings=settings)
    return next(p.stdout() for p in bench.procs if p.name == "server")


# ---- touches of the program's own code -----------------------------------------------------------------------------------

TALLIES = {"threads": ["old-thread", "new-thread"]}
RESERVED = ["gaps", "overrun"]  # address space without memory: closed whatever the guard

# Pages of a channel (anonymous page, header, two rings of 256 KiB) and of the board.
LEAST_PAGES = 1 + 1 + 2 * 64 + 1


@only_both
@all_guards
@pytest.mark.parametrize("case", CASES["guard_poke"])
def test_poke(bench, case, guard):
    use_guard(bench, guard)
    text = run_case(bench, "guard_poke", case)
    found = tallies(text)
    assert list(found) == TALLIES.get(case, [case])
    for tally in found.values():
        assert_tally(tally, "mprotect" if case in RESERVED else guard)
        if case in ("pages", "threads", "child"):
            assert tally["touched"] >= 2 * LEAST_PAGES, tally
    if case == "pages":
        assert (int(re.search(r"^KEY (\d+)$", text, re.M).group(1)) > 0) == (guard == "pkey")
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES, exact=True)


@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.CLIENT, Combo.SERVER], ids=lambda c: c.value)
@pytest.mark.parametrize("case", CASES["guard_poke"])
def test_poke_nothing(bench, case):
    """Without a ring there is no guarded memory, and the programs say so."""
    for tally in tallies(run_case(bench, "guard_poke", case)).values():
        assert tally["touched"] == 0, tally
    bench.assert_ring()


@pytest.mark.parametrize("program", CASES)
@pytest.mark.parametrize("combo", [None], ids=["neither"])
def test_all_cases_are_run(program, combo):
    listed = subprocess.run([PROGRAMS / program, "list"], capture_output=True, text=True, check=True, timeout=10).stdout.split()
    assert listed == CASES[program]
