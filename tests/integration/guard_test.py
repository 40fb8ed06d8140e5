# SPDX-License-Identifier: MIT
"""The guard of the shared memory, seen from the program that it protects: tests/programs/guard_*.cc.

A program touches guarded memory and prints what came of it; what must come of it depends on the guard. Every such test runs with
MPKLINK_GUARD=off too, where nothing may have faulted: so it is seen that the touches are real.
"""

import ctypes
import json
import os
import pathlib
import platform
import re
import struct
import subprocess

import pytest

from harness import BUILD, CLIENT, PROGRAMS, SERVER, Combo

CASES = {
    "guard_poke": "pages gaps threads child wild overrun reported core".split(),
    "guard_disclosure": "sends receives vectors race arguments readv own_keys".split(),
    "guard_disturb": (
        "storm storm_nodefer storm_altstack jump_asleep jump_end jump_busy cancel threads processes handler_forks"
        " handler_forks_exit"
    ).split(),
    "guard_bypass": ["table"],
    "guard_keys": "taken unchanged opened".split(),
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
    assert tally["wrong_key"] == 0 and tally["wrong_place"] == 0 and tally["wrong_way"] == 0 and tally["other"] == 0, tally


def run_case(bench, program: str, case: str, ending="server") -> str:
    """Both ends to their end; what one of them has printed."""
    bench.run_pair(program, f"--case={case}", timeout_s=CASE_LIMIT_S)
    return next(p.stdout() for p in bench.procs if p.name == ending)


# ---- touches of the program's own code -----------------------------------------------------------------------------------

TALLIES = {"threads": ["old-thread", "new-thread"]}
RESERVED = ["gaps", "overrun"]  # address space without memory: closed whatever the guard

# Pages of a channel (anonymous page, header, two rings of 256 KiB) and of the board.
LEAST_PAGES = 1 + 1 + 2 * 64 + 1


POKES = [case for case in CASES["guard_poke"] if case not in ("reported", "core")]


@only_both
@all_guards
@pytest.mark.parametrize("report", [1, 0])
def test_reported(bench, guard, report):
    """An access that nobody catches ends the process, and is told of on stderr: what, where in which connection, by which code."""
    use_guard(bench, guard)
    bench.settings["FAULT_REPORT"] = report
    text = run_case(bench, "guard_poke", "reported")
    ends = re.findall(r"^ENDED (\w+) (\d+)$", text, re.M)
    assert len(ends) >= 2, text  # a channel and a board at least
    assert set(ends) == ({("exit", "0")} if guard == "off" else {("signal", "11")}), text
    reports = re.findall(r"tried to (?:read|write to) guarded memory at 0x[0-9a-f]+; guard: (\w+)$", text, re.M)
    assert reports == ([] if guard == "off" or not report else [guard] * len(ends)), text
    if reports:
        assert re.search(r"that is byte \d+ of \d+ in the \w+.* of the connection that has descriptor \d+$", text, re.M), text
        assert re.search(r"that is byte \d+ of \d+ in the board shared with a peer process$", text, re.M), text
        assert len(re.findall(r"#0 0x[0-9a-f]+ .*stray_write.*\(.*/guard_poke\+0x[0-9a-f]+\)$", text, re.M)) == len(ends), text


def segments(core: pathlib.Path) -> dict:
    """(address, end) → bytes in the file, of each PT_LOAD of an ELF core."""
    data = core.read_bytes()
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    found = {}
    for i in range(count):
        kind, _, _, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", data, offset + i * size)
        if kind == 1:
            found[address, address + in_memory] = in_file
    return found


@only_both
@all_guards
def test_core(bench, guard):
    """A crash leaves its core as usual, and nothing of what was in the rings is in it."""
    pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if "/" in pattern or pattern.startswith("|"):
        pytest.skip(f"cores go elsewhere: core_pattern is {pattern}")
    use_guard(bench, guard)
    text = run_case(bench, "guard_poke", "core")
    assert "CORE 1" in text, text
    [core] = [file for file in bench.dir.iterdir() if file.read_bytes()[:4] == b"\x7fELF"]
    dumped = segments(core)
    guarded = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"^GUARDED (\w+) (\w+)$", text, re.M)]
    assert len(guarded) >= 2, text
    assert sum(in_file > 0 for in_file in dumped.values()) >= 3, dumped  # there is a core in it
    for begin, end in guarded:
        assert not [s for s, in_file in dumped.items() if in_file > 0 and s[0] < end and begin < s[1]], (hex(begin), dumped)
    core.unlink()
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES)


