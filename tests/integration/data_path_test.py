# SPDX-License-Identifier: MIT
"""What an operation costs, in numbers that are the same in every run: gates of the guard, and instructions (by valgrind's callgrind).

tests/programs/guard_gates.cc does one operation over and over with both ends in one thread; a long and a short run differ by the operation.
Each table is golden: a number that falls is to be written down.
"""

import os
import pathlib
import re
import subprocess

import pytest

from harness import PROGRAMS, SANITIZER_OPTIONS, SERVER, SO, Combo

only_both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

# ---- gates ---------------------------------------------------------------------------------------------------------------

# Per round, measured. The rule is one for each intercepted call and one for each scan of poll or
# epoll, however many streams; where there are more it says why. A number that falls is to be written down here.
GATES = {
    "send_recv": 2,
    "send_send_recv": 3,
    "send_recv_recv": 3,
    "large": 2 + 1,  # 100,000 bytes, in two steps and out in one
    "vectors": 1 + 3,  # writev gathers 40 small entries; readv takes them 16 at a time
    "messages": 4 + 4,  # sendmmsg and recvmmsg: each message is a call of its own
    "sendfile_recv": 2,
    "peek": 3,
    "recv_nothing": 1,
    "recv_sleeps": 3,  # looks, listens and looks again, stops listening
    "fionread": 1,
    "poll_ready": 3,  # with the send and the recv
    "poll_nothing": 1,
    "poll_sleeps": 4,  # looks, listens, looks again, stops listening
    "poll_ten": 10 + 1 + 10,
    "poll_ten_nothing": 1,
    "select_ten": 10 + 1 + 10,
    "epoll_ready": 3,
    "epoll_nothing": 1,
    "epoll_sleeps": 6,  # looks, arms, looks again; disarms, looks at the end, and once more with the kernel
    "epoll_ten": 10 + 1 + 10,
}


def gates_of(bench, operation: str, rounds: int) -> int:
    bench.stats_path(SERVER).unlink(missing_ok=True)
    argv = [bench.program("guard_gates"), "both", f"--op={operation}", f"--rounds={rounds}"]
    bench.succeed(bench.start(argv, SERVER, settings={"SPIN_US": 0}))
    bench.assert_ring(streams=20, exact=True, sides=[SERVER])
    return bench.stats(SERVER).sum("gates")


@only_both
@pytest.mark.parametrize("operation", GATES)
def test_gates_per_operation(bench, operation):
    rounds = 500
    few, many = (gates_of(bench, operation, n) for n in (rounds, 2 * rounds))
    assert many - few == rounds * GATES[operation], f"{(many - few) / rounds} gates a round"


@pytest.mark.parametrize("combo", [None], ids=["neither"])
def test_all_operations_are_counted(combo):
    argv = [PROGRAMS / "guard_gates", "list"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout.split() == list(GATES)


# ---- instructions --------------------------------------------------------------------------------------------------------

# Of a 64 B send and a 64 B recv of it, and of what is between them, the program's own 20 included; gcc 12, guard off. At two to four
# instructions a nanosecond, 1918 are about 140 ns for each of the two calls. Some 43 of each call count it in the stream's row and look at
# what tools ask for (shm/status.h).
INSTRUCTIONS = {
    "send_recv": 1918,
    "recv_nothing": 750,
    "poll_ready": 2759,
    "epoll_ready": 2828,
}
ABOVE, BELOW = 1.03, 0.97


def instructions_of(operation: str, rounds: int, out: pathlib.Path) -> int:
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", PROGRAMS / "guard_gates", "both", f"--op={operation}", f"--rounds={rounds}"]
    env = {"PATH": os.environ["PATH"], "LD_PRELOAD": str(SO), "MPKLINK_GUARD": "off", "MPKLINK_SPIN_US": "0", "MPKLINK_STATS": f"{out}.stats"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"upgraded":20,' in pathlib.Path(f"{out}.stats").read_text(), "nothing went over the ring"
    return int(re.search(r"refs:\s+([\d,]+)", run.stderr)[1].replace(",", ""))


@pytest.mark.skipif(bool(SANITIZER_OPTIONS), reason="valgrind and sanitizers do not go together")
@pytest.mark.parametrize("combo", [None], ids=["neither"])
@pytest.mark.parametrize("operation", INSTRUCTIONS)
def test_instructions_per_operation(combo, operation, tmp_path):
    compilers = subprocess.run(["readelf", "-p", ".comment", SO], capture_output=True, text=True, check=True).stdout
    if "GCC: (Debian 12" not in compilers or "clang" in compilers:
        pytest.skip("the numbers are those of Debian's gcc 12")
    few, many = 1000, 3000
    cost = (instructions_of(operation, many, tmp_path / "many") - instructions_of(operation, few, tmp_path / "few")) / (many - few)
    golden = INSTRUCTIONS[operation]
    assert BELOW * golden <= cost <= ABOVE * golden, f"{cost:.0f} instructions a round, {golden} are written down"
