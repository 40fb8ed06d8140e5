# SPDX-License-Identifier: MIT
"""What tools ask of a running process by its status page: off and on, and copies of its bytes (shm/status.h, Requests)."""

import contextlib
import os
import random
import socket
import subprocess
import threading
import time

import pytest

from harness import CLIENT, PYTHON, SERVER, Combo, eventually
from servers import Nginx
from status_page import DATA, END, OFF, OFF_PORTS, TAP, Page, Puppet, connected, parse_record, talk, until_mode

pytestmark = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

# ---- off and on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["server", "client"])
def test_off(bench, asked):
    server, client = connected(bench, rounds=50)
    puppet = {"server": server, "client": client}[asked]
    page = puppet.page()
    before = page.row("shared")
    page.want(OFF)
    talk(server, client, 50)
    after = page.row("plain")
    assert after.reason == "switched-off" and after.revokes == 1
    assert after.tcp_tx > before.tcp_tx and after.tcp_rx > before.tcp_rx
    ring = page.totals()["ring_tx"]
    talk(server, client, 50)
    assert page.totals()["ring_tx"] == ring and page.row().tx == 15_000
    # New ones are not upgraded; after `on` they are, and the one that was switched off stays where it is.
    new = "c2 = socket.create_connection(('127.0.0.1', %d))" % server.proc.port()
    client.do(new), server.do("t, _ = l.accept(); threading.Thread(target=lambda: [t.sendall(receive_all(t, 100)) for _ in range(300)]).start()")
    client.do("ask(c2, 300)")
    assert {r.mode for r in page.rows()} == {"plain"} and page.plain()["switched-off"] == 2
    page.want(0)
    client.do(new), server.do("t, _ = l.accept(); threading.Thread(target=lambda: [t.sendall(receive_all(t, 100)) for _ in range(300)]).start()")
    client.do("ask(c2, 300)")
    talk(server, client, 50)
    assert until_mode(page, "shared") and page.counters()["upgraded"] == 2
    server.end(), client.end()
    bench.assert_ring(streams=2, min_bytes=10_000)
    bench.assert_revoked()


