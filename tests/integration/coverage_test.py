# SPDX-License-Identifier: MIT
"""Nothing of libc that makes, uses or waits for descriptors is forgotten: interpose.def names every such call that libc exports."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from harness import SO

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "preload"))
import coverage  # noqa: E402

LIBC = next(p for p in ("/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6") if os.path.exists(p))

# A name that one of these finds is a call that concerns us, until it is named in interpose.def or excluded below.
WATCH = """
    recv send read write splice tee$ copy_file poll select accept connect sock bind listen shutdown peername
    close dup fcntl ioctl open creat(64)?$ pipe fd lseek fsync notify fattach isastream isfdtype getp?msg putp?msg
    [fF]ork clone exec spawn [eE]xit system daemon login_tty pty getpt$ (unlock|grant)pt$ ptsname aio_ lio_ mq_ shm_ mktemp mkstemp mkostemp tmpfile
    fileno fstat(64)?$ fxstat(64)?$ fs(open|pick|mount)$ backtrace_symbols_fd wait suspend pause sig(action|nal|set$|vec|interrupt)
    syscall rcmd rexec rresvport printf fanotify inotify sync_file_range
""".split()

# What the patterns above find by accident: why it is none of ours → the names.
EXCLUDED = {
    "threads, mutexes and semaphores": r"_*pthread_\w+|thrd_\w+|mtx_\w+|cnd_\w+|tss_\w+|sem_\w+|__nptl_\w+|_thread_db_\w+|__lll_\w+",
    "prepares a later posix_spawn": r"posix_spawn(attr|_file_actions)_(?!adddup2)\w+",
    "works on a FILE, whose descriptor left the ring at fdopen":
        r"(__)?f(read|write)(_unlocked)?(_chk)?|__f(readable|reading|writable|writing)|(__)?v?f?w?printf(_chk)?|(__)?getmntent_r|"
        r"(__)?setmntent|psignal|_IO_v?f?printf|_IO_f(read|write)|(__)?v?fwprintf(_chk)?",
    "stdio's own parts, exported for C++ libraries of long ago": r"_IO_(?!f?d?open$|fclose$|popen$)\w+",
    "formats into memory": r"(__)?v?(s|sn|as|sw)w?printf(_chk)?|(__)?obstack_v?printf(_chk)?|_IO_v?sprintf|\w*printf_(fp|size|size_info|modifier|function|format|specifier|type)",
    "works on memory or strings": r"(__)?(str|wcs)n?dup|(__)?duplocale|\w*textdomain(_codeset)?|str(abbrev|signal)|strsignal|_dl_signal_\w+|__libc_scratch_buffer_dupfree",
    "a regular expression": r"regexec|re_exec",
    "works on a path": r"(__)?readlink(at)?(_chk)?|mkdtemp|tempnam|tmpnam(_r)?|acct|unlink(at)?",
    "reads a directory": r"readdir(64)?(_r)?|rewinddir|seekdir|telldir|scandir(at)?(64)?|fts(64)?_\w+",
    "opens, reads and closes files or tables of its own": r"iconv_(open|close)|cat(open|close)|dlm?(open|close)|__gconv_\w+|__nss_\w+|_nss_files_\w+|(set|end)\w+ent",
    "changes a signal set or a signal's name": r"(__)?sig(add|del|empty|fill|is|or|and)\w*set|sigsetmask|sigset_t|__sigismember",
    "registers or runs work at exit": r"at_?exit|on_exit|__cxa_at(_quick_)?exit|__cxa_thread_atexit_impl|__cxa_at_quick_exit|__register_atfork|__cyg_profile_func_exit",
    "another process's memory": r"process_vm_(readv|writev)",
    "trusted hosts, passwords": r"i?ruserok(_af)?|ruserpass",
    "Sun RPC, for old programs only; its sockets are made inside of libc": r"_*(rpc|svc|clnt|xdr|xprt|pmap|auth)\w*|callrpc|key_\w+|get_myaddress|rtime|\w*(netname|publickey|secretkey)\w*",
    "the time of day": r"(__)?[gs]ettimeofday",
    "waits for address look-ups": r"gai_suspend",
    "interface of a debugger or profiler": r"__libc_(early_init|alloc_buffer_create_failure)|\w*_mcount\w*",
}  # fmt: skip
# As above, for names whose version is GLIBC_PRIVATE.
PRIVATE_EXCLUDED = r"__snprintf|__mktemp|__libc_msg(rcv|snd)|__shm_get_name|__fseeko64|__syscall_\w+"

# System calls whose number has another name than the function of libc that is hooked.
OTHER_NAMES = {"pselect6": "pselect", "eventfd2": "eventfd", "signalfd4": "signalfd", "exit_group": "_exit"}


def exported(library):
    """(name, version) of the functions a library exports."""
    text = subprocess.run(["nm", "-D", "--defined-only", "--with-symbol-versions", library], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^[0-9a-f]+ [TWi] (\w+)(?:@@?(\S+))?$", text, re.MULTILINE)
    assert found, library
    return found


def watched(name):
    return any(re.search(pattern, name) for pattern in WATCH)


def excluded(name, private=False):
    patterns = list(EXCLUDED.values()) + ([PRIVATE_EXCLUDED] if private else [])
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def unclassified(names, calls):
    """What of (name, version) concerns us and has no class. A name of GLIBC_PRIVATE may be public in an older version, too."""
    public = {name for name, version in names if version != "GLIBC_PRIVATE"}
    private = {name for name, version in names if version == "GLIBC_PRIVATE"} - public
    missing = {n for n in public if watched(n) and not excluded(n) and calls.classes.get(n, "private") == "private"}
    missing |= {n for n in private if watched(n) and not excluded(n, private=True) and n not in calls.classes}
    return missing


@pytest.fixture(scope="module")
def calls():
    return coverage.load()


@pytest.fixture(scope="module")
def libc():
    return exported(LIBC)


def test_every_call_has_a_class(libc, calls):
    missing = sorted(unclassified(libc, calls))
    assert not missing, f"{LIBC} exports calls that preload/interpose.def does not name: {' '.join(missing)}"


@pytest.mark.parametrize("name", ["recvfrom3", "__epoll_wait_chk", "pidfd_spawn", "openat2", "__fcntl_time64"])
def test_a_new_call_is_noticed(calls, name):
    assert name not in calls.classes
    assert name in unclassified([(name, "GLIBC_2.99")], calls)


def test_a_new_private_call_is_noticed(calls):
    assert "__recvmsg_nocancel" in unclassified([("__recvmsg_nocancel", "GLIBC_PRIVATE")], calls)
    assert "recvmsg_now" in unclassified([("recvmsg_now", "GLIBC_PRIVATE"), ("recvmsg_now", "GLIBC_2.99")], calls)


def test_every_entry_is_needed(libc, calls):
    """Each entry, removed from the list, is missed: so the watch-list reaches all of them and no exclusion hides one."""
    entries = [[export for export in libc if export[0] == name] for name in calls.classes]
    unseen = [of_name[0][0] for of_name in entries if of_name and not unclassified(of_name, calls.drop(of_name[0][0]))]
    assert not unseen, f"named in interpose.def, and not missed without: {unseen}"


def test_a_public_call_is_not_private(calls):
    """A call that moves from GLIBC_PRIVATE to the public names is noticed."""
    private = [name for name, of_class in calls.classes.items() if of_class == "private"]
    assert private
    assert unclassified([(name, "GLIBC_2.99") for name in private], calls) == set(private)


def test_no_entry_is_a_typing_error(libc, calls):
    version = tuple(int(n) for n in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))
    if version < (2, 36):
        pytest.skip("this libc is older than the one the list was made from")
    names = {name for name, _ in libc}
    assert not [name for name in calls.classes if name not in names]


def test_exports_are_the_list(calls):
    """The library exports what interpose.def says, exactly."""
    assert {name for name, _ in exported(SO)} == set(calls.groups)


def test_table_is_up_to_date(calls):
    readme = (ROOT / "preload/README.md").read_text(encoding="utf-8")
    assert coverage.updated(readme, calls) == readme, "run preload/coverage.py --write"
    assert coverage.updated(readme, calls.drop("recv")) != readme


def unnumbered(calls, source, raw_calls):
    """System calls whose function is hooked and whose number syscall() does not know."""
    text = subprocess.run(["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"], capture_output=True, text=True, check=True).stdout
    numbers = set(re.findall(r"^#define __NR_(\w+) \d+$", text, re.MULTILINE))
    assert len(numbers) > 300
    hooked = {n for n in numbers if OTHER_NAMES.get(n, n) in calls.groups}
    known = set(re.findall(r"case SYS_(\w+):", source)) | set(re.findall(r"^(?:RAW|NEW_FD)\((\w+)\)", raw_calls, re.MULTILINE))
    return hooked - known


def test_system_calls_by_number(calls):
    source = (ROOT / "preload/hooks_syscall.cc").read_text(encoding="utf-8")
    raw_calls = (ROOT / "preload/raw_calls.def").read_text(encoding="utf-8")
    assert not unnumbered(calls, source, raw_calls)
    assert unnumbered(calls, source, raw_calls.replace("RAW(accept4)", "")) == {"accept4"}
    assert unnumbered(calls, source.replace("case SYS_pselect6:", ""), raw_calls) == {"pselect6"}
