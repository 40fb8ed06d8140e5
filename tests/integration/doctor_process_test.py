# SPDX-License-Identifier: MIT
"""`mpklink doctor PID` and `mpklink doctor HOST:PORT`: is the library in it, why is each of its connections on TCP, who is at the other end.

Run: /usr/bin/python3 -m pytest tests/integration/doctor_process_test.py"""

import os
import re
import shutil
import subprocess

import pytest

import harness
from doctor import NOBODY, SLEEPER, Answer, ask, assert_refused, compile_c, echo, has_pku, kill, needs_root, needs_tool, one, run, talk
from harness import CLIENT, PROGRAMS, PYTHON, SERVER, Combo, eventually, free_port, read_text

OTHER_SO = PROGRAMS / "libmpklink_other.so"
GIVEN_UP = 6000  # messages after which an end without an answer gives up for good (preload/rendezvous_step.cc)

pytestmark = needs_tool


# ---- a process -------------------------------------------------------------------------------------------------------------


@one(Combo.BOTH)
def test_upgraded_connection(bench):
    server = echo(bench)
    with talk(bench, server.port()) as client:
        for pid, other in ((server.pid, client.pid), (client.pid, server.pid)):
            answer = ask(pid)
            assert answer.target == {"kind": "process", "name": str(pid)}
            shared = answer.one("streams", "shared")
            assert shared["facts"]["peer_pid"] == other and shared["facts"]["peer_library"] and shared["facts"]["count"] == 1
            assert shared["facts"]["peer_layout"] == answer.one("process", "library")["facts"]["layout"] > 0
            assert answer.one("process", "guard")["facts"]["guard"] == ("pkey" if has_pku() else "off")
            assert answer.code == (0 if has_pku() else 1), answer
    server.finish()
    bench.assert_ring(min_bytes=10_000)


@one(Combo.SERVER)
@pytest.mark.parametrize("messages,mode", [(1, "candidate"), (GIVEN_UP, "plain")], ids=["at-once", "given-up"])
def test_peer_without_the_library(bench, messages, mode):
    """The commonest of all: named is who to start again, and how."""
    server = echo(bench)
    with talk(bench, server.port(), messages) as client:
        answer = ask(server.pid)
        found = answer.one("streams", "peer-absent")
        assert found["level"] == "warn" and answer.code == 1 and found["facts"]["mode"] == mode, found
        assert found["facts"]["peer_pid"] == client.pid and not found["facts"]["peer_library"]
        assert f"(pid {client.pid})" in found["sentence"] and "without the library" in found["sentence"]
        assert found["remedy"].startswith("Start it again with: mpklink run -- /usr/bin/python3 ...")
        result = run(server.pid)
        text = re.sub(r"\s+", " ", result.stdout)  # whose lines are broken between words
        assert result.returncode == 1 and f"(pid {client.pid})" in text and "-> Start it again with:" in text
    server.finish()
    bench.assert_not_used(SERVER)


@one(Combo.BOTH)
def test_excluded_port(bench):
    server = echo(bench, connections=2, settings={"PORTS": "!1024-65535"})
    port = server.port()
    with talk(bench, port):
        answer = ask(server.pid)
        found = answer.one("streams", "ports")
        assert found["level"] == "warn" and "MPKLINK_PORTS" in found["remedy"]
        assert answer.one("process", "settings")["facts"]["value"] == "!1024-65535"
    eventually(lambda: "GOT" in server.stdout(), what="the end of the first connection")
    answer = ask(f"127.0.0.1:{port}")
    assert answer.one("connection", "ports")["level"] == "warn"
    server.finish()
    bench.assert_not_used(SERVER)


@one(Combo.BOTH)
def test_two_versions(bench):
    """The other end was started before an update."""
    env = {"LD_PRELOAD": bench.env_for(SERVER)["LD_PRELOAD"].replace(str(harness.SO), str(OTHER_SO))}
    server = echo(bench, env=env)
    with talk(bench, server.port()) as client:
        answer = ask(client.pid)
        found = answer.one("streams", "peer-version")
        layout = answer.one("process", "library")["facts"]["layout"]
        assert found["level"] == "warn" and found["facts"]["peer_layout"] == 99 != layout
        assert "memory layout 99" in found["sentence"] and f"memory layout {layout}" in found["sentence"]
        assert "mpklink run" in found["remedy"]
    server.finish()
    bench.assert_fell_back()


@one(Combo.BOTH)
@pytest.mark.parametrize("new", ["other", "same", "none"])
def test_replaced_library(bench, new):
    """Updated under a running service, as package managers do it."""
    installed = bench.dir / "libmpklink.so"
    shutil.copy(harness.SO, installed)
    env = {"LD_PRELOAD": bench.env_for(SERVER)["LD_PRELOAD"].replace(str(harness.SO), str(installed))}
    server = echo(bench, env=env)
    with talk(bench, server.port()):
        if new == "none":
            installed.unlink()
        else:
            shutil.copy(OTHER_SO if new == "other" else harness.SO, bench.dir / "new")
            os.replace(bench.dir / "new", installed)
        found = ask(server.pid).one("process", "library")
        assert found["facts"]["replaced"] and found["facts"]["path"] == str(installed)
        assert found["level"] == ("warn" if new == "other" else "note") and "mpklink run" in found["remedy"]
        assert ("memory layout 99" in found["sentence"]) == (new == "other")
    server.finish()
    bench.assert_ring(min_bytes=10_000)


