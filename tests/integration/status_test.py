# SPDX-License-Identifier: MIT
"""The status page (shm/status.h): what tools see of a process."""

import os
import re
import subprocess

import pytest

from harness import CLIENT, SERVER, SO, Combo, eventually
from servers import Nginx
from status_page import Page, Puppet, connected, status_fds, talk

pytestmark = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

# ---- rows ----------------------------------------------------------------------------------------------------------------


def test_a_shared_stream(bench):
    server, client = connected(bench, rounds=100)
    pages = server.page(), client.page()
    rows = [p.row() for p in pages]
    assert [r.mode for r in rows] == ["shared", "shared"] and [r.upgrades for r in rows] == [1, 1]
    assert rows[0].local == rows[1].peer and rows[0].peer == rows[1].local and rows[0].local == ("127.0.0.1", server.proc.port())
    assert [r.connector for r in rows] == [False, True]
    assert [r.fd for r in rows] == [server.tell("s.fileno()"), client.tell("c.fileno()")]
    for r in rows:
        assert (r.tx, r.rx, r.tx_calls) == (10_000, 10_000, 100) and r.rx_calls >= 100
        assert 0 < r.tcp_tx < 5000 and 0 < r.tcp_rx < 5000
        assert r.reason is None and r.revokes == 0
    totals = [p.totals() for p in pages]
    header = pages[0].header()
    assert header.pid == server.pid and header.version == 1 and header.guard in (1, 2, 3) and header.library_version.startswith(b"0.")
    counters = pages[0].counters()
    assert counters["upgraded"] == 1 and counters["bells"] > 0 and counters["gates"] > 0
    server.end(), client.end()
    bench.assert_ring(streams=1, min_bytes=10_000, exact=True, conserved=True)
    for side, total in zip((SERVER, CLIENT), totals):
        stats = bench.stats(side)
        assert (total["ring_tx"], total["ring_rx"], total["tcp_tx"]) == (stats.ring_tx, stats.ring_rx, stats.sum("tcp_tx_bytes"))


def test_every_way_to_move_bytes(bench):
    """Each call counts what it moved, once; a look counts nothing."""
    server, client = connected(bench)
    base = client.page().row("shared")
    client.do("""
c.sendmsg([b'a' * 10, b'b' * 20])
os.write(c.fileno(), b'c' * 30)
os.writev(c.fileno(), [b'd' * 20, b'e' * 20])
f = os.memfd_create('file'); os.write(f, b'f' * 100000)
assert os.sendfile(c.fileno(), f, 0, 100000) > 0
class M(ctypes.Structure): _fields_ = [('h', ctypes.c_char * 56), ('n', ctypes.c_uint)]
class V(ctypes.Structure): _fields_ = [('p', ctypes.c_void_p), ('n', ctypes.c_size_t)]
import struct
text = ctypes.create_string_buffer(b'g' * 50)
vec = V(ctypes.addressof(text), 50)
many = (M * 2)()
for m in many: ctypes.memmove(ctypes.addressof(m), struct.pack('<QIIQQQQI', 0, 0, 0, ctypes.addressof(vec), 1, 0, 0, 0).ljust(56, b'\\0'), 56)
assert libc.sendmmsg(c.fileno(), many, 2, 0) == 2
""")
    sent = client.page().row("shared")
    files = sent.tx - base.tx - 10 - 20 - 30 - 40 - 100
    assert 0 < files <= 100_000
    total = sent.tx - base.tx
    before = server.page().row("shared").rx
    server.do(f"""
assert len(s.recv(100, socket.MSG_PEEK)) > 0
""")
    assert server.page().row("shared").rx == before
    server.do(f"""
got = len(receive_all(s, 10))
b = bytearray(20); got += s.recv_into(b); got += len(s.recvmsg(200)[0]); got += os.readv(s.fileno(), [bytearray(10), bytearray(10)])
got += len(os.read(s.fileno(), 10))
receive_all(s, {total} - got)
""")
    assert server.page().row("shared").rx == before + total
    assert sent.tcp_tx == base.tcp_tx, "the ring was left"
    server.end(), client.end()
    bench.assert_ring(min_bytes=100)


def test_a_plain_stream(bench):
    bench.combo = Combo.CLIENT
    server, client = connected(bench)
    page = client.page()
    while page.row().mode != "plain":  # it takes a while to give up
        assert page.row().mode == "candidate" and page.row().tx < 2_000_000
        talk(server, client, 500)
    row = page.row()
    assert row.reason == "peer-absent" and row.tx == row.tcp_tx == row.rx == row.tcp_rx == row.tx_calls * 100
    talk(server, client, 50)
    assert page.row().tx == row.tx + 5000 == page.row().tcp_tx
    assert client.page().plain() == {"peer-absent": 1}
    assert not status_fds(server.pid)
    server.end(), client.end()
    bench.assert_ring()


