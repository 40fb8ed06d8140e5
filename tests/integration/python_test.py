# SPDX-License-Identifier: MIT
"""Python's own servers and clients: http.server with http.client, an asyncio echo pair, subprocesses with streams open."""

import signal

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER
from program_cases import COMBO_VARIANT_IDS, COMBO_VARIANTS, ONE_PROCESS_IDS, ONE_PROCESS_VARIANTS

with_settings = pytest.mark.parametrize("combo,settings", COMBO_VARIANTS, ids=COMBO_VARIANT_IDS)


def script(name, *options) -> list:
    return [PYTHON, SCRIPTS / name, *options]


@with_settings
def test_http(bench, settings):
    """ThreadingHTTPServer with HTTP/1.1, several keep-alive clients, checksummed bodies both ways up to 3 MB."""
    bench.settings = settings
    server = bench.start(script("py_http.py", "server"), SERVER, name="server")
    client = bench.start(script("py_http.py", "client", server.port(), 6, 60), CLIENT, name="client")
    assert "checked" in client.finish(timeout_s=60)
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=6, min_bytes=20_000_000, exact=True, conserved=True)


@with_settings
def test_asyncio(bench, settings):
    """Checksummed random data in random pieces both ways at once, many connections."""
    bench.settings = settings
    server = bench.start(script("py_asyncio.py", "server"), SERVER, name="server")
    client = bench.start(script("py_asyncio.py", "client", server.port(), 30, 200_000), CLIENT, name="client")
    assert "checked" in client.finish(timeout_s=60)
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=30, min_bytes=30 * 300_000, exact=True, conserved=True)


@pytest.mark.parametrize("combo,settings", ONE_PROCESS_VARIANTS, ids=ONE_PROCESS_IDS)
def test_asyncio_one_loop(bench, settings):
    """Both ends in one event loop of one thread."""
    bench.settings = settings
    text = bench.run(script("py_asyncio.py", "both", 0, 10, 200_000), SERVER, timeout_s=60)
    assert "checked" in text
    bench.assert_ring(streams=20, min_bytes=10 * 300_000, exact=True, conserved=True, sides=[SERVER])


def test_subprocesses(bench):
    """A client that runs other programs (which close all descriptors) while its stream is in use."""
    server = bench.start(script("py_asyncio.py", "server"), SERVER, name="server")
    client = bench.start(script("py_subprocess.py", server.port()), CLIENT, name="client")
    assert "checked" in client.finish()
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=1, min_bytes=100_000)


def test_multiprocessing_fork(bench):
    """A pre-fork server in Python: children accept from an inherited listener."""
    server = bench.start(script("py_prefork.py", 3), SERVER, name="server")
    client = bench.start(script("py_asyncio.py", "client", server.port(), 12, 100_000), CLIENT, name="client")
    assert "checked" in client.finish()
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=12, min_bytes=12 * 150_000, exact=True, conserved=True)