def test_off_by_port(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("a, b = listener(), listener(); serve_echo(a); serve_echo(b)")
    puppet.do("c, d = socket.create_connection(a.getsockname()), socket.create_connection(b.getsockname()); ask(c, 50); ask(d, 50)")
    page = puppet.page()
    port = puppet.tell("a.getsockname()[1]")
    page.set_off_port(port)
    page.want(OFF | OFF_PORTS)
    puppet.do("ask(c, 100); ask(d, 100)")
    for row in page.rows():
        assert row.mode == ("plain" if port in (row.local[1], row.peer[1]) else "shared"), row
    assert sorted(r.mode for r in page.rows()) == ["plain", "plain", "shared", "shared"]
    puppet.end()
    bench.assert_ring(streams=4, sides=[SERVER])


@pytest.mark.parametrize("asked", ["sender", "receiver"])
def test_off_when_all_goes_one_way(bench, asked):
    """A sender that never receives does not see that its peer asks."""
    server, client = connected(bench)
    page = {"sender": client, "receiver": server}[asked].page()
    n = 30_000_000
    sending = client.begin(f"block = os.urandom(1000000)\nfor i in range(30): c.sendall(block)\ntime.sleep(0.2); c.sendall(b'end')")
    receiving = server.begin("import hashlib; h = hashlib.sha256(receive_all(s, 30000000)).hexdigest(); assert receive_all(s, 3) == b'end'")
    time.sleep(0.01)
    page.want(OFF)
    client.wait(sending), server.wait(receiving)
    client.do("import hashlib; h = hashlib.sha256(block * 30).hexdigest()")
    assert client.tell("h") == server.tell("h")
    talk(server, client, 30)
    assert page.row("plain").reason == "switched-off"
    assert (page.row().tx if asked == "sender" else page.row().rx) == n + 3 + 6000
    server.end(), client.end()
    bench.assert_ring()


@pytest.mark.parametrize("asked", ["server", "client"])
def test_off_of_many_while_they_work(bench, asked):
    """Every byte of checked transfers in both directions arrives, whenever it comes: blocking threads."""
    n = 6
    arguments = [f"--connections={n}", "--max-size=20000"]
    server = bench.start([bench.program("echo_threads"), "server", *arguments], SERVER)
    client = bench.start([bench.program("echo_threads"), "client", f"--port={server.port()}", "--rounds=6000", "--pause-at=300", *arguments], CLIENT,
                         stdin=subprocess.PIPE)  # fmt: skip
    eventually(lambda: client.stdout().count("PAUSED") == n, what="all paused", timeout_s=30)
    page = Page({"server": server, "client": client}[asked].pid)
    shared = sum(r.mode == "shared" for r in page.rows())
    assert shared >= n - 2, page.rows()  # on a busy machine one may have given up
    before = page.totals()
    client.stdin.write(b"go\n" * n)
    client.stdin.flush()
    eventually(lambda: page.totals()["ring_tx"] > before["ring_tx"] + 100_000, what="bytes over the ring")
    assert client.running()
    page.want(OFF)
    eventually(lambda: all(r.mode == "plain" for r in page.rows()), what="all plain")
    assert sum(r.reason == "switched-off" for r in page.rows()) == shared
    ring = page.totals()["ring_tx"]
    eventually(lambda: page.totals()["tcp_tx"] > before["tcp_tx"] + 1_000_000, what="bytes over TCP")
    assert client.running(), "it came too late to show anything"
    assert page.totals()["ring_tx"] == ring
    bench.succeed(client, 60)
    bench.succeed(server)
    bench.assert_ring(streams=shared, min_bytes=100_000)
    bench.assert_revoked()


@pytest.mark.parametrize("asked", ["server", "client"])
@pytest.mark.parametrize("wait", ["epoll", "epoll-et", "poll"])
def test_off_of_event_loops(bench, wait, asked):
    n = 4
    volume = 200_000_000 if wait == "epoll-et" else 60_000_000
    arguments = [f"--connections={n}", f"--wait={wait}", f"--bytes={volume}", "--max-size=20000"]
    server = bench.start([bench.program("echo_events"), "server", *arguments], SERVER)
    client = bench.start([bench.program("echo_events"), "client", f"--port={server.port()}", *arguments], CLIENT)
    page = eventually(lambda: page_of({"server": server, "client": client}[asked]), what="a page")
    eventually(lambda: sum(r.mode == "shared" for r in page.rows()) == n, what="all upgraded")
    eventually(lambda: page.totals()["ring_tx"] > 1_000_000, what="bytes over the ring")
    page.want(OFF)
    # The edge-triggered loops serve a stream to its end before the next, which takes no operation meanwhile. And one may have ended by now.
    enough = any if wait == "epoll-et" else all
    eventually(lambda: enough(r.mode == "plain" and r.reason == "switched-off" for r in page.rows()), what="plain")
    assert client.running(), "it came too late to show anything"
    bench.succeed(client, 80)
    bench.succeed(server)
    bench.assert_ring(streams=n, min_bytes=1_000_000)
    bench.assert_revoked()


def test_off_nginx(bench, docroot):
    nginx = Nginx(bench, docroot.dir)
    wrk = bench.start(["wrk", "-t1", "-c16", "-d3s", "--timeout", "10s", nginx.url("f100k")], CLIENT)
    page = eventually(lambda: next((p for p in map(page_of_pid, nginx.worker_pids()) if p), None), what="a page")
    eventually(lambda: sum(r.mode == "shared" for r in page.rows()) == 16, what="all upgraded")
    page.want(OFF)
    eventually(lambda: all(r.mode == "plain" for r in page.rows()), what="all plain")
    text = wrk.finish()
    assert "Socket errors" not in text and "Non-2xx" not in text, text
    nginx.stop()
    bench.assert_ring(streams=16)
    bench.assert_revoked()


def page_of(proc):
    return page_of_pid(proc.pid)


def page_of_pid(pid):
    with contextlib.suppress(AssertionError, OSError):
        return Page(pid)


def test_random_requests(bench):
    """Another process writes random words over all of Requests without a pause: no crash, no lost byte."""
    n = 4
    arguments = [f"--connections={n}", "--max-size=20000"]
    server = bench.start([bench.program("echo_threads"), "server", *arguments], SERVER)
    stop = threading.Event()
    noise = random.Random(1)

    def scribble(proc):
        page = eventually(lambda: page_of(proc) or not proc.running(), what="a page")
        while page is not True and not stop.is_set():
            page.scribble(noise.randbytes(80 + 8192))
            page.want(noise.choice([0, TAP, OFF | OFF_PORTS | TAP, noise.getrandbits(32)]))

    threads = [threading.Thread(target=scribble, args=(server,))]
    threads[0].start()
    for i in range(3):
        client = bench.start([bench.program("echo_threads"), "client", f"--port={server.port()}", "--rounds=1500", *arguments], CLIENT)
        threads.append(threading.Thread(target=scribble, args=(client,)))
        threads[-1].start()
        try:
            bench.succeed(client, 60)
        finally:
            if i == 2 or client.popen.returncode != 0:
                stop.set()
        if i < 2:
            bench.succeed(server)
            server = bench.start([bench.program("echo_threads"), "server", *arguments], SERVER)
            threads.append(threading.Thread(target=scribble, args=(server,)))
            threads[-1].start()
    for t in threads:
        t.join(20)
    bench.succeed(server)
    bench.assert_gates()


# ---- tap -----------------------------------------------------------------------------------------------------------------


class Listener:
    """What `mpklink dump` has: a socket at an abstract name, and what came, in order."""

    def __init__(self, read=True):
        self.name = b"mpklink-test/" + os.urandom(8).hex().encode()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(b"\0" + self.name)
        self.socket.listen()
        self.records, self.connections = [], []
        if read:
            threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                c, _ = self.socket.accept()
                c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                self.connections.append(c)
                threading.Thread(target=self.receive, args=(c,), daemon=True).start()

    def receive(self, c):
        with contextlib.suppress(OSError):
            while data := c.recv(1 << 16):
                self.records.append(parse_record(data))

    def stream(self, outgoing: bool) -> bytes:
        """The bytes of one direction of the only connection; each where its offset says."""
        data = bytearray()
        for r in self.records:
            if r.kind == DATA and r.outgoing == outgoing:
                assert r.offset == len(data), (r.offset, len(data))
                data += r.payload
        return bytes(data)

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)  # ends the accept, which would keep it open
        self.socket.close()
        for c in self.connections:
            with contextlib.suppress(OSError):
                c.shutdown(socket.SHUT_RDWR)
            c.close()


