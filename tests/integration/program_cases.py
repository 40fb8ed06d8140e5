# SPDX-License-Identifier: MIT
"""The cases of tests/programs/semantics_*.cc and the settings they run under. echo_test.py checks that no case is missing here."""

from harness import Combo, Side

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
    "semantics_process": (
        "fork underscore_fork clone_call heir_fork heir_underscore_fork heir_clone_call turns_fork turns_underscore_fork"
        " turns_clone_call vfork clone_files clone_vm clone_closes child_reads child_writes two_writers two_readers shutdown"
        " child_polls grandchild bgsave keeper double_fork daemon daemon_unread"
    ).split(),
    "semantics_exec": (
        "inetd_execv inetd_execve inetd_execvp inetd_execvpe inetd_execl inetd_execle inetd_execlp inetd_fexecve inetd_execveat"
        " inetd_syscall inetd_helper inetd_helper_plain inetd_both_ways shell spawn spawn_plain spawn_inherited spawn_self_dup2"
        " self self_plain self_unread self_thread self_server failed failed_unread cloexec_fcntl cloexec_ioctl cloexec_dup"
        " cloexec_range cloexec_unread cloexec_child commands leaked"
    ).split(),
    "semantics_pass": (
        "given given_plain given_sendmmsg given_syscall given_poll given_epoll kept kept_plain again back several to_itself"
        " to_itself_recvmmsg lost both_ways sleeping_peer fetched fetched_plain"
    ).split(),
    "semantics_stdio": (
        "read write update fclose fclose_unread dprintf after_recv mixed large getline standard child"
    ).split(),
    "semantics_syscall": (
        "read readv recvfrom recvmsg recvmmsg sendfile splice poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2 dup"
        " close options accept4 fork clone"
    ).split(),
    "semantics_closing": (
        "loop raw_loop proc_loop closefrom range range_call range_unshare range_cloexec range_both new_stream child_fork child_vfork"
        " ended_loop ended_range ended_closefrom ended_unshare"
    ).split(),
    "semantics_uring": "recv read unused mixed_send mixed_recv poll close server before before_unused".split(),
}

# The programs whose cases may have both ends in one process (but see NOT_IN_ONE_PROCESS). The others make other processes.
IN_ONE_PROCESS = ["semantics_data", "semantics_end", "semantics_wait", "semantics_epoll", "semantics_revoke"]

# Asked for by the design, but not by issue 2: marked `beyond`.
BEYOND = {
    ("semantics_data", "efault"), ("semantics_end", "fork_both"), ("semantics_wait", "cancel"),
    ("semantics_epoll", "nested"),
    *(("semantics_revoke", case) for case in CASES["semantics_revoke"]),
    # library: no hook for _Fork and clone, so the parent does not learn that it shares the stream: its close() resets the
    # connection when the child has not read everything yet, and its sends go into the ring while the child's go over TCP
    *(("semantics_process", f"{what}_{way}") for what in ("heir", "turns") for way in ("underscore_fork", "clone_call")),
    # library: no revoke at exec: the other program finds an empty socket, both ends wait for ever
    *(("semantics_exec", case) for case in CASES["semantics_exec"] if case.startswith(("inetd", "shell", "spawn", "self"))),
    # library: no revoke when passed: the receiver finds an empty socket, or the peer sees a reset when the sender closes its copy
    # with unread bytes in the ring. lost, back: right, but nothing is revoked
    *(("semantics_pass", case) for case in CASES["semantics_pass"]),
    # library: no revoke at fdopen or dup2 to 0, 1, 2: reading by stdio hangs. write, fclose, dprintf: right, but nothing is revoked
    *(("semantics_stdio", case) for case in CASES["semantics_stdio"]),
    # library: splice of a stream hangs; SYS_pselect6 and SYS_epoll_pwait2 go past the hooks: never readable, or the event of a bell
    *(("semantics_syscall", case) for case in ("splice", "pselect6", "epoll_pwait2")),
    # library: no revoke at io_uring_setup: its reads find an empty socket. unused, mixed_send: right, but the ring goes on
    *(("semantics_uring", case) for case in CASES["semantics_uring"] if not case.startswith("before")),
}  # fmt: skip

# Make no sense with both ends in one process: they close the other end's descriptors, or a forked child keeps them open.
NOT_IN_ONE_PROCESS = {
    "close_all", "close_range", "fork_child_serves", "fork_parent_closes", "fork_both", "exec", "pass",
}  # fmt: skip

# A process goes on after the one that the test has started: the test waits for it.
ORPHANS = {("semantics_process", case) for case in ("double_fork", "daemon", "daemon_unread")}

# The end whose statistics are lost: it becomes another program while it has the stream, or ends inside of libc (daemon).
SILENT = {
    **{("semantics_exec", case): Side.CLIENT for case in CASES["semantics_exec"] if case.startswith(("self", "cloexec"))},
    ("semantics_exec", "self_server"): Side.SERVER,
    ("semantics_process", "daemon"): Side.CLIENT,
}
del SILENT["semantics_exec", "cloexec_child"]

# A revoke must have happened, and must be counted by at least one end.
REVOKES = {
    *(("semantics_exec", case) for case in CASES["semantics_exec"] if case.startswith(("inetd", "shell", "spawn", "self"))),
    *((program, case) for program in ("semantics_pass", "semantics_stdio") for case in CASES[program]),
    *(("semantics_uring", case) for case in CASES["semantics_uring"] if not case.startswith("before")),
}

# Nothing is upgraded although both ends are preloaded.
FALLS_BACK = {("semantics_uring", "before"), ("semantics_uring", "before_unused")}

# What has to go over the ring at least, where that is more than the warm-up, or at most.
RING_BYTES = {
    ("semantics_process", "bgsave"): 2 * 20 * 20 * 200,  # the child has not touched it
    # calls by number are as good as calls by name
    **{("semantics_syscall", case): 20000 for case in CASES["semantics_syscall"] if case not in ("splice", "close", "fork", "clone")},
    ("semantics_syscall", "accept4"): 80000,  # the second stream as well
}
RING_BYTES_AT_MOST = {  # the warm-up and the unread bytes
    ("semantics_uring", case): 2 * 40 * 100 + 1000 for case in CASES["semantics_uring"]
}

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
