# SPDX-License-Identifier: MIT
"""redis-benchmark, redis-cli and a checking client against redis-server."""

import csv
import io
import re
import subprocess
import time

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, Combo, eventually
from servers import Redis


def benchmark(bench, redis, tests, requests, *options) -> None:
    """redis-benchmark with 50 connections and pipelines of 16; every test must report a rate."""
    argv = ["redis-benchmark", "-p", redis.port, "-c", 50, "-P", 16, "-n", requests, "-t", tests, "-d", 100, "--csv", *options]
    text = bench.run(argv, CLIENT, timeout_s=60)
    rows = list(csv.reader(io.StringIO(text)))[1:]
    assert len(rows) >= len(tests.split(",")), text
    assert all(float(row[1]) > 0 for row in rows), text
    assert "rror" not in text, text


def test_benchmark_set_get(bench):
    redis = Redis(bench)
    benchmark(bench, redis, "set,get", 100_000)
    redis.stop()
    # 50 connections for each test, each with 125 pipelines.
    bench.assert_ring(streams=100, min_bytes=10_000_000)


def test_benchmark_lrange(bench):
    redis = Redis(bench)
    benchmark(bench, redis, "lrange_100", 30_000)
    redis.stop()
    bench.assert_ring(streams=50, min_bytes=30_000_000)


def test_benchmark_unpipelined_threads(bench):
    redis = Redis(bench, "--io-threads", "2", "--io-threads-do-reads", "yes")
    argv = ["redis-benchmark", "-p", redis.port, "-c", 50, "-n", 30_000, "-t", "set,get", "--threads", 2, "-q"]
    text = bench.run(argv, CLIENT, timeout_s=60)
    assert len(re.findall(r"requests per second", text)) == 2, text
    redis.stop()
    bench.assert_ring(streams=50, min_bytes=1_000_000)


@pytest.mark.parametrize(
    "combo,settings",
    [(combo, {}) for combo in Combo] + [(Combo.BOTH, {"RING_KIB": 4, "WARMUP": 0}), (Combo.BOTH, {"GUARD": "mprotect"})],
    ids=[combo.value for combo in Combo] + ["both-tiny", "both-mprotect"],
)
def test_checked_values(bench, settings):
    """Random binary values of 0 B to 1 MB, single and pipelined: what was set is what is got."""
    bench.settings = settings
    redis = Redis(bench)
    small = settings.get("GUARD") == "mprotect"
    text = bench.run([PYTHON, SCRIPTS / "redis_check.py", redis.port, 4, 100 if small else 300], CLIENT, timeout_s=60)
    assert "checked" in text
    redis.stop()
    bench.assert_ring(streams=4, min_bytes=4_000_000, exact=True, conserved=True)


def test_pub_sub(bench):
    """A subscriber gets every message in order."""
    count = 3000
    redis = Redis(bench)
    subscriber = bench.start(["redis-cli", "-p", redis.port, "subscribe", "news"], CLIENT, name="subscriber")
    subscriber.wait_line(r"^subscribe$")
    publisher = bench.start(["redis-cli", "-p", redis.port], CLIENT, name="publisher", stdin=subprocess.PIPE)
    commands = "".join(f"PUBLISH news message-{i}\n" for i in range(count))
    publisher.stdin.write(commands.encode())
    publisher.stdin.close()
    assert publisher.finish().split() == ["1"] * count
    eventually(lambda: f"message-{count - 1}\n" in subscriber.stdout(), what="the last message")
    redis.stop()  # the subscriber ends with the server
    subscriber.wait()
    got = re.findall(r"^message-(\d+)$", subscriber.stdout(), re.M)
    assert got == [str(i) for i in range(count)]
    bench.assert_ring(streams=2, min_bytes=100_000)


def test_bgsave_under_load(bench):
    """redis forks while it serves: the child must not disturb any stream, and the data must be whole afterwards."""
    redis = Redis(bench)
    load = bench.start([PYTHON, SCRIPTS / "redis_check.py", redis.port, 4, 100000, 4], CLIENT, name="load")
    for _ in range(4):
        time.sleep(0.6)
        assert "started" in bench.run(["redis-cli", "-p", redis.port, "bgsave"], CLIENT)
        saved = lambda: "rdb_bgsave_in_progress:0" in bench.run(["redis-cli", "-p", redis.port, "info", "persistence"], CLIENT)
        eventually(saved, what="the end of BGSAVE")
    assert "checked" in load.finish()
    info = bench.run(["redis-cli", "-p", redis.port, "info", "persistence"], CLIENT)
    assert "rdb_last_bgsave_status:ok" in info, info
    redis.stop()
    assert (bench.dir / "dump.rdb").stat().st_size > 1000
    bench.assert_ring(streams=4, min_bytes=4_000_000)
