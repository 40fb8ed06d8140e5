# SPDX-License-Identifier: MIT
"""`mpklink doctor` about this machine, this shell, a program; and wrong use. Each as somebody types it whose connections are not accelerated:
it finds the cause, says it in a sentence, and says what to type.

Run: /usr/bin/python3 -m pytest tests/integration/doctor_test.py"""

import ctypes
import os
import re
import resource
import signal
import struct
import subprocess

import pytest

import harness
from doctor import NOBODY, SLEEPER, TOOL, Answer, ask, assert_refused, compile_c, environment, has_pku, needs_root, needs_tool, run
from harness import PROGRAMS

pytestmark = needs_tool


# ---- this machine, this shell ----------------------------------------------------------------------------------------------


def assert_connected(answer: Answer, guard=None):
    """The test's own connection used the ring."""
    facts = answer.one("connection", "upgrade")["facts"]
    assert facts["upgraded"] and facts["ring_bytes"] > 100_000, answer
    assert guard is None or facts["guard"] == guard, answer


def test_healthy_machine():
    answer = ask()
    assert answer.target == {"kind": "machine", "name": ""}
    assert_connected(answer, "pkey" if has_pku() else "off")
    guard = answer.one("machine", "guard")
    if has_pku():
        assert guard["level"] == "ok" and guard["facts"]["keys_free"] == 15, guard
    else:
        assert guard["level"] == "warn" and "-cpu host" in guard["remedy"] or "Xeon" in guard["remedy"], guard
    for name in ("kernel", "calls", "identity", "descriptors", "memory", "processors", "secret-memory"):
        answer.one("machine", name)
    times = answer.one("connection", "round-trips")["facts"]
    assert times["with_ns"] > 0 and times["tcp_ns"] > 0
    library = answer.one("environment", "library")["facts"]
    assert library["path"] == str(harness.SO) and library["layout"] > 0 and library["version"]


def test_text_for_people():
    result = run()
    assert result.returncode in (0, 1) and result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "machine" and "environment" in lines and "connection" in lines
    assert re.search(r"^  ok +upgrade +It moved to shared memory behind a guard \(pkey\)" if has_pku() else r"^  note +upgrade ", result.stdout, re.M)
    assert lines[-1] in ("All well.", 'It works, with less than there could be: see "warn" above.')
    assert all(len(line) <= 130 for line in lines)


def test_nothing_is_left_behind(tmp_path):
    run(env={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    assert os.listdir(tmp_path) == []


def test_started_by_somebody_odd():
    """Without standard input and errors, and with SIGCHLD ignored: children could neither be talked to nor waited for."""

    def odd():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.close(0)

    answer = ask(preexec_fn=odd)
    assert_connected(answer)
    assert answer.one("machine", "guard")["facts"]["keys_free"] == (15 if has_pku() else 0)


def test_guard_off_as_asked_for():
    answer = ask(env={"MPKLINK_GUARD": "off"})
    assert_connected(answer, "off")
    finding = answer.one("connection", "upgrade")
    assert finding["level"] == "note" and finding["facts"]["guard_why"] == "asked-for"


def test_few_descriptors():
    answer = ask(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)))
    finding = answer.one("machine", "descriptors")
    assert finding["level"] == "warn" and finding["facts"]["limit"] == 100 and "ulimit -n" in finding["remedy"]


def test_hardly_any_descriptors():
    """The test's connection itself finds none; all else is said."""
    answer = ask(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)))
    assert answer.one("machine", "descriptors")["level"] == "warn"
    assert not answer.one("connection", "upgrade")["facts"]["upgraded"]


def test_one_processor():
    finding = ask(preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})).one("machine", "processors")
    assert finding["level"] == "note" and finding["facts"]["usable"] == 1 and "second CPU" in finding["remedy"]


@needs_root
def test_little_locked_memory():
    """Root may lock what it wants; other users have a limit."""
    answer = ask(
        env={"MPKLINK_BACKING": "secret"}, user=NOBODY, group=NOBODY, extra_groups=[],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)),
    )  # fmt: skip
    finding = answer.one("machine", "secret-memory")
    assert finding["facts"]["wanted"] and finding["facts"]["locked_bytes"] == 65536
    assert finding["level"] == ("warn" if finding["facts"]["there"] else "fail")
    assert not answer.one("connection", "upgrade")["facts"]["upgraded"]