@only_both
@all_guards
@pytest.mark.parametrize("case", POKES)
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
@pytest.mark.parametrize("case", POKES)
def test_poke_nothing(bench, case):
    """Without a ring there is no guarded memory, and the programs say so."""
    for tally in tallies(run_case(bench, "guard_poke", case)).values():
        assert tally["touched"] == 0, tally
    bench.assert_ring()


# ---- pointers into it, given to the library ------------------------------------------------------------------------------


@only_both
@all_guards
@pytest.mark.parametrize("case", CASES["guard_disclosure"])
def test_disclosure(bench, case, guard):
    if case == "own_keys":
        need_pku()
    if case == "arguments" and guard == "off":
        pytest.skip("only the buffers of a call are checked by address; whatever else it reads and writes is for the key to refuse")
    use_guard(bench, guard)
    text = run_case(bench, "guard_disclosure", case)
    assert case == "own_keys" or int(re.search(r"^GUARDED (\d+)$", text, re.M).group(1)) >= 3, text
    if case == "race":
        # Either answer is right; both must have come, or nothing has been raced.
        assert all(int(re.search(rf"^{answer} (\d+)$", text, re.M).group(1)) > 0 for answer in ("REFUSED", "TAKEN")), text
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES, exact=True)


@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.CLIENT, Combo.SERVER], ids=lambda c: c.value)
@pytest.mark.parametrize("case", CASES["guard_disclosure"])
def test_disclosure_nothing(bench, case):
    """The programs are right on plain TCP, where they find nothing to point at."""
    if case == "own_keys":
        need_pku()
    text = run_case(bench, "guard_disclosure", case)
    assert case == "own_keys" or "GUARDED 0\n" in text
    bench.assert_ring()


# ---- what disturbs PKRU --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "combo,guard", [(Combo.NEITHER, None), (Combo.BOTH, "pkey"), (Combo.BOTH, "mprotect")], ids=["neither", "both-pkey", "both-mprotect"]
)
@pytest.mark.parametrize("case", CASES["guard_disturb"])
def test_disturbed(bench, case, guard):
    """The programs read PKRU back in every thread, handler and child; a gate that finds the key open is counted."""
    if guard is not None:
        use_guard(bench, guard)
    text = run_case(bench, "guard_disturb", case, ending="client")
    assert bool(re.search(r"^KEY [1-9]", text, re.M)) == (guard == "pkey")
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES)


# ---- programs with keys of their own -------------------------------------------------------------------------------------


@only_both
def test_all_keys_taken_auto(bench):
    """The client has no key left: its guard is off, and says so; the server's is not."""
    need_pku()
    bench.run_pair("guard_keys", "--case=taken", timeout_s=CASE_LIMIT_S)
    assert [line["guard"] for line in bench.stats(CLIENT).lines] == ["off"]
    assert [line["guard"] for line in bench.stats(SERVER).lines] == ["pkey"]
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES, exact=True, conserved=True)


@only_both
@pytest.mark.parametrize("setting", ["require", "pkey"])
def test_all_keys_taken_required(bench, setting):
    """Where a key is asked for there is no ring without it, and the reason is told."""
    need_pku()
    bench.run_pair("guard_keys", "--case=taken", timeout_s=CASE_LIMIT_S, settings={"GUARD": setting})
    assert bench.stats(CLIENT).plain["no-pku"] == 1, bench.stats(CLIENT)
    bench.assert_fell_back()


