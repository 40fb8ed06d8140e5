# SPDX-License-Identifier: MIT
"""node's http and net, server and client."""

import signal

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER, Combo
from program_cases import COMBO_VARIANT_IDS, COMBO_VARIANTS

with_settings = pytest.mark.parametrize("combo,settings", COMBO_VARIANTS, ids=COMBO_VARIANT_IDS)


@with_settings
def test_http(bench, settings):
    """A keep-alive agent, checksummed bodies both ways up to 2 MB."""
    bench.settings = settings
    server = bench.start(["node", SCRIPTS / "node_http.js", "server"], SERVER, name="server")
    client = bench.start(["node", SCRIPTS / "node_http.js", "client", server.port(), 8, 60], CLIENT, name="client")
    assert "checked" in client.finish(timeout_s=60)
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=8, min_bytes=20_000_000)


def test_net_echo(bench):
    """net.Socket: full-duplex pipes with back-pressure and half-close."""
    server = bench.start(["node", SCRIPTS / "node_echo.js", "server"], SERVER, name="server")
    client = bench.start(["node", SCRIPTS / "node_echo.js", "client", server.port(), 20, 500_000], CLIENT, name="client")
    assert "checked" in client.finish(timeout_s=60)
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=20, min_bytes=20 * 700_000)


@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
def test_net_echo_one_process(bench):
    assert "checked" in bench.run(["node", SCRIPTS / "node_echo.js", "both", 0, 10, 500_000], SERVER, timeout_s=60)
    bench.assert_ring(streams=20, min_bytes=10 * 700_000, sides=[SERVER])


def test_node_server_python_client(bench):
    server = bench.start(["node", SCRIPTS / "node_echo.js", "server"], SERVER, name="server")
    client = bench.start([PYTHON, SCRIPTS / "py_asyncio.py", "client", server.port(), 20, 200_000], CLIENT, name="client")
    assert "checked" in client.finish(timeout_s=60)
    server.stop(signal.SIGTERM)
    bench.assert_ring(streams=20, min_bytes=20 * 300_000)