def test_tap(bench):
    """All that is sent and received, from the first byte on, over TCP and the ring, and its end."""
    tap = Listener()
    client = Puppet(bench, CLIENT, name="client")
    client.do("x = listener()")
    page = client.page()
    page.set_tap(tap.name)
    server = Puppet(bench, SERVER, name="server")
    server.do("l = listener()")
    client.do(f"c = socket.create_connection(('127.0.0.1', {server.proc.port()}))")
    server.do("s, _ = l.accept()")
    client.do("sent = os.urandom(1_000_000); c.sendall(sent[:500]); c.sendmsg([sent[500:600], sent[600:1000]])")
    client.do("for i in range(1000, 20000, 100): c.sendall(sent[i:i + 100])")
    server.do("got = receive_all(s, 20000)")
    for i in range(20_000, 1_000_000, 49_000):  # never more than its socket takes
        number = client.begin(f"c.sendall(sent[{i}:{i + 49_000}])")
        server.do("got += receive_all(s, 49000)")
        client.wait(number)
        eventually(lambda: len(tap.stream(True)) >= i + 49_000, what="the bytes at the tap")
    for i in range(0, 1_000_000, 50_000):
        number = server.begin(f"s.sendall(got[{i}:{i + 50_000}])")
        client.do(f"assert receive_all(c, 50000) == sent[{i}:{i + 50_000}]")
        server.wait(number)
        eventually(lambda: len(tap.stream(False)) >= i + 50_000, what="the bytes at the tap")
    server.do("s.shutdown(socket.SHUT_WR)")
    client.do("assert c.recv(1) == b''; c.close()")
    eventually(lambda: sum(r.kind == END for r in tap.records) == 2, what="both ends")
    import hashlib

    assert hashlib.sha256(tap.stream(True)).hexdigest() == client.tell("__import__('hashlib').sha256(sent).hexdigest()")
    assert tap.stream(False) == tap.stream(True) and len(tap.stream(True)) == 1_000_000
    assert {r.shared for r in tap.records} == {True, False} and {r.pid for r in tap.records} == {client.pid}
    assert {r.peer for r in tap.records} == {("127.0.0.1", server.proc.port())} and all(r.connector for r in tap.records)
    assert page.counters()["tap_dropped"] == 0 and page.counters()["tap_records"] == len(tap.records)
    tap.close()
    server.end(), client.end()
    bench.assert_ring(min_bytes=1_000_000)


