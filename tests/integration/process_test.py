# SPDX-License-Identifier: MIT
"""Servers that give each connection to another process: by fork, by running a program, by passing the descriptor."""

import signal

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER
from program_cases import COMBO_VARIANT_IDS, COMBO_VARIANTS

with_settings = pytest.mark.parametrize("combo,settings", COMBO_VARIANTS, ids=COMBO_VARIANT_IDS)

CONNECTIONS = 24
ROUNDS = 60

needs_revoke = pytest.mark.beyond


def run_fork_server(bench, settings, mode, first=0):
    bench.settings = settings
    server = bench.start(
        [bench.program("fork_server"), "server", f"--connections={CONNECTIONS}", f"--mode={mode}", f"--first={first}"], SERVER
    )
    client = bench.start(
        [bench.program("echo_threads"), "client", f"--port={server.port()}", f"--connections={CONNECTIONS}", f"--rounds={ROUNDS}",
         "--max-size=4000"], CLIENT,
    )  # fmt: skip
    bench.succeed(client)
    bench.succeed(server)


@with_settings
def test_prefork(bench, settings):
    run_fork_server(bench, settings, "prefork")
    bench.assert_ring(streams=CONNECTIONS, min_bytes=CONNECTIONS * ROUNDS * 100, exact=True, conserved=True)


@with_settings
@pytest.mark.parametrize("mode", ["close", "keep"])
def test_child_per_connection(bench, settings, mode):
    """A connection that is open across a fork before its upgrade may stay on TCP: only the bytes count."""
    run_fork_server(bench, settings, mode)
    bench.assert_gates()


@with_settings
@pytest.mark.parametrize("mode", ["later", "keep"])
def test_child_after_some_messages(bench, settings, mode):
    """The stream is upgraded when the child takes it over."""
    run_fork_server(bench, settings, mode, first=20)
    bench.assert_ring(streams=CONNECTIONS, min_bytes=CONNECTIONS * 20 * 50)


@with_settings
def test_inetd(bench, settings):
    run_fork_server(bench, settings, "spawn")
    bench.assert_gates()


@with_settings
@pytest.mark.parametrize("first", [0, pytest.param(20, marks=needs_revoke)])
def test_passed_to_workers(bench, settings, first):
    run_fork_server(bench, settings, "pass", first)
    if first > 0:
        bench.assert_ring(streams=CONNECTIONS, min_bytes=CONNECTIONS * 1000)
        bench.assert_revoked()
    bench.assert_gates()


@pytest.mark.parametrize("mode", ["forking", "inetd", "send_fds", "handles"])
def test_python(bench, mode):
    server = bench.start([PYTHON, SCRIPTS / "py_processes.py", mode], SERVER, name="server")
    client = bench.start([PYTHON, SCRIPTS / "py_asyncio.py", "client", server.port(), 6, 100_000], CLIENT, name="client")
    assert "checked" in client.finish()
    server.stop(signal.SIGTERM)
    bench.wait_for_orphans()  # multiprocessing's helpers end after the server
    bench.assert_gates()
