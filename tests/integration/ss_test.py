# SPDX-License-Identifier: MIT
"""`mpklink ss`: what it says of real streams, whom it shows to whom, and what it makes of a stranger's lies."""

import os
import random
import re
import struct
import subprocess
import time

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, Combo, eventually
from live_tools import NOBODY, OWN_UID, Puppet, connected, is_root, look, refused, streams_of, tool
from status_page import HEADER, ROW, Page, talk

pytestmark = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

needs_root = pytest.mark.skipif(not is_root(), reason="needs root: becomes another user")

# ---- real streams --------------------------------------------------------------------------------------------------------


def test_streams(bench):
    server, client = connected(bench, rounds=100)
    talk(server, client, 10)
    port = server.proc.port()
    rows = {s["pid"]: s for s in streams_of(bench, server, client)}
    ours, theirs = rows[server.pid], rows[client.pid]
    assert (ours["local_address"], ours["local_port"], ours["fd"]) == ("127.0.0.1", port, server.tell("s.fileno()"))
    assert (ours["peer_port"], theirs["peer_port"]) == (theirs["local_port"], port)
    for row in (ours, theirs):
        assert row["state"] == "shared" and row["mode"] in ("guarded", "shared") and row["reason"] is None
        assert row["tx_bytes"] == row["rx_bytes"] == 11000 and row["tx_calls"] == 110 and row["upgrades"] == 1
        assert row["send_queue_bytes"] == row["receive_queue_bytes"] == 0
    assert (ours["connector"], theirs["connector"]) == (False, True)
    # What is on its way is Send-Q here and Recv-Q there.
    client.do("c.sendall(b'x' * 1234)")
    rows = {s["pid"]: s for s in streams_of(bench, server, client)}
    assert rows[client.pid]["send_queue_bytes"] == rows[server.pid]["receive_queue_bytes"] == 1234
    server.do("receive_all(s, 1234)")
    totals = {p["pid"]: p for p in look(bench)["processes"]}[server.pid]
    server.end(), client.end()
    bench.assert_ring(streams=1, min_bytes=10_000, exact=True)
    stats = bench.stats(SERVER)
    assert totals["ring_rx_bytes"] == stats.ring_rx > 0 and totals["ring_tx_bytes"] == stats.ring_tx


def test_table_and_filters(bench):
    server, client = connected(bench)
    port = server.proc.port()
    text = tool(bench, "ss", "--port", port).stdout.splitlines()
    assert re.split(r"\s{2,}", text[0].strip()) == ["State", "Mode", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port", "Sent", "Received",
                                                   "Reason", "Process"]  # fmt: skip
    assert len(text) == 3 and sorted(line.split()[-1] for line in text[1:]) == sorted(f"python3[{p.pid}]" for p in (server, client))
    assert f"127.0.0.1:{port}" in text[1] and text[1].split()[:2] in (["shared", "guarded"], ["shared", "shared"])
    assert f"python3[{server.pid}],fd={server.tell('s.fileno()')}" in tool(bench, "ss", "-p", "--pid", server.pid).stdout
    assert len(look(bench, "--pid", server.pid)["streams"]) == 1
    mode = look(bench, "--pid", server.pid)["streams"][0]["mode"]
    assert len(look(bench, "--port", port, "--mode", mode)["streams"]) == 2
    assert not look(bench, "--port", port, "--mode", "tcp")["streams"]
    assert not look(bench, "--port", port, "--reason", "oob")["streams"]
    table = tool(bench, "ss", "--processes", "--pid", f"{server.pid},{client.pid}").stdout.splitlines()
    assert table[0].split()[:4] == ["Process", "Library", "Guard", "Streams"] and len(table) == 4
    assert re.fullmatch(r"2 streams \(2 (guarded|shared)\) of 2 processes", table[-1])
    server.end(), client.end()
    bench.assert_ring(exact=True)


