# SPDX-License-Identifier: MIT
"""`mpklink dump`, where tshark is installed: it decodes HTTP and RESP from the captures, and its streams are the bytes."""

import hashlib
import os
import re
import shutil
import subprocess
import time

import pytest

from dumping import Dump, connect, exchange, not_yet_connected
from harness import CLIENT, Combo, eventually
from servers import Nginx, Redis

pytestmark = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")


def tshark(path, *args) -> list:
    home = {"HOME": str(path.parent), "PATH": os.environ["PATH"]}
    done = subprocess.run(["tshark", "-r", path, "-n", *args], capture_output=True, text=True, timeout=120, env=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def assert_clean(path) -> None:
    """Nothing that Wireshark would complain about: checksums, gaps, acknowledgements of what it has not seen."""
    bad = "tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment || tcp.analysis.retransmission || tcp.analysis.out_of_order || " \
          "tcp.analysis.window_full || tcp.analysis.zero_window || tcp.checksum.status == Bad || ip.checksum.status == Bad || _ws.malformed"  # fmt: skip
    found = tshark(path, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-Y", bad)
    assert not found, found[:10]


@needs_tshark
@pytest.mark.limit(180)
def test_tshark_http(bench, docroot):
    nginx = Nginx(bench, docroot.dir, settings={"WARMUP": 0})
    bench.run(["curl", "-sS", nginx.url("hello")], CLIENT)  # from its first connection on the worker has a page
    dump = Dump(bench, "pid", nginx.worker_pids()[0], uid=os.geteuid())
    eventually(lambda: dump.written())
    urls = [nginx.url("hello"), nginx.url("f100k")] * 3
    text = bench.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} ", *sum((["-o", "/dev/null"] for _ in urls[1:]), []), *urls], CLIENT,
                     settings={"WARMUP": 0})  # fmt: skip
    assert text.split() == ["200"] * 6
    time.sleep(0.5)
    capture = dump.end()
    assert len(capture.connections) == 1 and capture.statistics["dropped"] == 0
    requests = tshark(dump.path, "-d", f"tcp.port=={nginx.port},http", "-Y", "http.request", "-T", "fields", "-e", "http.request.uri")
    assert requests == ["/hello", "/f100k"] * 3
    codes = tshark(dump.path, "-d", f"tcp.port=={nginx.port},http", "-Y", "http.response", "-T", "fields", "-e", "http.response.code", "-e", "http.content_length")
    assert codes == ["200\t6", "200\t100000"] * 3
    assert_clean(dump.path)
    follow = tshark(dump.path, "-q", "-z", "follow,tcp,raw,0")
    lines = [line for line in follow if re.fullmatch(r"\t?[0-9a-f]+", line)]
    assert bytes.fromhex("".join(x for x in lines if x[0] != "\t")) == capture.only().up.bytes()
    assert bytes.fromhex("".join(x[1:] for x in lines if x[0] == "\t")) == capture.only().down.bytes()
    assert hashlib.sha256((docroot.dir / "f100k").read_bytes()).digest() in [
        hashlib.sha256(body[:100_000]).digest() for body in capture.only().down.bytes().split(b"\r\n\r\n")
    ]
    nginx.stop()
    bench.assert_ring(min_bytes=200_000)


@needs_tshark
@pytest.mark.limit(180)
def test_tshark_redis(bench):
    redis = Redis(bench)
    dump = Dump(bench, "pid", redis.proc.pid, "and", "port", redis.port, uid=os.geteuid())
    eventually(lambda: dump.written())
    commands = bench.dir / "commands"
    commands.write_text("".join(f"SET key{i} value{i}\nGET key{i}\n" for i in range(30)))
    with open(commands) as file:
        bench.run(["redis-cli", "-p", redis.port], CLIENT, stdin=file)
    time.sleep(0.5)
    capture = dump.end()
    assert b"value29" in capture.connections[-1].down.bytes()
    sent = tshark(dump.path, "-d", f"tcp.port=={redis.port},resp", "-Y", "resp", "-T", "fields", "-e", "resp.bulk_string.value")
    text = "".join(bytes.fromhex(re.sub("[^0-9a-f]", "", line)).decode() for line in sent)
    assert "SETkey7value7" in text and "GETkey7" in text and "value29" in text
    assert_clean(dump.path)
    redis.stop()
    bench.assert_ring(min_bytes=1000)


@needs_tshark
@pytest.mark.limit(180)
def test_tshark_from_the_middle(bench):
    """Wireshark takes up a connection whose beginning it has not seen."""
    server, client = not_yet_connected(bench)
    connect(server, client)
    exchange(server, client, 50)
    dump = Dump(bench, asked=[server, client])
    exchange(server, client, 20, dump=dump)
    dump.end()
    assert_clean(dump.path)
    server.end(), client.end()
    bench.assert_ring()
