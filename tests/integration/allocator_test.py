# SPDX-License-Identifier: MIT
"""Other allocators in LD_PRELOAD, before and after us: they hook malloc and little else, open files before we are ready, and are called
by dlsym while we resolve the originals."""

import pathlib
import signal

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, Combo, sha256
from servers import Nginx, Redis

FOLDER = pathlib.Path("/usr/lib/x86_64-linux-gnu")
ALLOCATORS = {"jemalloc": "libjemalloc.so.2", "tcmalloc": "libtcmalloc_minimal.so.4", "mimalloc": "libmimalloc.so.2"}

pytestmark = [
    pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"]),
    pytest.mark.parametrize("place", ["before", "after"]),
    pytest.mark.parametrize("allocator", ALLOCATORS),
]


@pytest.fixture
def bench_with(bench, allocator, place):
    """The bench, with the allocator preloaded; `is_used(proc)`: it is really mapped there."""
    library = FOLDER / ALLOCATORS[allocator]
    assert library.exists(), f"{library} is missing: scripts/setup.sh installs it"
    (bench.preload_first if place == "before" else bench.preload_last).append(library)
    real = library.resolve().name

    def is_used(proc):
        assert real in pathlib.Path(f"/proc/{proc.pid}/maps").read_text(), f"{real} was not loaded"

    bench.is_used = is_used
    return bench


def test_threads(bench_with):
    bench = bench_with
    server = bench.start([bench.program("echo_threads"), "server", "--connections=4", "--rounds=100"], SERVER)
    port = server.port()
    bench.is_used(server)
    bench.succeed(bench.start([bench.program("echo_threads"), "client", f"--port={port}", "--connections=4", "--rounds=100"], CLIENT))
    bench.succeed(server)
    bench.assert_ring(streams=4, min_bytes=4 * 100 * 1000, exact=True, conserved=True)


def test_curl_nginx(bench_with, docroot):
    bench = bench_with
    nginx = Nginx(bench, docroot.dir)
    bench.is_used(nginx.proc)
    got = bench.dir / "got"
    warm = [word for _ in range(40) for word in ("-o", "/dev/null", nginx.url("f1"))]
    bench.run(["curl", "-sS", "--fail", *warm, "-o", got, nginx.url("f2m")], CLIENT)
    assert sha256(got) == docroot.sums["f2m"]
    nginx.stop()
    bench.assert_ring(streams=1, min_bytes=2_000_000, exact=True, conserved=True)


def test_redis(bench_with):
    """Debian's redis is linked with jemalloc."""
    bench = bench_with
    redis = Redis(bench)
    bench.is_used(redis.proc)
    text = bench.run([PYTHON, SCRIPTS / "redis_check.py", redis.port, 2, 100], CLIENT, timeout_s=60)
    assert "checked" in text
    redis.stop()
    bench.assert_ring(streams=2, min_bytes=1_000_000)


def test_python_http(bench_with):
    bench = bench_with
    server = bench.start([PYTHON, SCRIPTS / "py_http.py", "server"], SERVER, name="server")
    port = server.port()
    bench.is_used(server)
    client = bench.start([PYTHON, SCRIPTS / "py_http.py", "client", port, 3, 30], CLIENT, name="client")
    assert "checked" in client.finish(timeout_s=60)
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=3, min_bytes=5_000_000, exact=True, conserved=True)
