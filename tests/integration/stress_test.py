# SPDX-License-Identifier: MIT
"""tests/programs/stress.cc: random socket calls on many connections, every byte checked, under unusual settings."""

import os
import time

import pytest

from harness import CLIENT, SERVER, Combo, Hang, Stats, descendants, stacks

SEED = int(os.environ.get("MPKLINK_SEED", time.time_ns() // 1000 % 1_000_000))
SECONDS = float(os.environ.get("MPKLINK_STRESS_SECONDS", 8))
EXTRA = os.environ.get("MPKLINK_STRESS_OPTIONS", "").split()  # as --skip=name or --lenient=name: to look behind a known fault
DRAIN_S = 100  # the connections that are open at the end of the time have their scripted end

# Settings, bytes of a direction and of a call, at most. Small rings and slow guards move fewer bytes a second: the connections are shorter,
# so that there are as many ends, and the calls smaller, so that there are as many before and after an upgrade.
VARIANTS = {
    "default": ({}, 1_500_000, 300_000),
    "ring4-warm0": ({"RING_KIB": 4, "WARMUP": 0}, 400_000, 100_000),
    "ring64B": ({"RING_KIB": "64B"}, 60_000, 4_000),
    "mprotect": ({"GUARD": "mprotect"}, 120_000, 4_000),
    "tiny-mprotect": ({"RING_KIB": 4, "WARMUP": 0, "SPIN_US": 0, "GUARD": "mprotect"}, 40_000, 3_000),
}
CASES = [(combo, name) for combo in Combo for name in ("default",)] + [(Combo.BOTH, name) for name in VARIANTS if name != "default"]
variants = pytest.mark.parametrize("combo,variant", CASES, ids=[f"{combo.value}-{name}" for combo, name in CASES])


def watch(bench, procs, limit_s):
    """Until all have ended. The first that hangs or fails says why, with the stacks of all."""
    deadline = time.monotonic() + limit_s
    while any(p.running() for p in procs):
        for p in procs:
            if "HANG" in p.stdout() or time.monotonic() > deadline:
                raise Hang(f"{p.name}: no progress\n{stacks(descendants())}\n{bench.all_output()}")
            assert p.running() or p.popen.returncode == 0, f"{p.name} failed\n{bench.all_output()}"
        time.sleep(0.05)
    for p in procs:
        bench.succeed(p)


def assert_mostly_ring(bench, sides, pids):
    """Many streams were upgraded, and the ring carried more than TCP. Forked children write lines of their own: left out."""
    if bench.combo is Combo.BOTH:
        for side in sides:
            stats = Stats([line for line in bench.stats(side).lines if line["pid"] in pids])
            # With the slow guard there are few connections, and a ring that is full for half a second goes back to TCP.
            bench.assert_ring_used(side, streams=4 if "GUARD" in bench.settings else 8, min_bytes=100_000)
            if "--revoke=1" not in EXTRA and "GUARD" not in bench.settings:
                assert stats.ring > stats.tcp / 4, f"nearly all bytes went over TCP on the {side.value} side\n{stats}"
    bench.assert_gates()


def run_stress(bench, variant, seconds, one_process):
    settings, volume, chunk = VARIANTS[variant]
    bench.settings = settings
    print(f"MPKLINK_SEED={SEED}")
    options = [f"--seed={SEED}", f"--seconds={int(seconds)}", f"--max-bytes={volume}", f"--max-chunk={chunk}", "--hang-wait=60", *EXTRA]
    if settings.get("GUARD") == "mprotect":
        # The threads of a process pass its gate one at a time: slow, and slower still beside other work.
        options += ["--connections=8", "--workers=3", "--patience=60"]
    program = bench.program("stress")
    if one_process:
        procs = [bench.start([program, "both", *options], SERVER)]
    else:
        server = bench.start([program, "server", *options], SERVER)
        procs = [server, bench.start([program, "client", f"--port={server.port()}", *options], CLIENT)]
    watch(bench, procs, seconds + DRAIN_S)
    assert_mostly_ring(bench, [SERVER] if one_process else [SERVER, CLIENT], [p.pid for p in procs])
    if bench.combo in (Combo.CLIENT, Combo.SERVER) and not one_process:
        for side in bench.sides():
            bench.assert_not_used(side)


@variants
def test_stress(bench, variant):
    run_stress(bench, variant, SECONDS, one_process=False)


@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
@pytest.mark.parametrize("variant", ["default", "tiny-mprotect"])
def test_stress_one_process(bench, variant):
    run_stress(bench, variant, SECONDS, one_process=True)


@pytest.mark.slow
@pytest.mark.parametrize("combo", [Combo.BOTH], ids=lambda c: c.value)
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_stress_long(bench, variant):
    run_stress(bench, variant, 15 * SECONDS, one_process=False)


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=lambda c: c.value)
def test_an_exit_beside_a_receive_is_a_reset(bench):
    """The survivor asked whether its peer was dead between the FIN of its close and the moment in which the kernel calls it so."""
    rounds = 600  # one in some 4000 was silent
    bench.settings = {"WARMUP": 0}
    parent = bench.start([bench.program("exit_unread"), "run", f"--rounds={rounds}"], SERVER)
    bench.succeed(parent)
    own = Stats([line for line in bench.stats(SERVER).lines if line["pid"] == parent.pid])
    assert own.upgraded == rounds, f"a round on TCP shows nothing\n{own}"