@one(Combo.BOTH)
def test_disabled_peer(bench):
    server = echo(bench, settings={"DISABLE": "1"})
    with talk(bench, server.port()) as client:
        found = ask(client.pid).one("streams", "peer-absent")
        assert found["facts"]["peer_pid"] == server.pid and "MPKLINK_DISABLE" in found["sentence"] + found["remedy"]
        assert ask(server.pid).one("process", "settings")["level"] == "fail"
    server.finish()


@one(Combo.NEITHER)
def test_status_page_of_another_version(bench):
    """A tool that is older or newer than the library of the process says so, and guesses nothing."""
    script = (
        "import fcntl, os, struct, sys; fd = os.memfd_create('mpklink-status', os.MFD_ALLOW_SEALING); os.ftruncate(fd, 1 << 20); "
        "os.pwrite(fd, struct.pack('<QIIII', 0x3153544154534b4d, 77, 4096, 128, 100), 0); fcntl.fcntl(fd, 1033, 2); "
        "print('READY', flush=True); sys.stdin.read()"
    )
    env = {"LD_PRELOAD": str(harness.SO)}
    process = bench.start([PYTHON, "-c", script], name="other", stdin=subprocess.PIPE, env=env)
    process.wait_line("^READY$")
    found = ask(process.pid).one("streams", "version")
    assert found["level"] == "note" and found["facts"]["version"] == 77 and "77" in found["sentence"]
    process.stdin.close()
    process.finish()


@one(Combo.NEITHER)
def test_process_without_the_library(bench):
    server = echo(bench, connections=1)
    server.port()
    answer = ask(server.pid)
    found = answer.one("process", "library")
    assert found["level"] == "fail" and answer.code == 1
    assert found["remedy"].startswith("Start it again with: mpklink run -- /usr/bin/python3 ...")
    assert not answer.all("streams")
    kill(server)


@one(Combo.NEITHER)
def test_command_that_can_be_typed_again(bench):
    path = compile_c(bench.dir / "sleeper", SLEEPER)
    process = bench.start([path, "1 0", "60"], name="sleeper")
    eventually(lambda: read_text(f"/proc/{process.pid}/comm") == "sleeper", what="exec")
    assert ask(process.pid).one("process", "library")["remedy"] == f"Start it again with: mpklink run -- {path} '1 0' 60"
    kill(process)


@one(Combo.NEITHER)
@pytest.mark.parametrize(
    "flags,preload,words",
    [(["-static"], True, "statically linked"), ([], "/nowhere/libmpklink.so", "/nowhere/libmpklink.so, which is not there"), ([], False, "started without")],
    ids=["static", "wrong-path", "plain"],
)
def test_why_it_is_not_in_it(bench, flags, preload, words):
    path = compile_c(bench.dir / "sleeper", SLEEPER, *flags)
    env = {"LD_PRELOAD": str(harness.SO) if preload is True else preload} if preload else {}
    process = bench.start([path], name="sleeper", env=env)
    eventually(lambda: read_text(f"/proc/{process.pid}/comm") == "sleeper", what="exec")
    found = ask(process.pid).one("process", "library")
    assert found["level"] == "fail" and words in found["sentence"], found
    kill(process)


@needs_root
@one(Combo.NEITHER)
def test_process_in_secure_mode(bench):
    path = compile_c(bench.dir / "sleeper", SLEEPER)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o4755)
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        pytest.skip("the file system is mounted nosuid")
    process = bench.start([path], name="sleeper", env={"LD_PRELOAD": str(harness.SO)})
    eventually(lambda: read_text(f"/proc/{process.pid}/comm") == "sleeper", what="exec")
    found = ask(process.pid).one("process", "library")
    assert found["level"] == "fail" and "secure mode" in found["sentence"], found
    kill(process)


@one(Combo.BOTH)
def test_io_uring(bench):
    script = (
        "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True); p = ctypes.create_string_buffer(120); "
        "fd = libc.syscall(425, 2, p); print('FD', fd if fd >= 0 else -ctypes.get_errno(), flush=True); sys.stdin.read()"
    )
    process = bench.start([PYTHON, "-c", script], SERVER, name="uring", stdin=subprocess.PIPE)
    fd = int(process.wait_line(r"^FD (-?\d+)$").group(1))
    if fd < 0:
        pytest.skip(f"the kernel has no io_uring for us ({os.strerror(-fd)})")
    found = ask(process.pid).one("process", "io-uring")
    assert found["level"] == "warn" and found["facts"]["instances"] == 1 and "io_uring" in found["remedy"]
    process.stdin.close()
    process.finish()