def test_little_address_space():
    limit = 1 << 30
    finding = ask(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))).one("machine", "memory")
    assert finding["facts"]["address_space_bytes"] == limit and finding["facts"]["streams"] == limit // 8 // (2 * 256 * 1024 + 4096)


def test_preload_of_a_wrong_path():
    answer = ask(env={"LD_PRELOAD": "/nowhere/libmpklink.so"})
    finding = answer.one("environment", "preload")
    assert finding["level"] == "warn" and "/nowhere/libmpklink.so" in finding["sentence"] and "No such file" in finding["sentence"]
    assert_connected(answer)  # the right one was added


def test_no_library():
    answer = ask(env={"MPKLINK_LIBRARY": "/nowhere/libmpklink.so"})
    finding = answer.one("environment", "library")
    assert finding["level"] == "fail" and "MPKLINK_LIBRARY" in finding["remedy"]
    assert not answer.all("connection")


def test_a_library_that_does_nothing():
    """What gets in and is not ours: the statistics stay empty."""
    answer = ask(env={"MPKLINK_LIBRARY": str(PROGRAMS / "libinert.so")})
    finding = answer.one("connection", "upgrade")
    assert finding["level"] == "fail" and not finding["facts"]["upgraded"]


@pytest.mark.parametrize(
    "name,value,word",
    [
        ("MPKLINK_SPIN_US", "fast", "auto or a number"),
        ("MPKLINK_GUARD", "yes", "require"),
        ("MPKLINK_PORTS", "80-", "ports"),
        ("MPKLINK_RULES", "igonre,port=22", "mpklink rules"),
    ],
)
def test_setting_that_is_not_understood(name, value, word):
    answer = ask(env={name: value})
    finding = answer.one("environment", "settings")
    assert finding["level"] == "warn" and finding["facts"] == {"variable": name, "value": value}
    assert word in finding["remedy"]
    assert_connected(answer)


def test_misspelt_variable():
    finding = ask(env={"MPKLINK_WARMPU": "1"}).one("environment", "settings")
    assert finding["level"] == "warn" and "MPKLINK_WARMUP" in finding["remedy"]
    assert ask(env={"MPKLINK_TEST_RUN_OF_MINE": "1"}).one("environment", "settings")["level"] == "ok"


def test_switched_off():
    answer = ask(env={"MPKLINK_DISABLE": "1"})
    assert answer.one("environment", "settings")["level"] == "fail"
    assert not answer.one("connection", "upgrade")["facts"]["upgraded"]


def test_ports_of_this_shell_do_not_spoil_the_test():
    answer = ask(env={"MPKLINK_PORTS": "80"})
    assert answer.one("environment", "settings")["level"] == "note"
    assert_connected(answer)


# ---- seccomp ---------------------------------------------------------------------------------------------------------------

SECCOMP_ERRNO, SECCOMP_KILL, SECCOMP_ALLOW = 0x00050000, 0x80000000, 0x7FFF0000
PKEY_ALLOC, MEMFD_CREATE = 330, 319


def refuse_call(number: int, action: int):
    """A filter that answers one system call of x86-64 with `action`, and lets all others pass (seccomp(2))."""

    def install():
        libc = ctypes.CDLL(None, use_errno=True)
        load, jump_equal, ret = 0x20, 0x15, 0x06
        program = b"".join(
            struct.pack("HBBI", *i) for i in [(load, 0, 0, 0), (jump_equal, 0, 1, number), (ret, 0, 0, action), (ret, 0, 0, SECCOMP_ALLOW)]
        )
        buffer = ctypes.create_string_buffer(program)

        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

        fprog = Program(4, ctypes.addressof(buffer))
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0  # PR_SET_SECCOMP, a filter

    return install