def test_reason_with_remedy(bench):
    bench.settings = {"PORTS": "!1-65535"}
    server, client = connected(bench)
    rows = streams_of(bench, server, client)
    assert [r["reason"] for r in rows] == ["ports", "ports"] and {r["mode"] for r in rows} == {"tcp"}
    text = tool(bench, "ss", "-e", "--pid", client.pid, "--reason", "ports").stdout
    assert "    ports: MPKLINK_PORTS does not allow this port.\n    Remedy: Change MPKLINK_PORTS.\n" in text
    server.end(), client.end()
    bench.assert_fell_back()


def test_ipv6(bench):
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener('::1'); serve_echo(l); c = socket.create_connection(l.getsockname()[:2]); ask(c, 50)")
    assert f"[::1]:{puppet.proc.port()}" in tool(bench, "ss", "--pid", puppet.pid).stdout
    # Both ends in one process, and each finds the other.
    assert [s["send_queue_bytes"] for s in streams_of(bench, puppet)] == [0, 0]
    puppet.end()
    bench.assert_ring(streams=2, sides=[SERVER])


# ---- who is there --------------------------------------------------------------------------------------------------------


def test_nothing_there(bench):
    """A table without rows, and a hint."""
    if not is_root():
        pytest.skip("needs root: becomes another user")
    done = tool(bench, "ss")
    assert done.stdout.splitlines()[0].startswith("State") and len(done.stdout.splitlines()) == 1
    assert done.stderr == "mpklink: no running process of yours has the library; start one with: mpklink run -- PROGRAM\n"


def test_named_and_not_there(bench):
    child = subprocess.Popen(["true"])
    child.wait()
    refused(bench, "ss", "--pid", child.pid, words=[child.pid, "there is no process", "mpklink ss"])
    sleeper = bench.start(["sleep", "100"], uid=OWN_UID)
    refused(bench, "ss", "--pid", sleeper.pid, words=[f"sleep[{sleeper.pid}]", "mpklink doctor"])
    sleeper.stop(15, code=-15)


@needs_root
def test_service_user(bench):
    """A user sees its own processes, root all of them; nobody is told of another user's."""
    server, client = connected(bench)
    root = Puppet(bench, SERVER, name="root", uid=0)
    root.do("l = listener(); c = socket.create_connection(l.getsockname())")
    assert {s["pid"] for s in look(bench)["streams"]} == {server.pid, client.pid}
    assert {server.pid, client.pid, root.pid} <= {s["pid"] for s in look(bench, uid=0)["streams"]}
    refused(bench, "ss", "--pid", root.pid, words=["belongs to root", "sudo"])
    refused(bench, "ss", "--pid", server.pid, uid=NOBODY, words=["belongs to"])
    server.end(), client.end(), root.end()
    bench.assert_ring()


def test_forked_child_is_shown_once(bench):
    """A child has its parent's page, too, until it makes its own."""
    puppet = Puppet(bench, SERVER)
    puppet.do("""
l = listener(); serve_echo(l); c = socket.create_connection(l.getsockname()); ask(c, 50)
r, w = os.pipe()
child = os.fork()
if child == 0: os.close(w); os.read(r, 1); os._exit(0)
os.close(r)""")
    child = puppet.tell("child")
    pids = [p["pid"] for p in look(bench)["processes"]]
    assert pids.count(puppet.pid) == 1 and child not in pids
    puppet.do("os.close(w); os.waitpid(child, 0)")
    puppet.end()
    bench.assert_gates()


def test_processes_that_vanish(bench):
    """Nothing is said of those that end while they are looked at."""
    puppet = Puppet(bench, SERVER)
    puppet.do("""
l = listener(); stop = False
def churn():
    while not stop:
        pid = os.fork()
        if pid == 0:
            try: x = socket.create_connection(l.getsockname())
            finally: os._exit(0)
        os.waitpid(pid, 0)
threads = [threading.Thread(target=churn) for _ in range(3)]
for t in threads: t.start()""")
    for _ in range(30):
        done = tool(bench, "ss", "--json")
        assert not done.stderr
    puppet.do("stop = True\nfor t in threads: t.join()")
    puppet.end()
    bench.assert_gates()