def test_tap_of_files(bench):
    """sendfile over a ring and by the kernel."""
    tap = Listener()
    server, client = connected(bench)
    client.page().set_tap(tap.name)
    client.do("f = os.memfd_create('f'); data = os.urandom(100000); os.write(f, data)")
    number = server.begin("receive_all(s, 100000)")
    base = client.page().row().tx
    client.do("n = 0\nwhile n < 100000: n += os.sendfile(c.fileno(), f, n, 100000 - n)")
    server.wait(number)
    client.page().want(TAP | OFF)
    number = server.begin("receive_all(s, 100000); s.sendall(b'x'); receive_all(s, 100000)")
    client.do("n = 0\nwhile n < 100000: n += os.sendfile(c.fileno(), f, n, 100000 - n)")
    client.do("c.recv(1); os.lseek(f, 0, 0); n = 0\nwhile n < 100000: n += libc.sendfile(c.fileno(), f, None, ctypes.c_size_t(100000 - n))")
    server.wait(number)
    data = bytes(client.tell("list(data)"))
    eventually(lambda: sum(len(r.payload) for r in tap.records if r.outgoing) >= 300_000, what="three files")
    at = base
    for r in tap.records:
        if r.outgoing:
            assert r.offset == at and r.payload == data[(at - base) % 100000 :][: len(r.payload)]
            at += len(r.payload)
    assert client.page().row().mode == "plain"
    tap.close(), server.end(), client.end()
    bench.assert_ring()


def test_tap_by_port(bench):
    tap = Listener()
    puppet = Puppet(bench, SERVER)
    puppet.do("a, b = listener(), listener(); serve_echo(a); serve_echo(b)")
    puppet.do("c, d = socket.create_connection(a.getsockname()), socket.create_connection(b.getsockname())")
    port = puppet.tell("a.getsockname()[1]")
    puppet.page().set_tap(tap.name, port)
    puppet.do("ask(c, 50); ask(d, 50)")
    eventually(lambda: sum(len(r.payload) for r in tap.records) >= 20_000, what="the bytes of both ends of one connection")
    assert {port in (r.local[1], r.peer[1]) for r in tap.records} == {True} and sum(len(r.payload) for r in tap.records) == 20_000
    puppet.end()
    tap.close()


def test_tap_that_does_not_read(bench):
    """Never waits: what is not taken is counted."""
    tap = Listener(read=False)
    server, client = connected(bench)
    client.page().set_tap(tap.name)
    talk(server, client, 500, size=5000)
    counters = client.page().counters()
    assert counters["tap_dropped"] > 100 and counters["tap_records"] > 0
    assert client.page().wanted() == TAP
    c, _ = tap.socket.accept()
    for _ in range(counters["tap_records"]):
        c.recv(1 << 16)
    talk(server, client, 1)
    record = parse_record(c.recv(1 << 16))
    assert record.dropped >= counters["tap_dropped"]
    c.close(), tap.close(), server.end(), client.end()
    bench.assert_ring(min_bytes=1_000_000)


@pytest.mark.parametrize("when", ["before", "during"])
def test_tap_that_is_gone(bench, when):
    tap = Listener()
    server, client = connected(bench)
    page = client.page()
    talk(server, client, 20)  # what the library makes for itself is there
    fds = client.tell("len(os.listdir('/proc/self/fd'))")
    if when == "before":
        tap.close()
    page.set_tap(tap.name)
    talk(server, client, 5)
    if when == "during":
        eventually(lambda: tap.records, what="a record")
        assert page.wanted() == TAP
        tap.close()
        talk(server, client, 5)
    assert page.wanted() == 0
    assert client.tell("len(os.listdir('/proc/self/fd'))") <= fds
    talk(server, client, 5)
    # The next tool is served although the last one's socket was still there when it came.
    one, two = Listener(), Listener()
    page.set_tap(one.name)
    talk(server, client, 2)
    eventually(lambda: one.records, what="a record")
    page.want(0)
    one.close()
    page.set_tap(two.name)
    talk(server, client, 2)
    eventually(lambda: two.records, what="a record at the second")
    two.close(), server.end(), client.end()
    bench.assert_ring()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_tap_of_another_user(bench):
    """Somebody else listens at the name, and gets nothing."""
    name = b"mpklink-test/" + os.urandom(8).hex().encode()
    code = ("import os, socket, sys; os.setuid(65533); s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
            f"s.bind(b'\\0' + {name!r}); s.listen(); print('READY', flush=True); c, _ = s.accept(); print('GOT', len(c.recv(100000)), flush=True)")  # fmt: skip
    thief = bench.start([PYTHON, "-c", code])
    thief.wait_line("^READY$")
    server, client = connected(bench)
    page = client.page()
    page.set_tap(name)
    talk(server, client, 5)
    assert page.wanted() == 0 and page.counters()["tap_records"] == 0
    assert thief.wait_line(r"^GOT (\d+)$").group(1) == "0"
    server.end(), client.end()
    bench.assert_ring()