@pytest.mark.skipif(not has_pku(), reason="without protection keys none can be refused")
@pytest.mark.parametrize("action,word", [(SECCOMP_ERRNO | 1, "EPERM"), (SECCOMP_KILL, "Bad system call")], ids=["errno", "kill"])
def test_seccomp_without_keys(action, word):
    result = run("--json", preexec_fn=refuse_call(PKEY_ALLOC, action))
    answer = Answer(result)
    finding = answer.one("machine", "guard")
    assert finding["level"] == "warn" and finding["facts"]["why"] == "no-key" and finding["facts"]["keys_free"] == 0
    assert "seccomp" in finding["sentence"] and word in finding["sentence"] and "pkey_alloc" in finding["remedy"]
    assert answer.one("machine", "calls")["facts"]["seccomp"] == 2
    if action != SECCOMP_KILL:
        assert answer.one("connection", "upgrade")["facts"]["guard_why"] == "no-key"


@pytest.mark.skipif(not has_pku(), reason="without protection keys none can be refused")
def test_guard_required_and_refused():
    answer = ask(env={"MPKLINK_GUARD": "require"}, preexec_fn=refuse_call(PKEY_ALLOC, SECCOMP_ERRNO | 1))
    assert answer.one("machine", "guard")["level"] == "fail"
    finding = answer.one("connection", "upgrade")
    assert finding["level"] == "fail" and "no-pku" in (finding["facts"]["client_reason"], finding["facts"]["server_reason"])


def test_seccomp_without_shared_memory():
    answer = ask(preexec_fn=refuse_call(MEMFD_CREATE, SECCOMP_ERRNO | 1))
    finding = answer.one("machine", "calls")
    assert finding["level"] == "fail" and not finding["facts"]["memfd_create"] and "EPERM" in finding["sentence"] and "seccomp" in finding["remedy"]
    assert answer.one("connection", "upgrade")["level"] == "fail"


# ---- a program -------------------------------------------------------------------------------------------------------------


def test_program():
    answer = ask("sleep")
    assert answer.target == {"kind": "program", "name": "sleep"} and answer.code == 0
    finding = answer.one("program", "preload")
    assert finding["facts"]["path"].endswith("/sleep") and finding["remedy"] == "mpklink run -- sleep"


def test_static_program(tmp_path):
    path = compile_c(tmp_path / "static", SLEEPER, "-static")
    finding = ask(path).one("program", "preload")
    assert finding["level"] == "fail" and "statically linked" in finding["sentence"] and "dynamically linked" in finding["remedy"]


def test_script(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    assert ask(script).code == 0
    script.write_text(f"#!{compile_c(tmp_path / 'static', SLEEPER, '-static')}\n")
    finding = ask(script).one("program", "preload")
    assert finding["level"] == "fail" and "interpreter" in finding["sentence"]


@needs_root
def test_setuid_program(tmp_path):
    path = compile_c(tmp_path / "suid", SLEEPER)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o4755)
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        pytest.skip("the file system is mounted nosuid")
    finding = ask(path).one("program", "preload")
    assert finding["level"] == "fail" and "setuid" in finding["sentence"]


def test_program_that_is_not_there():
    assert_refused(run("no-such-program-here"), 3, "no-such-program-here", "PATH")
    assert_refused(run("/nowhere/at-all"), 3, "does not exist")


# ---- wrong use -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", ["0", "99999999999", "localhost:0", "localhost:70000", "localhost:http", ":80", "::1:80", "a b", "--jsno", "--end", ""]
)  # fmt: skip
def test_wrong_use(args):
    result = run(*(args.split() or [""]))
    assert result.returncode == 2 and result.stdout == "", (result.stdout, result.stderr)
    assert result.stderr.startswith("mpklink: ") and "mpklink doctor --help" in result.stderr


def test_help_has_examples_and_hides_what_is_not_for_people():
    text = subprocess.run([TOOL, "doctor", "--help"], text=True, capture_output=True, timeout=30).stdout
    assert "Examples:" in text and "localhost:6379" in text and "--json" in text and "--end" not in text


def test_unresolvable_host():
    assert_refused(run("no-such-host.invalid:80"), 3, "no-such-host.invalid")


def test_full_disk():
    with open("/dev/full", "w") as full:
        result = subprocess.run([TOOL, "doctor", "sleep"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=30)
    assert result.returncode == 3 and "No space left" in result.stderr