@neither_and_both
def test_own_keys_unchanged(bench):
    use_guard(bench, "pkey")
    run_case(bench, "guard_keys", "unchanged")
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES, exact=True, conserved=True)


@neither_and_both
def test_opened_by_the_program(bench):
    """What `gate_found_open` == 0 of all other tests is worth: here it is not 0, and the key is closed again."""
    need_pku()
    bench.settings["GUARD"] = "pkey"
    bench.run_pair("guard_keys", "--case=opened", timeout_s=CASE_LIMIT_S)
    if bench.combo is Combo.BOTH:
        bench.assert_ring_used(CLIENT, streams=1, min_bytes=WARM_RING_BYTES, exact=True)
        assert bench.stats(CLIENT).sum("gate_found_open") == 10
        assert bench.stats(SERVER).sum("gate_found_open") == 0


# ---- secret memory -------------------------------------------------------------------------------------------------------


def need_secret_memory() -> None:
    SYS_MEMFD_SECRET = 447
    fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_MEMFD_SECRET, 0)
    if fd < 0:
        pytest.skip(f"memfd_secret fails: {os.strerror(ctypes.get_errno())}")
    os.close(fd)


@only_both
@all_guards
def test_secret_memory(bench, guard):
    """A channel and a board are about 1 MiB of locked memory; the streams work as ever."""
    need_secret_memory()
    use_guard(bench, guard)
    bench.settings["BACKING"] = "secret"
    assert_tally(tallies(run_case(bench, "guard_poke", "pages"))["pages"], guard)
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES)


@only_both
@pytest.mark.parametrize("secretive", [CLIENT, SERVER], ids=lambda side: side.value)
def test_secret_memory_at_one_end(bench, secretive):
    """The connector makes the memory: one that wants it secret gets it; an acceptor that wants it and is offered another stays on TCP."""
    need_secret_memory()
    settings = {side: {"BACKING": "secret" if side is secretive else "memfd"} for side in (CLIENT, SERVER)}
    server = bench.start([bench.program("guard_poke"), "server", "--case=wild"], SERVER, settings=settings[SERVER], name="server")
    client = bench.start(
        [bench.program("guard_poke"), "client", f"--port={server.port()}", "--case=wild"], CLIENT, settings=settings[CLIENT], name="client"
    )
    bench.succeed(server)
    bench.succeed(client)
    if secretive is CLIENT:
        bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES)
    else:
        assert bench.stats(SERVER).plain["no-secret-memory"] == 1, bench.stats(SERVER)
        bench.assert_fell_back()


# ---- ways around a key that the kernel leaves open -----------------------------------------------------------------------

# What a protection key does not stop, tried by tests/programs/guard_bypass.cc: each is as documented (README.md, "What the guard does and
# does not do"), and a kernel or a change of ours that makes a difference is noticed, for better or worse.
BYPASSES = {
    "loads": "blocked",
    "process_vm_readv": "open",  # the kernel does not ask for the keys of memory that it takes for another's (mm/gup.c, FOLL_REMOTE)
    "process_vm_writev": "open",
    "proc_mem_read": "open",
    "proc_mem_write": "open",
    "memfd": "blocked",  # closed after mmap: no pread, no pidfd_getfd, no second mapping
    "map_files": "open",  # for CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN
    "map_files_unprivileged": "blocked",
    "mprotect": "blocked",  # keeps the key
    "mprotect_exec": "open",  # execute-only takes a key of the kernel's; back to RW, the pages have key 0
    "pkey_mprotect_0": "open",
    "mremap": "blocked",  # keeps the key
    "pkey_free": "open",  # and allocated again: the pages still have it
    "wrpkru": "open",  # any code may
    "forged_sigframe": "open",
    "madv_remove": "open",  # destroys, does not disclose
    "madv_dontneed": "blocked",
    "ptrace_by_parent": "open",
    "core_dump": "blocked",  # MADV_DONTDUMP
    "write_to_pipe": "blocked",  # EFAULT
    "vmsplice": "blocked",
    "io_uring_buffers": "blocked",  # cannot be registered while closed
}  # fmt: skip

