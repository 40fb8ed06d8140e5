# SPDX-License-Identifier: MIT
"""The cases of tests/programs/semantics_*.cc and the settings they run under. echo_test.py checks that no case is missing here."""

from harness import Combo, Side

CASES = {
    "semantics_data": "idle peek waitall nonblock vectored zero sendfile fionread identity efault sizes".split(),
    "semantics_flags": (
        "peek_waitall peek_vector peek_reset waitall_vector waitall_signal waitall_reset trunc more odd_flags oob oob_inline"
        " oob_sigurg oob_wakes"
    ).split(),
    "semantics_messages": (
        "header timestamp inq zerocopy zerocopy_inherited control_out address_out recvmmsg recvmmsg_end recvmmsg_timeout sendmmsg queue fionbio"
    ).split(),
    "semantics_memory": (
        "efault_read efault_write efault_read_partial efault_readv_second efault_write_partial efault_writev_second efault_large"
        " efault_header efault_out efault_sendfile efault_wait iov_max iov_empty iov_overlap iov_huge length_huge"
    ).split(),
    "semantics_files": (
        "sendfile_counts sendfile_truncated sendfile_sources sendfile_pipe sendfile_nonblock sendfile_blocks splice_out"
        " splice_in splice_proxy splice_full tee_vmsplice seekable readv2"
    ).split(),
    "semantics_calls": "positions raw_data raw_wait raw_cancel makers closers standard aio".split(),
    "semantics_syscall": (
        "read readv recvfrom recvmsg recvmmsg sendfile splice poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2 dup"
        " close options accept4 fork clone"
    ).split(),
    "semantics_end": (
        "half_close eof_after_data poll_at_end shutdown_wakes shut_read close_unread linger_zero epipe blocked_sender dup"
        " dup2_over reuse raw_close close_all close_range fork_child_closes fork_child_exits fork_exec fork_child_serves"
        " fork_parent_closes fork_both"
    ).split(),
    "semantics_close": (
        "half_ours half_theirs half_wakes at_once close_at_once unread_blocked unread_poll unread_both unread_sender unread_ours"
        " unread_after_shut linger_zero_unread linger_zero_full linger_drained linger_timeout linger_empty linger_off linger_dup"
    ).split(),
    "semantics_errors": (
        "reset_recv reset_send reset_so_error reset_unread reset_unread_send closed_send closed_unread_send sigpipe shut_zero"
        " shut_read_data shut_both shut_both_read shut_both_unread shut_both_spawn"
        " shut_in_turn shut_both_closed unconnected stale_number"
    ).split(),
    "semantics_connect": "nonblocking refused retry pending self unspec unspec_warm accept".split(),
    "semantics_wait": (
        "blocked_recv rcvtimeo sndtimeo poll poll_mixed select pollout eintr eintr_restart eintr_send eintr_poll handler_sends"
        " two_senders two_senders_parts two_readers cancel"
    ).split(),
    "semantics_time": (
        "rcvtimeo_calls rcvtimeo_trickle rcvtimeo_change rcvtimeo_values rcvtimeo_shared sndtimeo_partial sndtimeo_drained wait_exact"
        " wait_others lowat_recv lowat_wait lowat_late"
    ).split(),
    "semantics_signals": "eintr restart_never restart_read restart_send partial_send not_delivered masks accept connect".split(),
    "semantics_threads": (
        "shutdown_wakes shutdown_accept close_sleeper close_last vfork_sleeper close_sender dup2_sleeper close_epoll cancel_read cancel_send"
        " cancel_pending cancel_disabled cancel_async cancel_one_of_two looked_at"
    ).split(),
    "semantics_epoll": (
        "level edge edge_out edge_out_small oneshot rearm add_ready hangup nested mixed errors signals two_waiters closed"
    ).split(),
    "semantics_epoll_sets": (
        "modify add_late again codes fault data two_sets two_numbers closed_number number_reused close_set exclusive listener"
    ).split(),
    "semantics_epoll_masks": (
        "half_close own_shutdown shut_read peer_closes reset reset_so_error unmasked edges once writable in_and_out timeouts"
        " masks"
    ).split(),
    "semantics_epoll_fair": (
        "level edge kernel_beside_busy stream_beside_busy now edge_one_thread once_one_thread stress_level stress_edge"
        " stress_once"
    ).split(),
    "semantics_epoll_nested": "poll poll_out poll_edge poll_beside level asleep edge deep mixed closed".split(),
    "semantics_epoll_fork": "child parent closes polls busy polls_new busy_new changed siblings hup".split(),
    "semantics_revoke": (
        "exec pass stdio splice splice_late numbers splice_forked splice_nothing urgent full wrong_shutdown half_closed closed"
        " waitall_stalled"
    ).split(),
    "semantics_handlers": "told children queued at_once bad_buffer past_libc once inside jumps killed".split(),
    "semantics_switch": "peek_all low_water".split(),
    "semantics_edges": "full_array wide_select small_stack cancel_sendfile crash_handler nonblocking_child".split(),
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
    "semantics_stdio": "read write update fclose fclose_unread dprintf after_recv mixed large getline standard child".split(),
    "semantics_closing": (
        "loop raw_loop proc_loop closefrom range range_call range_unshare range_cloexec range_both new_stream child_fork"
        " child_vfork ended_loop ended_range ended_closefrom ended_unshare"
    ).split(),
    "semantics_uring": "recv read unused mixed_send mixed_recv poll close server before before_unused".split(),
}

