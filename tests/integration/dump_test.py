# SPDX-License-Identifier: MIT
"""`mpklink dump`: the captures are what the programs sent, byte for byte, once, and in headers that add up (capture.py reads them on its own)."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from capture import Capture
from dumping import Dump, client_port, connect, exchange, is_asked, not_yet_connected, pattern, tap_name
from harness import CLIENT, SERVER, Combo, eventually
from live_tools import OWN_UID, TOOL, Puppet, as_user, is_root, own_dir, refused, start_tool, tool
from status_page import TAP_RECORD, talk

pytestmark = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

needs_root = pytest.mark.skipif(not is_root(), reason="needs root: becomes another user")


# ---- what is captured ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_directions(bench, host):
    server, client = not_yet_connected(bench, host)
    dump = Dump(bench, "port", server.proc.port(), asked=[server, client])
    connect(server, client, host)
    port = client_port(client)
    up, down = exchange(server, client, 100, dump=dump)
    client.do("c.shutdown(socket.SHUT_WR)"), server.do("assert s.recv(10) == b''; s.close()"), client.do("assert c.recv(10) == b''; c.close()")
    time.sleep(0.3)
    capture = dump.end()
    connection = capture.only()
    assert connection.client == (host, port) and connection.server == (host, server.proc.port())
    assert connection.up.bytes() == up and connection.down.bytes() == down
    assert connection.up.fin and connection.down.fin and not connection.reset
    assert capture.statistics["dropped"] == 0 and capture.statistics["received"] > 0
    comments = [s.comment for s in connection.segments if s.comment]
    assert re.match(r"as python3\[\d+\] saw it$", comments[0]) and "from here on through shared memory" in comments
    times = [s.time_ns for s in connection.segments]
    assert times == sorted(times) and abs(times[-1] / 1e9 - time.time()) < 300
    server.end(), client.end()
    bench.assert_ring(min_bytes=300_000)


def test_large_messages(bench):
    """One send of the program's is many records; all of it is there, or counted as dropped."""
    server, client = not_yet_connected(bench)
    dump = Dump(bench, asked=[server, client])
    connect(server, client)
    before = exchange(server, client, 50, size=200)
    after = exchange(server, client, 10, size=150_000)
    server.end(), client.end()
    capture = dump.end()
    connection = capture.only()
    for direction, bytes_ in zip((connection.up, connection.down), (a + b for a, b in zip(before, after))):
        for at, data in direction.data.items():
            assert bytes_[at : at + len(data)] == data
        assert len(direction.data) > 50
        if capture.statistics["dropped"] == 0:
            assert direction.bytes() == bytes_
    bench.assert_ring(min_bytes=1_000_000)


def test_from_the_middle(bench):
    """A connection that is older than the capture begins where the capture does, without a gap."""
    server, client = not_yet_connected(bench)
    connect(server, client)
    exchange(server, client, 50)
    dump = Dump(bench, "port", server.proc.port(), "and", "host", "127.0.0.1", asked=[server, client])
    up, down = exchange(server, client, 20, dump=dump)
    connection = dump.end().only()
    # The first operation after the request may still be the one before it.
    assert up.endswith(connection.up.bytes()) and len(connection.up.bytes()) >= len(up) - 6000
    assert down.endswith(connection.down.bytes()) and len(connection.down.bytes()) >= len(down) - 6000
    assert "older than this capture" in connection.segments[0].comment
    talk(server, client, 5)
    assert not is_asked(server.page()) and not is_asked(client.page())
    server.end(), client.end()
    bench.assert_ring(min_bytes=300_000)