# What only the key stops: without it all of these are open, or the table above would show nothing.
STOPPED_BY_THE_KEY = {"loads", "mprotect", "mremap", "madv_dontneed", "write_to_pipe", "vmsplice", "io_uring_buffers"}

# Closed by page rights instead of a key: the kernel's own ways respect those (but not the forced reads of /proc/PID/mem and ptrace), and
# anybody may put them back.
BY_PAGE_RIGHTS = {
    "process_vm_readv": "blocked", "process_vm_writev": "blocked", "proc_mem_write": "blocked", "mprotect": "open",
    "pkey_free": "blocked", "wrpkru": "blocked", "forged_sigframe": "blocked",
}  # fmt: skip

# Secret memory is in no kernel mapping (mm/secretmem.c) and locked.
IN_SECRET = dict.fromkeys(
    ["process_vm_readv", "process_vm_writev", "proc_mem_read", "proc_mem_write", "map_files", "mprotect_exec", "madv_remove", "ptrace_by_parent"],
    "blocked",
)


def may_open_map_files() -> bool:
    CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE = 21, 40
    effective = int(re.search(r"^CapEff:\s*(\w+)$", pathlib.Path("/proc/self/status").read_text(), re.M).group(1), 16)
    return bool(effective >> CAP_SYS_ADMIN & 1 or effective >> CAP_CHECKPOINT_RESTORE & 1)


@only_both
@pytest.mark.parametrize(
    "guard,backing", [("pkey", "memfd"), ("mprotect", "memfd"), ("off", "memfd"), ("pkey", "secret")], ids=["pkey", "mprotect", "off", "pkey-secret"]
)
def test_bypasses(bench, guard, backing):
    need_pku()  # for off too: some attempts use instructions of it
    use_guard(bench, guard)
    if backing == "secret":
        need_secret_memory()
        bench.settings["BACKING"] = backing
    text = run_case(bench, "guard_bypass", "table")
    found = dict(re.findall(r"^BYPASS (\S+) (\S+)$", text, re.M))
    assert list(found) == list(BYPASSES)
    absent = [name for name, outcome in found.items() if outcome == "absent"]
    print(f"not on this machine: {absent}")
    expected = dict(BYPASSES)
    if not may_open_map_files():
        expected["map_files"] = "blocked"
    if guard == "mprotect":
        expected.update(BY_PAGE_RIGHTS)
    if backing == "secret":
        expected.update(IN_SECRET)
    if guard == "off":
        expected.update(dict.fromkeys(STOPPED_BY_THE_KEY, "open"))
    differs = {name: f"{outcome}, not {expected[name]}" for name, outcome in found.items() if outcome not in ("absent", expected[name])}
    assert not differs
    assert "loads" not in absent
    bench.assert_ring(streams=1, min_bytes=WARM_RING_BYTES)


# ---- the bench -----------------------------------------------------------------------------------------------------------

BENCH = BUILD / "tools" / "mpklink-bench"


@pytest.mark.parametrize("combo", [None], ids=["neither"])
def test_bench(combo):
    """It says what it measured, or that there is nothing to measure; nothing is asked of the figures but that there are some."""
    run = lambda *options: subprocess.run(
        [BENCH, "gate", "--rounds=3", "--iterations=100", *options], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    found = json.loads(run("--json"))
    assert found["pku"] == (why_no_pku() == "")
    if found["pku"]:
        assert [r["name"] for r in found["results"]] == ["loop", "rdpkru", "wrpkru", "gate_off", "gate", "gate_load"]
        assert all(r["ns"] > 0 and r["cycles"] > 0 for r in found["results"])
    else:
        assert len(run().splitlines()) == 1


@pytest.mark.parametrize("program", CASES)
@pytest.mark.parametrize("combo", [None], ids=["neither"])
def test_all_cases_are_run(program, combo):
    listed = subprocess.run([PROGRAMS / program, "list"], capture_output=True, text=True, check=True, timeout=10).stdout.split()
    assert listed == CASES[program]