# The programs whose cases may have both ends in one process (but see NOT_IN_ONE_PROCESS). The others make other processes.
IN_ONE_PROCESS = [
    program for program in CASES
    if program.removeprefix("semantics_") not in ("process", "exec", "pass", "stdio", "syscall", "closing", "uring", "epoll_fork")
]

# What TCP does and the library does not, one by one: marked `beyond`, not run by default. This list may only shrink.
BEYOND = {
    # Parent and child wait in one epoll instance at the same time: the kernel tells an edge of our registrations (the bell, a FIN) to one of
    # them, whichever it likes, and only the process that made a registration knows what the program wants of it now.
    *(("semantics_epoll_fork", case) for case in ("polls", "busy", "polls_new", "busy_new", "changed", "hup")),
    # pidfd_getfd() takes a descriptor out of a process that does not notice.
    ("semantics_pass", "fetched"), ("semantics_pass", "fetched_plain"),
    # Bytes that are unread in a ring when the reader hands the stream to stdio come back at the writer's next operation, or when it is
    # asleep in one of our waits; this one sleeps in a read of something else.
    ("semantics_stdio", "fclose_unread"),
}  # fmt: skip

# Make no sense with both ends in one process: they close the other end's descriptors, a forked child keeps them open, or the other end
# takes the number that was closed.
NOT_IN_ONE_PROCESS = {
    "close_all", "close_range", "fork_child_serves", "fork_parent_closes", "fork_both", "exec", "pass",
    "fork_child", "fork_parent", "fork_closes", "number_reused", "nonblocking_child",
    "makers", "closers", "standard",  # counts on the numbers that it gets
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
    ("semantics_messages", "zerocopy"),
}

# Nothing is upgraded although both ends are preloaded.
FALLS_BACK = {("semantics_uring", "before"), ("semantics_uring", "before_unused")}

# The server makes both ends of its connections: with it alone preloaded there are rings, too.
BOTH_ENDS_IN_SERVER = {
    *(("semantics_connect", case) for case in CASES["semantics_connect"]), ("semantics_threads", "shutdown_wakes"),
    ("semantics_threads", "shutdown_accept"), ("semantics_signals", "connect"), ("semantics_signals", "accept"),
}  # fmt: skip

# What has to go over the ring at least, where that is more than the warm-up, or at most.
RING_BYTES = {
    ("semantics_threads", "looked_at"): 100_000,
    ("semantics_process", "bgsave"): 2 * 20 * 20 * 200,  # the child has not touched it
    # calls by number are as good as calls by name
    **{("semantics_syscall", case): 20000 for case in CASES["semantics_syscall"] if case not in ("splice", "close", "fork", "clone")},
    ("semantics_syscall", "accept4"): 80000,  # the second stream as well
    ("semantics_messages", "inq"): 10000,  # TCP_INQ does not take it off the ring
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