# ---- a stranger's page ---------------------------------------------------------------------------------------------------


def header_of(page: Page) -> bytes:
    return bytes(page.map[: page.header_bytes])


def fake(bench, content: bytes, *options):
    proc = bench.start([PYTHON, SCRIPTS / "fake_status.py", *options], stdin=subprocess.PIPE, uid=OWN_UID)
    proc.stdin.write(content)
    proc.stdin.close()
    proc.wait_line("^READY$")
    return proc


def changed(header: bytes, **fields) -> bytes:
    """The header of a real page with other numbers, and as its own the process's that will show it."""
    values = {**Page.header(type("", (), {"map": header})())._asdict(), **fields}
    return HEADER.pack(*values.values()) + header[HEADER.size :]


def with_pid(content: bytes) -> bytes:
    at = struct.calcsize("<QIIII")
    return content[:at] + b"PIDPIDPI" + content[at + 8 :]


@pytest.fixture
def real_page(bench):
    """The bytes of a page that a process of the library made."""
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener(); serve_echo(l); c = socket.create_connection(l.getsockname()); ask(c, 50)")
    page = Page(puppet.pid)
    content = bytes(page.map)
    puppet.end()
    return content


def test_fake_page_is_read(bench, real_page):
    """What the other tests of lies would prove nothing without."""
    proc = fake(bench, with_pid(real_page), "--name", "faker")
    shown = look(bench, "--pid", proc.pid)
    assert shown["processes"][0]["program"] == "faker" and len(shown["streams"]) == 2
    proc.stop(15, code=-15)


LIES = {
    "magic": {"magic": 0}, "header_bytes": {"header_bytes": 1 << 31}, "row_bytes": {"row_bytes": 0}, "rows": {"rows": 0xFFFFFFFF},
}  # fmt: skip


@pytest.mark.parametrize("lie", [*LIES, "short", "empty", "no-seals", "other-pid"])
def test_page_that_is_none(bench, real_page, lie):
    content, options = with_pid(real_page), []
    if lie in LIES:
        content = with_pid(changed(real_page, **LIES[lie]))
    elif lie in ("short", "empty"):
        content = content[: {"short": -4096, "empty": 0}[lie] or 0]
    elif lie == "no-seals":
        options = ["--no-seals"]  # the owner could cut it under the reader
    else:
        content = real_page
    proc = fake(bench, content, *options)
    assert proc.pid not in [p["pid"] for p in look(bench)["processes"]]
    refused(bench, "ss", "--pid", proc.pid, words=["without the library"])
    proc.stop(15, code=-15)


def test_numbers_that_are_too_large(bench, real_page):
    proc = fake(bench, with_pid(changed(real_page, rows_used=0xFFFFFFFF, rows_missing=0xFFFFFFFF, guard=77, started_ns=(1 << 64) - 1)))
    shown = look(bench, "--pid", proc.pid)
    assert shown["processes"][0]["guard"] == "unknown" and len(shown["streams"]) == 2
    proc.stop(15, code=-15)


def test_rows_that_cannot_be(bench, real_page):
    """A mode of 99, a reason of 99, and one that stays in the middle of a change."""
    at = header_bytes = HEADER.unpack_from(real_page)[2]
    row = bytearray(real_page[at : at + ROW.size])
    rows = []
    for sequence, mode, reason in ((2, 99, 0), (2, 4, 99), (3, 3, 0), (4, 3, 0)):
        row[:12] = struct.pack("<III", sequence, mode, reason)
        rows.append(bytes(row))
    content = bytearray(with_pid(changed(real_page, rows_used=len(rows))))
    content[header_bytes : header_bytes + 4 * ROW.size] = b"".join(rows)
    proc = fake(bench, bytes(content))
    assert [s["reason"] for s in look(bench, "--pid", proc.pid)["streams"]] == ["reason-99", None]
    assert "mpklink that came with the library" in tool(bench, "ss", "-e", "--pid", proc.pid).stdout
    proc.stop(15, code=-15)