def test_many_connections(bench):
    server, client = not_yet_connected(bench)
    dump = Dump(bench, asked=[server, client])
    server.do("serve_echo(l)")
    client.do("""
def one(i):
    with socket.create_connection(('127.0.0.1', %d)) as c:
        for k in range(20):
            c.sendall(pattern(f'{i}.{k}', 700)); assert receive_all(c, 700) == pattern(f'{i}.{k}', 700)
        c.shutdown(socket.SHUT_WR); assert c.recv(1) == b''
threads = [threading.Thread(target=one, args=(i,)) for i in range(30)]
for t in threads: t.start()
for t in threads: t.join()""" % server.proc.port())
    time.sleep(0.3)
    capture = dump.end()
    if capture.statistics["dropped"] == 0:
        expected = sorted(b"".join(pattern(f"{i}.{k}", 700) for k in range(20)) for i in range(30))
        assert sorted(c.up.bytes() for c in capture.connections) == expected == sorted(c.down.bytes() for c in capture.connections)
    server.end(), client.end()
    bench.assert_ring(streams=5)


def test_both_ends_in_one_process(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener(); serve_echo(l)")
    dump = Dump(bench, "pid", puppet.pid, asked=[puppet])
    puppet.do("c = socket.create_connection(l.getsockname()); ask(c, 50); c.close(); time.sleep(0.2)")
    connection = dump.end().only()
    assert connection.up.bytes() == connection.down.bytes() == b"".join(bytes([i]) * 100 for i in range(50))
    puppet.end()
    bench.assert_ring(streams=2, sides=[SERVER])


def test_one_end_preloaded(bench):
    bench.combo = Combo.CLIENT
    server, client = not_yet_connected(bench)
    dump = Dump(bench, "pid", client.pid, asked=[client])
    connect(server, client)
    up, down = exchange(server, client, 5, dump=dump)
    connection = dump.end().only()
    assert (connection.up.bytes(), connection.down.bytes()) == (up, down)
    server.end(), client.end()


def test_processes_that_start_later(bench):
    dump = Dump(bench)
    eventually(lambda: "waiting for one" in dump.proc.stderr() or dump.written())
    server, client = not_yet_connected(bench)
    eventually(lambda: is_asked(server.page()) and is_asked(client.page()))
    connect(server, client)
    up, down = exchange(server, client, 5, dump=dump)
    capture = dump.end()
    assert (up, down) in [(c.up.bytes(), c.down.bytes()) for c in capture.connections]
    server.end(), client.end()


def test_process_that_dies(bench):
    """The other end goes on with the capture where the killed one was, and nothing comes twice."""
    server, client = not_yet_connected(bench)
    dump = Dump(bench, "port", server.proc.port(), asked=[server, client])
    connect(server, client)
    up, down = exchange(server, client, 30, dump=dump)
    client.proc.send_signal(signal.SIGKILL)
    client.proc.wait()
    bench.killed.add(CLIENT)
    server.do("try: assert s.recv(10) == b''\nexcept ConnectionResetError: pass")
    time.sleep(0.5)
    connection = dump.end().only()
    assert (connection.up.bytes(), connection.down.bytes()) == (up, down)
    client.proc.popen.stdin.close()
    server.end()


def test_filter(bench):
    server, client = not_yet_connected(bench)
    port = server.proc.port()
    dump = Dump(bench, f"port {port} and host localhost", asked=[server, client])
    client.do("l = listener(); serve_echo(l); y = socket.create_connection(l.getsockname()); ask(y, 5)")
    connect(server, client)
    up, _ = exchange(server, client, 5, dump=dump)
    assert dump.end().only().up.bytes() == up
    server.end(), client.end()


# ---- its end -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "count", "duration", "target"])
def test_end(bench, how):
    server, client = not_yet_connected(bench)
    options = {"count": ["-c", 10], "duration": ["--duration", 2], "target": ["pid", client.pid]}.get(how, [])
    dump = Dump(bench, *options, asked=[client] if how == "target" else [server, client])
    page = server.page()
    connect(server, client)
    exchange(server, client, 20)
    if how == "target":
        client.do("c.close()"), client.end()
    capture = dump.end(getattr(signal, how, 0))
    if how == "count":
        assert sum(1 for c in capture.connections for s in c.segments if s.payload) == 10
    assert not is_asked(page)
    server.end()
    if how != "target":
        client.end()
    bench.assert_ring()


def test_killed_dump(bench):
    """The library finds out by itself; and another dump can begin before it has."""
    server, client = not_yet_connected(bench)
    connect(server, client)
    dump = Dump(bench, asked=[server, client])
    exchange(server, client, 5)
    dump.proc.send_signal(signal.SIGKILL)
    dump.proc.wait()
    exchange(server, client, 5)
    assert not is_asked(server.page()) and not is_asked(client.page())
    dump = Dump(bench, asked=[server, client])
    dump.proc.send_signal(signal.SIGKILL)
    dump.proc.wait()
    assert is_asked(server.page())
    again = Dump(bench, asked=[server, client])
    up, _ = exchange(server, client, 5, dump=again)
    assert again.end().only().up.bytes()[-6000:] == up[-6000:]
    server.end(), client.end()
    bench.assert_ring()


def test_second_dump(bench):
    server, client = not_yet_connected(bench)
    dump = Dump(bench, asked=[server, client])
    sentence = refused(bench, "dump", "pid", server.pid, "-w", own_dir(bench) / "second", words=["dumped already", dump.proc.pid, "kill"])
    assert str(server.pid) in sentence
    connect(server, client)
    up, _ = exchange(server, client, 5, dump=dump)
    assert dump.end().only().up.bytes() == up
    tool(bench, "dump", "pid", server.pid, "-w", own_dir(bench) / "second", "--duration", 0.1)
    server.end(), client.end()


@pytest.mark.parametrize("busy", [False, True])
def test_reader_goes(bench, busy):
    server, client = not_yet_connected(bench)
    page = server.page()
    dump = subprocess.Popen([TOOL, "dump", "-w", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=bench.env_for(None), **as_user(None))
    eventually(lambda: is_asked(page))
    connect(server, client)
    exchange(server, client, 5)
    dump.stdout.read(1000)
    dump.stdout.close()
    if busy:
        exchange(server, client, 5)
    assert dump.wait(30) == 0 and not dump.stderr.read()
    dump.stderr.close()
    assert not is_asked(page)
    exchange(server, client, 5)
    server.end(), client.end()
    bench.assert_ring()


def test_live_pipe(bench):
    """Each record can be read as soon as it was written."""
    server, client = not_yet_connected(bench)
    dump = subprocess.Popen([TOOL, "dump", "-w", "-"], stdout=subprocess.PIPE, env=bench.env_for(None), **as_user(None))
    eventually(lambda: is_asked(server.page()) and is_asked(client.page()))
    connect(server, client)
    os.set_blocking(dump.stdout.fileno(), False)
    seen = b""
    for i in range(5):
        client.do(f"c.sendall(b'message {i};')"), server.do("receive_all(s, 10)")

        def arrived():
            nonlocal seen
            seen += dump.stdout.read() or b""
            return b"message %d;" % i in seen

        eventually(arrived, what="the message in the pipe")
    dump.send_signal(signal.SIGTERM)
    dump.wait(30)
    assert Capture(seen + dump.stdout.read()).only().up.bytes() == b"".join(b"message %d;" % i for i in range(5))
    dump.stdout.close()
    server.end(), client.end()


def test_pipe_that_nobody_reads(bench):
    """The services go on, and Ctrl-C works."""
    server, client = not_yet_connected(bench)
    dump = subprocess.Popen([TOOL, "dump", "-w", "-"], stdout=subprocess.PIPE, env=bench.env_for(None), **as_user(None))
    eventually(lambda: is_asked(server.page()) and is_asked(client.page()))
    connect(server, client)
    exchange(server, client, 100, size=10_000)
    dump.send_signal(signal.SIGINT)
    assert dump.wait(30) == 0
    dump.stdout.close()
    assert not is_asked(server.page())
    server.end(), client.end()
    bench.assert_ring(min_bytes=1_000_000)


def test_too_slow(bench):
    """A dump that does not come along slows nobody; what is missing is a gap and is counted."""
    server, client = not_yet_connected(bench)
    dump = Dump(bench, asked=[server, client])
    connect(server, client)
    exchange(server, client, 20)
    dump.proc.send_signal(signal.SIGSTOP)
    exchange(server, client, 500, size=8000)
    dump.proc.send_signal(signal.SIGCONT)
    time.sleep(1)
    up, down = exchange(server, client, 5)
    capture = dump.end()
    connection = capture.only()
    assert capture.statistics["dropped"] > 0 and connection.up.missing() > 0
    last = b"".join(data for _, data in sorted(connection.up.data.items()))
    assert last.endswith(up) or capture.statistics["dropped"] > 0
    assert re.match(r"mpklink: \d+ records came faster than they were written", dump.proc.stderr())
    server.end(), client.end()
    bench.assert_ring(min_bytes=4_000_000)


def test_full_disk(bench):
    server, client = not_yet_connected(bench)
    dump = start_tool(bench, "dump", "-w", "/dev/full")
    assert dump.wait() == 3 and "No space left on device" in dump.stderr() and "make room" in dump.stderr()
    if not is_root():
        server.end(), client.end()
        pytest.skip("needs root: mounts a small disk")
    disk = bench.dir / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=64k,uid={OWN_UID}", "none", disk]).returncode == 0
    if not mounted:
        server.end(), client.end()
        pytest.skip("no file system can be mounted here")
    try:
        page = server.page()
        dump = start_tool(bench, "dump", "-w", disk / "x")
        eventually(lambda: is_asked(page))
        connect(server, client)
        exchange(server, client, 50)
        assert dump.wait() == 3 and "No space left on device" in dump.stderr()
        assert not is_asked(page)
    finally:
        subprocess.run(["umount", disk], check=True)
    exchange(server, client, 5)
    server.end(), client.end()
    bench.assert_ring()


# ---- whose ---------------------------------------------------------------------------------------------------------------


@needs_root
def test_users(bench):
    """A user's dump has its own processes alone; root may have them, too. The file is its owner's."""
    server, client = not_yet_connected(bench)
    refused(bench, "dump", "pid", os.getpid(), "-w", "/dev/null", words=["belongs to root"])
    for uid in (OWN_UID, 0):
        dump = Dump(bench, "pid", client.pid, asked=[client], uid=uid)
        connect(server, client)
        up, _ = exchange(server, client, 5, dump=dump)
        assert dump.end().only().up.bytes() == up and dump.path.stat().st_mode & 0o777 == 0o600
        client.do("c.close()"), server.do("s.close()")
    server.end(), client.end()


def seqpacket(name: bytes) -> str:
    return "t = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); t.connect(%r)" % (b"\0" + name)


def record(payload=b"", **fields) -> bytes:
    values = {
        "magic": 0x504B504D, "kind": 1, "time": 1, "offset": 0, "dropped": 0, "pid": 1, "row": 0, "length": len(payload), "outgoing": 1,
        "local": bytes(10) + b"\xff\xff\x7f\0\0\1", "peer": bytes(10) + b"\xff\xff\x7f\0\0\1", "local_port": 1, "peer_port": 2, "connector": 1, "shared": 1,
    }  # fmt: skip
    return TAP_RECORD.pack(*{**values, **fields}.values()) + payload


def test_lies(bench):
    """A process that was asked sends what it likes."""
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener()")
    dump = Dump(bench, asked=[puppet])
    puppet.do(seqpacket(tap_name(puppet.page())))
    lies = [b"", b"x", record(b"x", magic=0), record(b"x", kind=0), record(b"x", kind=9), record(b"x", length=2), record(b"x", length=0xFFFFFFFF),
            record(), record(b"x", kind=2), record(b"x", outgoing=2), record(b"y" * 16385), record(b"y" * 60000), record(kind=2), record(kind=3)]  # fmt: skip
    truths = [record(b"first"), record(b"second", offset=5), record(b"far", offset=(1 << 64) - 2, outgoing=0), record(b"z" * 16384, offset=11),
              record(kind=2, offset=1 << 63, local_port=9), record(b"again", connector=0, local_port=2, peer_port=1, row=7)]  # fmt: skip
    for message in lies + truths + lies:
        if message:
            puppet.do(f"t.send({message!r})")
    eventually(lambda: b"z" * 16384 in dump.written())
    if dump.proc.running():
        dump.proc.send_signal(signal.SIGINT)
    dump.proc.finish(0)
    assert "sends what is no record" in dump.proc.stderr() and dump.proc.stderr().count("\n") == 1
    assert b"first" in dump.path.read_bytes() and b"yyyy" not in dump.path.read_bytes()
    puppet.end()


def test_random_lies(bench):
    import random

    seed = int(os.environ.get("MPKLINK_SEED", time.time_ns() % 1_000_000))
    print(f"MPKLINK_SEED={seed}")
    rng = random.Random(seed)
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener()")
    dump = Dump(bench, asked=[puppet])
    puppet.do(seqpacket(tap_name(puppet.page())))
    messages = []
    for _ in range(2000):
        kind = rng.choice([1, 1, 1, 2, 3])
        messages.append(record(rng.randbytes(rng.choice([1, 3, 1000])) if kind == 1 else b"", kind=kind, offset=rng.choice([0, 1, 3, 1 << 40, (1 << 64) - 1]),
                               row=rng.choice([0, 1]), outgoing=rng.choice([0, 1]), local_port=rng.choice([1, 2]), peer_port=rng.choice([1, 2]),
                               connector=rng.choice([0, 1]), shared=rng.choice([0, 1]), peer=rng.choice([bytes(16), bytes(10) + b"\xff\xff\x7f\0\0\1"])))  # fmt: skip
    puppet.do(f"for m in {messages!r}: t.send(m)")
    puppet.do("t.close()")
    eventually(lambda: len(dump.written()) > 10_000)
    dump.proc.send_signal(signal.SIGINT)
    dump.proc.finish(0)
    puppet.end()


def test_stranger_at_the_socket(bench):
    """Who was not asked is not heard."""
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener()")
    dump = Dump(bench, asked=[puppet])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(b"\0" + tap_name(puppet.page()))
        with contextlib.suppress(OSError):
            stranger.send(record(b"stranger"))
        stranger.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    capture = dump.end()
    assert not capture.connections and capture.statistics["received"] == 0
    puppet.end()


# ---- wrong use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    ([], ["-w FILE"]), (["port"], ["after 'port'"]), (["port", "x"], ["'x' is no port"]), (["prot", "80"], ["'prot'", "port N"]),
    (["host", "example.org"], ["no address", "localhost"]), (["port", "80", "and"], ["after 'and'"]), (["pid", "1", "pid", "2"], ["one pid"]),
    (["port", "80", "or", "port", "81"], ["'or'"]), (["-w", "-", "--json"], ["--json"]), (["-w", "x", "-c", "0"], []), (["-w", "x", "--duration", "x"], []),
])  # fmt: skip
def test_wrong_use(bench, args, words):
    refused(bench, "dump", *args, code=2, words=words)


def test_cannot_write(bench):
    refused(bench, "dump", "-w", bench.dir / "none" / "x", words=["No such file"])
    child = subprocess.Popen(["true"])
    child.wait()
    refused(bench, "dump", "pid", child.pid, "-w", "/dev/null", words=["there is no process"])


def test_json_summary(bench):
    server, client = not_yet_connected(bench)
    dump = start_tool(bench, "dump", "-c", 4, "--json", "-w", own_dir(bench) / "x")
    eventually(lambda: is_asked(server.page()) and is_asked(client.page()))
    connect(server, client)
    exchange(server, client, 5)
    assert json.loads(dump.finish(0)) == {"packets": 4, "connections": 1, "dropped_records": 0}
    server.end(), client.end()