def test_tap_of_a_forked_child(bench):
    """It does not send on its parent's socket, and has requests of its own."""
    tap = Listener()
    server, client = connected(bench)
    client.page().set_tap(tap.name)
    talk(server, client, 5)
    client.do("""
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    try:
        c.sendall(b'a' * 10); os.write(ready[1], b'1'); os.read(go[0], 1)
        c.sendall(b'b' * 10); os.write(ready[1], b'1'); os.read(go[0], 1)
    finally:
        os._exit(0)
os.read(ready[0], 1)
""")
    child = client.tell("child")
    assert {r.pid for r in tap.records} == {client.pid}
    Page(child).set_tap(tap.name)
    client.do("os.write(go[1], b'x'); os.read(ready[0], 1)")
    eventually(lambda: [r.payload for r in tap.records if r.pid == child] == [b"b" * 10], what="the child's own record")
    server.do("receive_all(s, 20)")
    client.do("os.write(go[1], b'x'); os.waitpid(child, 0)")
    tap.close(), server.end(), client.end()
    bench.assert_ring()


def test_tap_from_memory_that_goes(bench):
    """A call with bad memory at its end: what was moved counts, what cannot be read is dropped, nothing crashes."""
    tap = Listener()
    server, client = connected(bench)
    client.page().set_tap(tap.name)
    client.do("""
import mmap
m = mmap.mmap(-1, 8192); at = ctypes.addressof(ctypes.c_char.from_buffer(m))
assert libc.munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t(4096)) == 0
libc.send.restype = ctypes.c_ssize_t
n = libc.send(c.fileno(), ctypes.c_void_p(at + 4000), ctypes.c_size_t(200), 0)
assert n in (-1, 96), n
""")
    n = client.tell("max(n, 0)")
    server.do(f"receive_all(s, {n})")
    talk(server, client, 5)
    eventually(lambda: sum(len(r.payload) for r in tap.records) in (1000, 1000 + n), what="the rest")
    tap.close(), server.end(), client.end()
    bench.assert_ring()


def test_no_descriptor_for_the_tap(bench):
    tap = Listener()
    puppet = Puppet(bench, SERVER, nofile=64)
    puppet.do("l = listener(); serve_echo(l); c = socket.create_connection(l.getsockname()); ask(c, 50)")
    puppet.do("full = []\ntry:\n  while True: full.append(os.dup(0))\nexcept OSError: pass")
    puppet.page().set_tap(tap.name)
    puppet.do("ask(c, 50)")
    assert puppet.page().counters()["tap_dropped"] >= 200 and not tap.records
    puppet.do("[os.close(f) for f in full]; ask(c, 50)")
    eventually(lambda: tap.records, what="a record")
    tap.close(), puppet.end()


def test_tap_of_a_server(bench, docroot):
    """nginx and wrk run on as ever."""
    tap = Listener()
    nginx = Nginx(bench, docroot.dir)
    wrk = bench.start(["wrk", "-t1", "-c8", "-d2s", nginx.url("hello")], CLIENT)
    page = eventually(lambda: next((p for p in map(page_of_pid, nginx.worker_pids()) if p), None), what="a page")
    page.set_tap(tap.name)
    text = wrk.finish()
    assert "Socket errors" not in text and "Non-2xx" not in text, text
    eventually(lambda: len(tap.records) > 100, what="records")
    assert any(r.payload.startswith(b"GET /hello") for r in tap.records) and any(r.payload.startswith(b"HTTP/1.1 200") for r in tap.records)
    nginx.stop()
    tap.close()
    bench.assert_ring(streams=8)