def test_text_that_speaks_to_terminals(bench, real_page):
    evil = b"\x1b[2J\x07\xff\xfe\xc2\x9b31m\n"
    content = changed(real_page, library_version=evil.ljust(16, b"x"), guard=1, guard_why=evil.ljust(32, b"y"))
    proc = fake(bench, with_pid(content), "--name", "a\x1b[31m\n\"\\b")
    for args in (["ss", "--processes"], ["ss"], ["ss", "-e", "-p"], ["ss", "--json"], ["metrics"], ["top", "-n", "1", "-d", "0.05"]):
        text = tool(bench, *args).stdout
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]", text), (args, text)
    assert look(bench, "--pid", proc.pid)["processes"][0]["program"] == 'a?[31m?"\\b'
    proc.stop(15, code=-15)


def test_other_version(bench, real_page):
    """Only that is said, and how to go on; the file may be of any size."""
    proc = fake(bench, with_pid(changed(real_page[:5000], version=7)))
    shown = look(bench, "--pid", proc.pid)
    assert shown["processes"][0]["status_version"] == 7 and not shown["streams"]
    done = tool(bench, "ss", "--pid", proc.pid)
    assert "has another version of the library" in done.stderr and "restart the process" in done.stderr
    proc.stop(15, code=-15)


def test_random_pages(bench, real_page):
    """Whatever stands there: an answer, in JSON."""
    seed = int(os.environ.get("MPKLINK_SEED", time.time_ns() % 1_000_000))
    print(f"MPKLINK_SEED={seed}")
    rng = random.Random(seed)
    for _ in range(4):
        content = bytearray(with_pid(real_page[: 1 << 16]) + bytes(len(real_page) - (1 << 16)))
        first = rng.choice([32, 104, 768, HEADER.unpack_from(real_page)[2]])
        for _ in range(rng.choice([1, 100, 20000])):
            content[rng.randrange(first, 1 << 16)] = rng.randrange(256)
        proc = fake(bench, bytes(content))
        look(bench)
        tool(bench, "ss", "-e")
        tool(bench, "metrics")
        proc.stop(15, code=-15)


# ---- wrong use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    (["--pid", "0"], ["--pid"]), (["--pid", "x"], ["--pid"]), (["--port", "70000"], ["--port"]), (["--mode", "fast"], ["--mode"]),
    (["--reason", "peer-abzent"], ["did you mean peer-absent?"]), (["--reason", "xyzzy"], ["mpklink reasons"]), (["--jason"], ["--json"]),
    (["extra"], ["extra"]),
])  # fmt: skip
def test_wrong_use(bench, args, words):
    refused(bench, "ss", *args, code=2, words=words)


def test_full_disk(bench):
    with open("/dev/full", "w") as full:
        done = tool(bench, "ss", code=3, stdout=full)
    assert "No space left on device" in done.stderr and "make room" in done.stderr


def test_help_has_examples(bench):
    for command in ("ss", "top", "metrics", "dump", "off", "on"):
        text = tool(bench, command, "--help").stdout
        assert "Examples:" in text and f"mpklink {command}" in text.split("Examples:")[1]


def test_costs_the_service_nothing(bench):
    """Reading pages makes no system call in the process and moves none of its words."""
    server, client = connected(bench)
    page = server.page()
    before = bytes(page.map)
    for _ in range(10):
        tool(bench, "ss")
    assert bytes(page.map) == before
    server.end(), client.end()
    bench.assert_ring()


def test_other_end_is_not_visible(bench):
    bench.combo = Combo.CLIENT
    server, client = connected(bench)
    row = streams_of(bench, client)[0]
    assert row["send_queue_bytes"] is None
    assert tool(bench, "ss", "--pid", client.pid).stdout.splitlines()[1].split()[2:4] == ["-", "-"]
    server.end(), client.end()
    eventually(lambda: bench.stats(CLIENT).lines)
