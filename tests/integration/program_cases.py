# SPDX-License-Identifier: MIT
"""The cases of tests/programs/semantics_*.cc and the settings they run under. echo_test.py checks that no case is missing here."""

from harness import Combo

CASES = {
    "semantics_data": "idle peek waitall nonblock vectored zero sendfile fionread identity efault sizes".split(),
    "semantics_end": (
        "half_close eof_after_data poll_at_end shutdown_wakes shut_read close_unread linger_zero epipe blocked_sender dup dup2_over"
        " reuse raw_close close_all close_range fork_child_closes fork_child_exits fork_exec fork_child_serves fork_parent_closes"
        " fork_both"
    ).split(),
    "semantics_wait": (
        "blocked_recv rcvtimeo sndtimeo poll poll_mixed select pollout eintr eintr_restart eintr_send eintr_poll handler_sends"
        " two_senders two_readers cancel"
    ).split(),
    "semantics_epoll": (
        "level edge edge_out oneshot rearm add_ready hangup nested mixed errors signals two_waiters closed"
    ).split(),
    "semantics_revoke": "exec pass stdio splice urgent full".split(),
}

# Asked for by the design, but not by issue 2: marked `beyond`.
BEYOND = {
    ("semantics_epoll", "nested"),
}  # fmt: skip

# Make no sense with both ends in one process: they close the other end's descriptors, or a forked child keeps them open.
NOT_IN_ONE_PROCESS = {
    "close_all", "close_range", "fork_child_serves", "fork_parent_closes", "fork_both", "exec", "pass",
}  # fmt: skip

# Both ends preloaded, unusual settings: the smallest ring, an upgrade at the first chance, a guard that faults on every access
# outside a gate, and the two together that find most.
VARIANTS = {
    "ring4": {"RING_KIB": 4},
    "warm0": {"WARMUP": 0},
    "mprotect": {"GUARD": "mprotect"},
    "tiny": {"RING_KIB": 4, "WARMUP": 0, "SPIN_US": 0},
}

# (combo, settings) and their names, for parametrisation.
COMBO_VARIANTS = [(combo, {}) for combo in Combo] + [(Combo.BOTH, settings) for settings in VARIANTS.values()]
COMBO_VARIANT_IDS = [combo.value for combo in Combo] + [f"both-{name}" for name in VARIANTS]
ONE_PROCESS_VARIANTS = [(Combo.NEITHER, {}), (Combo.BOTH, {}), (Combo.BOTH, VARIANTS["mprotect"]), (Combo.BOTH, VARIANTS["tiny"])]
ONE_PROCESS_IDS = ["neither", "both", "both-mprotect", "both-tiny"]