@needs_root
@one(Combo.BOTH)
def test_other_network_namespace(bench):
    process = bench.start(["unshare", "-n", PYTHON, "-c", "import sys; print('READY', flush=True); sys.stdin.read()"], SERVER, name="apart", stdin=subprocess.PIPE)
    process.wait_line("^READY$")
    found = ask(process.pid).one("process", "place")
    assert found["level"] == "note" and "net" in found["facts"]["other_namespaces"] and "network namespace" in found["sentence"]
    process.stdin.close()
    process.finish()


@needs_root
@one(Combo.BOTH)
def test_another_users_process(bench):
    """Nobody may not look into root's; the sentence says who may."""
    server = echo(bench, connections=0)
    sleeper = bench.start([PYTHON, "-c", "import sys; print('READY', flush=True); sys.stdin.read()"], SERVER, name="mine", stdin=subprocess.PIPE)
    sleeper.wait_line("^READY$")
    result = run(sleeper.pid, user=NOBODY, group=NOBODY, extra_groups=[])
    assert_refused(result, 3, "belongs to root", f"sudo mpklink doctor {sleeper.pid}")
    sleeper.stdin.close()
    sleeper.finish()
    server.finish()


@needs_root
@one(Combo.BOTH)
def test_ends_of_different_users(bench):
    server = echo(bench, uid=NOBODY)
    with talk(bench, server.port()) as client:
        facts = ask(client.pid).one("streams", "shared")["facts"]
        assert facts["peer_uid"] == NOBODY and facts["peer_other_namespaces"] == ""
        assert ask(server.pid).one("process", "place")["facts"]["uid"] == NOBODY
    server.finish()
    bench.assert_ring(min_bytes=10_000)


def test_kernel_thread():
    threads = [p for p in os.listdir("/proc") if p.isdigit() and is_kernel_thread(p)]
    if not threads:
        pytest.skip("no thread of the kernel is visible in this pid namespace")
    assert_refused(run(threads[0]), 3, "thread of the kernel")


def is_kernel_thread(pid: str) -> bool:
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return len(fields) > 6 and int(fields[6]) & 0x00200000 != 0


def test_vanished_process():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert_refused(run(gone.pid), 3, f"no process {gone.pid}")


def test_zombie():
    zombie = subprocess.Popen(["true"])
    eventually(lambda: harness.is_zombie(zombie.pid), what="the end of true")
    assert_refused(run(zombie.pid), 3, "has ended")
    zombie.wait()


@one(Combo.NEITHER)
def test_names_do_not_speak_to_the_terminal(bench):
    path = bench.dir / "evil\x1b[31m\n"
    shutil.copy("/bin/sleep", path)
    process = bench.start([path, "60"], name="evil")
    eventually(lambda: "evil" in read_text(f"/proc/{process.pid}/comm"), what="exec")
    text = run(process.pid)
    assert text.returncode == 1 and "\x1b" not in text.stdout and "evil" in text.stdout
    assert "\x1b" not in run("--json", process.pid).stdout
    ask(process.pid)
    kill(process)


# ---- a port ----------------------------------------------------------------------------------------------------------------


@one(Combo.SERVER)
def test_wrapped_service(bench):
    server = echo(bench)
    answer = ask(f"localhost:{server.port()}")
    assert answer.target["kind"] == "listener" and answer.code == 0, answer
    listener = answer.one("listener", "library")
    assert listener["facts"]["pid"] == server.pid and listener["level"] == "ok"
    connection = answer.one("connection", "candidate")
    assert connection["facts"]["peer_pid"] == server.pid and connection["facts"]["peer_library"]
    assert server.finish().splitlines()[-1] == "GOT 0", "doctor sends nothing to a service"


@one(Combo.SERVER)
def test_wrapped_service_on_ipv6(bench):
    server = echo(bench, host="::1")
    answer = ask(f"[::1]:{server.port()}")
    assert answer.code == 0 and answer.one("connection", "candidate")["facts"]["peer_pid"] == server.pid
    server.finish()


@one(Combo.NEITHER)
def test_service_without_the_library(bench):
    server = echo(bench)
    answer = ask(f"127.0.0.1:{server.port()}")
    assert answer.code == 1
    assert answer.one("listener", "library")["remedy"].startswith("Start it again with: mpklink run --")
    assert answer.one("connection", "peer-absent")["level"] == "warn"
    server.finish()


@needs_root
@one(Combo.NEITHER)
def test_service_of_another_user(bench):
    server = echo(bench)
    result = run("--json", f"127.0.0.1:{server.port()}", user=NOBODY, group=NOBODY, extra_groups=[])
    found = Answer(result).one("listener", "owner")
    assert "root" in found["sentence"] and found["remedy"].startswith("sudo mpklink doctor")
    server.finish()


def test_nobody_listens():
    port = free_port()
    assert_refused(run(f"127.0.0.1:{port}"), 3, f"127.0.0.1:{port}", "refused")


def test_not_on_this_machine():
    """192.0.2.0/24 is nobody's (RFC 5737); nothing is sent there."""
    answer = ask("192.0.2.1:80")
    found = answer.one("listener", "address")
    assert found["level"] == "fail" and not found["facts"]["local"] and "not-local" in found["sentence"]