def test_ports_that_are_not_wanted(bench):
    bench.settings = {"PORTS": "!1-65535"}
    server, client = connected(bench)
    assert client.page().row().reason == server.page().row().reason == "ports"
    server.end(), client.end()
    bench.assert_fell_back()


def test_ipv6_and_own_address(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener('::1'); c = socket.create_connection(l.getsockname()[:2]); s, _ = l.accept()")
    assert {r.local[0] for r in puppet.page().rows()} == {"::1"} and len(puppet.page().rows()) == 2
    puppet.do("c.close(); s.close(); l6 = listener('::'); c = socket.create_connection(('127.0.0.1', l6.getsockname()[1])); s, _ = l6.accept()")
    assert {r.local[0] for r in puppet.page().rows()} <= {"127.0.0.1", "::1"}
    puppet.end()
    bench.assert_gates()


def test_non_blocking_connect(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener(); c = socket.socket(); c.setblocking(False); c.connect_ex(l.getsockname()); s, _ = l.accept(); c.setblocking(True)")
    puppet.do("serve_echo(l); s.close(); c.close(); c = socket.socket(); c.settimeout(5); c.connect(l.getsockname()); ask(c, 50)")
    assert [r.mode for r in puppet.page().rows()] == ["shared", "shared"]
    puppet.end()
    bench.assert_gates()


def test_a_duplicate_keeps_the_row(bench):
    server, client = connected(bench)
    client.do("d = c.dup(); c.close(); c = d")
    assert client.page().row().fd == client.tell("c.fileno()")
    talk(server, client, 10)
    server.end(), client.end()
    bench.assert_ring()


def test_rows_are_freed(bench):
    puppet = Puppet(bench, SERVER, settings={"WARMUP": 0})
    puppet.do("l = listener(); serve_echo(l)")
    page = puppet.page()
    fds = puppet.tell("len(os.listdir('/proc/self/fd'))")
    puppet.do("""
for i in range(1000):
    with socket.create_connection(l.getsockname()) as c: ask(c, 1 + i % 20 // 19 * 30)
""", timeout_s=80)
    eventually(lambda: not page.rows(), what="no row in use")
    assert page.header().rows_used < 200 and page.header().rows_missing == 0
    counters = page.counters()
    assert counters["upgraded"] >= 50 and counters["ring_tx"] > 0
    assert puppet.tell("len(os.listdir('/proc/self/fd'))") < fds + 20
    puppet.end()
    stats = bench.stats(SERVER)
    assert counters["ring_tx"] == stats.ring_tx and counters["tcp_rx"] == stats.sum("tcp_rx_bytes")


def test_two_thousand_streams(bench):
    puppet = Puppet(bench, SERVER, nofile=10000)
    puppet.do("l = listener(); serve = []; cs = []")
    puppet.do("""
for i in range(2000):
    c = socket.socket(); c.connect(l.getsockname()); cs.append(c); serve.append(l.accept()[0])
for c, s in zip(cs, serve): c.sendall(b'x'); s.recv(1)
""", timeout_s=60)
    rows = puppet.page().rows()
    assert len(rows) == 4000 and len({r.number for r in rows}) == 4000 and len({(r.local, r.peer) for r in rows}) == 4000
    assert sum(r.tx for r in rows) == sum(r.rx for r in rows) == 2000
    puppet.do("for s in cs + serve: s.close()")
    assert not puppet.page().rows() and puppet.page().header().rows_missing == 0
    puppet.end()


# ---- who has a page ------------------------------------------------------------------------------------------------------


def test_no_page_without_tcp(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); u.connect(u.getsockname()); u.send(b'x')")
    puppet.do("t = socket.socket(); a = socket.socket(socket.AF_UNIX); a.bind(chr(0) + 'puppet-%d' % os.getpid()); a.listen()")
    assert not status_fds(puppet.pid)
    puppet.do("l = listener()")
    page = Page(puppet.pid)
    assert page.stat.st_mode & 0o777 == 0o600 and page.rows() == []
    puppet.end()


def test_disabled(bench):
    puppet = Puppet(bench, SERVER, settings={"DISABLE": 1})
    puppet.do("l = listener(); serve_echo(l); c = socket.create_connection(l.getsockname()); ask(c, 20)")
    assert not status_fds(puppet.pid)
    puppet.end()


def test_the_memfd(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener()")
    (fd,) = status_fds(puppet.pid)
    flags = open(f"/proc/{puppet.pid}/fdinfo/{fd}").read()
    assert int(re.search(r"flags:\s+(\d+)", flags)[1], 8) & os.O_CLOEXEC
    with open(f"/proc/{puppet.pid}/fd/{fd}", "r+b", buffering=0) as file:
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(file.fileno(), size)
    puppet.end()


CLOSERS = {
    "close_range": "libc.close_range(3, 0xffffffff, 0)",
    "closefrom": "libc.closefrom(3)",
    "loop": "[libc.close(fd) for fd in range(3, 9000)]",
    "dup2": "[libc.dup2(0, fd) for fd in range(4090, 4110)]",
}


@pytest.mark.parametrize("how", CLOSERS)
def test_it_survives(bench, how):
    puppet = Puppet(bench, SERVER, nofile=10000)
    puppet.do("l = listener(); f = l.detach(); socket.create_connection")
    page = puppet.page()
    started = page.header().started_ns
    puppet.do(CLOSERS[how])
    puppet.do("l = listener(); serve_echo(l); c = socket.create_connection(l.getsockname()); ask(c, 50)")
    assert puppet.page().header().started_ns == started and {r.mode for r in puppet.page().rows()} == {"shared"}
    puppet.end()
    bench.assert_gates()


def test_not_dumpable(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("assert libc.prctl(4, 0) == 0; l = listener(); serve_echo(l); c = socket.create_connection(l.getsockname()); ask(c, 50)")
    if os.getuid() == 0:
        assert len(puppet.page().rows()) == 2
    puppet.end()
    bench.assert_gates()


def test_no_descriptor_left(bench):
    """Nothing is shown, nothing else changes; when there are some again, the page is made."""
    puppet = Puppet(bench, SERVER, nofile=64)
    puppet.do("""
import resource
l = socket.socket(); l.bind(('127.0.0.1', 0)); c = socket.socket(); spare = os.dup(0); s = os.dup(0)
full = []
try:
    while True: full.append(os.dup(0))
except OSError: pass
l.listen(); c.connect(l.getsockname()); os.close(s); s, _ = l.accept()
for i in range(50): c.sendall(b'x' * 10); s.sendall(receive_all(s, 10)); receive_all(c, 10)
""")
    assert not status_fds(puppet.pid)
    puppet.do("[os.close(f) for f in full]; l2 = listener(); serve_echo(l2); d = socket.create_connection(l2.getsockname()); ask(d, 50)")
    assert len(puppet.page().rows()) >= 2
    puppet.end()
    bench.assert_gates()


# ---- processes -----------------------------------------------------------------------------------------------------------

FORKS = {
    "fork": "child = os.fork()",
    "_Fork": "child = libc._Fork()",
    "syscall": "child = libc.syscall(57)",
    "clone": "child = libc.syscall(56, 17, 0, 0, 0, 0)",
    # Nobody hooks it: the child is noticed at its first call.
    "clone3": "a = (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17); child = libc.syscall(435, a, 64)",
}


@pytest.mark.parametrize("how", FORKS)
def test_fork(bench, how):
    """The child has a page of its own from its first operation on a stream; the parent's stays as it is."""
    server, client = connected(bench)
    page = client.page()
    before = page.rows()
    client.do(f"""
ready, go = os.pipe(), os.pipe()
{FORKS[how]}
if child == 0:
    try:
        os.write(ready[1], b'1'); os.read(go[0], 1)
        c.sendall(b'x' * 1000)
        os.write(ready[1], b'2'); os.read(go[0], 1)
        l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(); d = socket.create_connection(l.getsockname()); e, _ = l.accept(); d.sendall(b'12345')
        os.write(ready[1], b'3'); os.read(go[0], 1)
    finally:
        os._exit(0)
os.read(ready[0], 1)
""")
    child = client.tell("child")
    if how != "clone3":
        assert not status_fds(child)
    client.do("os.write(go[1], b'x'); os.read(ready[0], 1)")
    server.do("receive_all(s, 1000)")
    (row,) = Page(child).rows()
    assert (row.local, row.peer, row.tx, row.rx) == (before[0].local, before[0].peer, 1000, 0)
    assert Page(child).header().pid == child
    client.do("os.write(go[1], b'x'); os.read(ready[0], 1)")
    assert {r.tx for r in Page(child).rows()} == {1000, 5, 0}
    (after,) = page.rows()
    assert (after.tx, after.rx, after.tx_calls) == (before[0].tx, before[0].rx, before[0].tx_calls)
    client.do("os.write(go[1], b'x'); os.waitpid(child, 0)")
    assert page.rows()[0].tx == before[0].tx and status_fds(client.pid)
    talk(server, client, 5)
    assert page.rows()[0].tx == before[0].tx + 500
    server.end(), client.end()
    bench.assert_ring()


def test_many_forks(bench):
    """Children of children, each with a page; none writes another's."""
    puppet = Puppet(bench, SERVER)
    puppet.do("""
l = listener(); serve_echo(l); c = socket.create_connection(l.getsockname()); ask(c, 30)
def status():
    return [f for f in os.listdir('/proc/self/fd') if 'mpklink-status' in os.readlink('/proc/self/fd/' + f)] if True else 0
def count():
    n = 0
    for f in os.listdir('/proc/self/fd'):
        try: n += 'mpklink-status' in os.readlink('/proc/self/fd/' + f)
        except OSError: pass
    return n
def grow(depth):
    if depth == 0: return
    for i in range(2):
        child = os.fork()
        if child == 0:
            ok = count() == 0
            m = listener(); d = socket.create_connection(m.getsockname()); e, _ = m.accept(); d.sendall(b'x' * 10); ok = ok and e.recv(20) == b'x' * 10 and count() == 1
            grow(depth - 1)
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
grow(3)
""")
    assert {r.tx for r in puppet.page().rows()} == {3000}
    puppet.end()


def test_fork_while_threads_work(bench):
    """Other threads of the parent are in the middle of operations: their counts go on in the parent alone."""
    puppet = Puppet(bench, SERVER)
    puppet.do("""
l = listener(); serve_echo(l); stop = False; done = [0] * 3
def work(i):
    with socket.create_connection(l.getsockname()) as c:
        while not stop: ask(c, 10); done[i] += 1000
ts = [threading.Thread(target=work, args=(i,)) for i in range(3)]
for t in ts: t.start()
for i in range(40):
    child = os.fork()
    if child == 0:
        m = listener(); d = socket.create_connection(m.getsockname()); e, _ = m.accept(); d.sendall(b'x' * 10); os._exit(0 if e.recv(20) == b'x' * 10 else 1)
    assert os.waitpid(child, 0)[1] == 0
stop = True
for t in ts: t.join()
""", timeout_s=60)
    totals = puppet.page().totals()
    done = puppet.tell("sum(done)")
    assert totals["tcp_tx"] + totals["ring_tx"] == 2 * done and totals["tcp_rx"] + totals["ring_rx"] == 2 * done
    puppet.end()


def test_spawned_programs(bench):
    """vfork, posix_spawn: the child changes nothing of its parent's page."""
    server, client = connected(bench)
    page = client.page()
    before = page.rows()
    client.do("import subprocess; assert subprocess.run(['/bin/true'], close_fds=True).returncode == 0")
    client.do("pid = os.posix_spawn('/bin/true', ['true'], os.environ); os.waitpid(pid, 0); os.system('true')")
    assert page.rows() == before and client.page().header().started_ns == page.header().started_ns
    talk(server, client, 5)
    assert page.row().tx == before[0].tx + 500
    server.end(), client.end()
    bench.assert_ring()


def test_exec(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener()")
    assert status_fds(puppet.pid)
    puppet.begin("os.execv(sys.executable, [sys.executable, '-c', 'import time; print(\"NEW\", flush=True); time.sleep(30)'])")
    puppet.proc.wait_line("^NEW$")
    assert not status_fds(puppet.pid)
    puppet.proc.send_signal(9)
    bench.killed.add(SERVER)


def test_nginx_workers(bench, docroot):
    nginx = Nginx(bench, docroot.dir, workers=2)
    bench.run(["wrk", "-t1", "-c8", "-d1s", nginx.url("f100k")], CLIENT)
    pages = [Page(pid) for pid in nginx.worker_pids() if status_fds(pid)]  # one may have had no connection
    assert sum(p.counters()["upgraded"] for p in pages) == 8
    assert sum(p.counters()["ring_tx"] for p in pages) > 8 * 100_000
    nginx.stop()
    bench.assert_ring(streams=8)


# ---- probes --------------------------------------------------------------------------------------------------------------

PROBES = {"upgrade": 2, "revoke": 2, "plain": 2, "bell": 0, "sleep": 0, "wake": 0, "ring__full": 1}


def test_probes(combo):
    if not os.path.exists("/usr/include/x86_64-linux-gnu/sys/sdt.h"):
        pytest.skip("built without sys/sdt.h (systemtap-sdt-dev)")
    notes = subprocess.run(["readelf", "-nW", SO], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Provider: mpklink\n\s+Name: (\w+)\n.*\n\s+Arguments:(.*)", notes)
    assert {name: len(arguments.split()) for name, arguments in found} == PROBES


def test_the_library_needs_libc_only_and_is_small(combo, tmp_path):
    dynamic = subprocess.run(["readelf", "-dW", SO], capture_output=True, text=True, check=True).stdout
    if "libasan" in dynamic or "libtsan" in dynamic:
        pytest.skip("built with a sanitizer")
    assert re.findall(r"NEEDED.*\[(.*)\]", dynamic) == ["libc.so.6"]
    subprocess.run(["strip", "-o", tmp_path / "stripped", SO], check=True)
    assert (tmp_path / "stripped").stat().st_size < 250_000
