# SPDX-License-Identifier: MIT
"""wrk against nginx: no failed request, every connection over the ring."""

import re

import pytest

from harness import CLIENT, Combo
from servers import Nginx


class WrkReport:
    """What wrk prints at its end."""

    def __init__(self, text):
        self.text = text
        self.requests = int(re.search(r"^\s*(\d+) requests in", text, re.M).group(1))
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        self.socket_errors = sum(map(int, errors.groups())) if errors else 0
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        self.bad_responses = int(bad.group(1)) if bad else 0

    def assert_clean(self):
        assert self.requests > 0 and self.socket_errors == 0 and self.bad_responses == 0, self.text


def wrk(bench, url, connections, seconds, threads=1) -> WrkReport:
    threads = min(threads, connections)
    argv = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", url]
    return WrkReport(bench.run(argv, CLIENT, timeout_s=seconds + 20))


def assert_nearly_all_over_ring(bench, share=0.9):
    """After the warm-up only the ring is used."""
    for side in bench.sides():
        stats = bench.stats(side)
        assert stats.ring >= share * (stats.ring + stats.tcp), f"too much went over TCP on the {side.value} side\n{stats}"


@pytest.mark.parametrize("connections", [1, 64])
def test_small_responses(bench, docroot, connections):
    nginx = Nginx(bench, docroot.dir)
    report = wrk(bench, nginx.url("hello"), connections, seconds=2)
    nginx.stop()
    report.assert_clean()
    # Exactly so many: a connection that broke would have been made again.
    bench.assert_ring(streams=connections, min_bytes=report.requests * 50, exact=True)
    if bench.combo is Combo.BOTH:
        assert_nearly_all_over_ring(bench)


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
@pytest.mark.parametrize(
    "settings,path,response_bytes",
    [({"RING_KIB": 4, "WARMUP": 0}, "f100k", 100_000), ({"RING_KIB": 4}, "f2m", 2_000_000), ({"GUARD": "mprotect"}, "hello", 170)],
    ids=["tiny", "ring4", "mprotect"],
)  # fmt: skip
def test_settings(bench, docroot, settings, path, response_bytes):
    bench.settings = settings
    nginx = Nginx(bench, docroot.dir)
    report = wrk(bench, nginx.url(path), 16, seconds=2)
    nginx.stop()
    report.assert_clean()
    # The first few requests of each connection may still go over TCP.
    bench.assert_ring(streams=16, min_bytes=max(report.requests - 16 * 8, 16) * response_bytes // 2, exact=True)


def test_big_responses(bench, docroot):
    nginx = Nginx(bench, docroot.dir)
    report = wrk(bench, nginx.url("f2m"), 8, seconds=1)
    nginx.stop()
    report.assert_clean()
    bench.assert_ring(streams=8, min_bytes=report.requests * 1_000_000, exact=True)


def test_prefork(bench, docroot):
    """Four workers, two wrk threads."""
    nginx = Nginx(bench, docroot.dir, workers=4)
    report = wrk(bench, nginx.url("f100k"), 64, seconds=2, threads=2)
    nginx.stop()
    report.assert_clean()
    bench.assert_ring(streams=64, min_bytes=report.requests * 50_000, exact=True)


def test_many_connections(bench, docroot):
    nginx = Nginx(bench, docroot.dir)
    report = wrk(bench, nginx.url("hello"), 256, seconds=2, threads=2)
    nginx.stop()
    report.assert_clean()
    bench.assert_ring(streams=256, min_bytes=report.requests * 50, exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
def test_ten_million_requests(bench, docroot):
    """Issue 2: no failed request in 10 million."""
    nginx = Nginx(bench, docroot.dir)
    total = 0
    while total < 10_000_000:
        report = wrk(bench, nginx.url("hello"), 64, seconds=20)
        report.assert_clean()
        total += report.requests
    nginx.stop()
    bench.assert_ring(streams=64, min_bytes=total * 50)


@pytest.mark.no_ring
def test_connection_close(bench, docroot):
    """A connection per request, as fast as possible: no failure, whatever carries it."""
    nginx = Nginx(bench, docroot.dir)
    argv = ["wrk", "-t1", "-c16", "-d1s", "-H", "Connection: close", nginx.url("hello")]
    report = WrkReport(bench.run(argv, CLIENT))
    nginx.stop()
    assert report.requests > 0 and report.bad_responses == 0, report.text
    assert report.socket_errors == 0, report.text
    if bench.combo is not Combo.BOTH:
        for side in bench.sides():
            bench.assert_not_used(side)
    bench.assert_gates()
