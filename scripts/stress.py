# SPDX-License-Identifier: MIT
"""The runs of stress.sh: ring sizes × warm-up × guard in turn until the time is over; says what failed and how to repeat it."""

import argparse
import itertools
import os
import pathlib
import subprocess
import sys
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(os.environ.get("MPKLINK_BUILD", REPO / "build")).resolve()
sys.path.insert(0, str(REPO / "tests" / "integration"))

import harness  # noqa: E402

RUN_S = 20
DRAIN_S = 120
VOLUME = {"64B": (60_000, 4_000), "4": (400_000, 100_000), "256": (1_500_000, 300_000)}  # of a direction, of a call: at most


def parse():
    own, options = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, options = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(prog="stress.sh")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1000 % 1_000_000)
    parser.add_argument("--ring", choices=list(VOLUME))
    return parser.parse_args(own), options


def all_settings(ring):
    rings = [ring] if ring else list(VOLUME)
    for guard, warmup, size in itertools.product([None, "mprotect"], [None, "0"], rings):
        settings = {"RING_KIB": size}
        if guard:
            settings["GUARD"] = guard
        if warmup:
            settings["WARMUP"] = warmup
        yield settings


def finish(bench, procs):
    """Why it failed, or None. One end that fails takes the other with it: both are shown."""
    deadline = time.monotonic() + RUN_S + DRAIN_S
    while any(p.running() for p in procs):
        hung = [p for p in procs if "HANG" in p.stdout()] or (procs if time.monotonic() > deadline else [])
        if hung:
            return f"hang\n{harness.stacks(harness.descendants())}\n{bench.all_output()}"
        if any(not p.running() and p.popen.returncode != 0 for p in procs):
            time.sleep(0.5)
            break
        time.sleep(0.1)
    if any(p.running() or p.popen.returncode != 0 for p in procs):
        return f"failed\n{bench.all_output()}"
    for side in harness.Side:
        # Forked children write lines of their own.
        stats = harness.Stats([line for line in bench.stats(side).lines if line["pid"] in [p.pid for p in procs]])
        if stats.upgraded < 8:
            return f"only {stats.upgraded} streams were upgraded\n{stats}"
        # A ring that is full for half a second goes back to TCP: with that guard that happens.
        if "GUARD" not in bench.settings and stats.ring <= stats.tcp / 4 and not any(p for p in OPTIONS if p.startswith("--revoke=1")):
            return f"TCP carried more than the ring\n{stats}"
        if stats.sum("gate_found_open"):
            return f"a gate was found open\n{stats}"
    return None


def one_run(seed, settings):
    bench = harness.Bench(harness.Combo.BOTH)
    bench.settings = settings
    slow = 4 if "GUARD" in settings else 1
    volume, chunk = (most // slow for most in VOLUME[settings["RING_KIB"]])
    options = [f"--seed={seed}", f"--seconds={RUN_S}", f"--max-bytes={volume}", f"--max-chunk={chunk}", "--hang-wait=60", "--patience=60", *OPTIONS]
    if "GUARD" in settings:
        # The threads of a process pass its gate one at a time.
        options += ["--connections=8", "--workers=3"]
    program = bench.program("stress")
    server = bench.start([program, "server", *options], harness.SERVER, name="server")
    client = bench.start([program, "client", f"--port={server.port()}", *options], harness.CLIENT, name="client")
    why = finish(bench, [server, client])
    shown = " ".join(f"MPKLINK_{k}={v}" for k, v in settings.items())
    if why is None:
        rings = sum(bench.stats(side).ring for side in harness.Side)
        tcp = sum(bench.stats(side).tcp for side in harness.Side)
        print(f"seed {seed} {shown}: passed, {rings >> 20} MiB by ring, {tcp >> 20} MiB by TCP", flush=True)
        print("  " + client.stdout().strip().replace("\n", "\n  "), flush=True)
    else:
        print(f"seed {seed} {shown}: FAILED; options {' '.join(options)}\n{why}", flush=True)
    bench.cleanup()
    return why is None


def main(arguments):
    end = time.monotonic() + arguments.minutes * 60
    passed, failed, seed = 0, [], arguments.seed
    for settings in itertools.cycle(all_settings(arguments.ring)):
        if time.monotonic() >= end:
            break
        if one_run(seed, settings):
            passed += 1
        else:
            failed.append(f"seed {seed} {settings}")
        seed += 1
    print(f"{passed} runs passed, {len(failed)} failed", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    harness.become_subreaper()
    ARGUMENTS, OPTIONS = parse()
    sys.exit(main(ARGUMENTS))
