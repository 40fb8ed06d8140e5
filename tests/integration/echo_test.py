# SPDX-License-Identifier: MIT
"""Pairs of programs that send each other checked bytes: threads, event loops, full duplex, one process, one thread, addresses."""

import pathlib
import socket
import subprocess
import sys

import pytest

from harness import BUILD, CLIENT, SERVER, Combo, free_port
from program_cases import COMBO_VARIANT_IDS, COMBO_VARIANTS, ONE_PROCESS_IDS, ONE_PROCESS_VARIANTS

two_processes = pytest.mark.parametrize("combo,settings", COMBO_VARIANTS, ids=COMBO_VARIANT_IDS)
one_process = pytest.mark.parametrize("combo,settings", ONE_PROCESS_VARIANTS, ids=ONE_PROCESS_IDS)

WAITS = ["select", "pselect", "poll", "ppoll", "epoll", "epoll-et", "epoll-oneshot"]


def less_if_slow(settings, normal, small):
    """mprotect costs two system calls per gate: small volumes there."""
    return small if settings.get("GUARD") == "mprotect" else normal


# ---- blocking threads ----------------------------------------------------------------------------------------------------


@two_processes
def test_threads(bench, settings):
    bench.settings = settings
    rounds = less_if_slow(settings, 200, 80)
    bench.run_pair("echo_threads", "--connections=8", f"--rounds={rounds}", "--max-size=65536")
    bench.assert_ring(streams=8, min_bytes=8 * rounds * 1000, exact=True, conserved=True)


@one_process
def test_threads_one_process(bench, settings):
    bench.settings = settings
    rounds = less_if_slow(settings, 200, 80)
    bench.succeed(bench.start([bench.program("echo_threads"), "both", "--connections=8", f"--rounds={rounds}"], SERVER))
    bench.assert_ring(streams=16, min_bytes=8 * rounds * 1000, exact=True, conserved=True, sides=[SERVER])


def test_many_connections(bench):
    # So many rounds that no connection is over while the thread at its other end waits for its turn.
    bench.run_pair("echo_threads", "--connections=100", "--rounds=150", "--max-size=2000", timeout_s=60)
    bench.assert_ring(streams=100, min_bytes=100 * 150 * 50, exact=True, conserved=True)


# ---- event loops ---------------------------------------------------------------------------------------------------------


@two_processes
@pytest.mark.parametrize("wait", WAITS)
def test_events(bench, wait, settings):
    bench.settings = settings
    volume = less_if_slow(settings, 300_000, 100_000)
    bench.run_pair("echo_events", f"--wait={wait}", "--connections=8", f"--bytes={volume}")
    bench.assert_ring(streams=8, min_bytes=8 * volume, exact=True, conserved=True)


@one_process
@pytest.mark.parametrize("wait", ["poll", "select", "epoll", "epoll-et"])
@pytest.mark.parametrize("mode", ["both", "one-thread"])
def test_events_one_process(bench, mode, wait, settings):
    bench.settings = settings
    volume = less_if_slow(settings, 300_000, 100_000)
    program = bench.program("echo_events")
    bench.succeed(bench.start([program, mode, f"--wait={wait}", "--connections=4", f"--bytes={volume}"], SERVER))
    bench.assert_ring(streams=8, min_bytes=4 * volume, exact=True, conserved=True, sides=[SERVER])


@pytest.mark.parametrize("server_wait,client_wait", [("epoll-et", "poll"), ("select", "epoll-oneshot"), ("poll", "epoll")])
def test_events_mixed(bench, server_wait, client_wait):
    options = ["--connections=20", "--bytes=200000"]
    server = bench.start([bench.program("echo_events"), "server", f"--wait={server_wait}", *options], SERVER)
    bench.succeed(
        bench.start([bench.program("echo_events"), "client", f"--port={server.port()}", f"--wait={client_wait}", *options], CLIENT)
    )
    bench.succeed(server)
    bench.assert_ring(streams=20, min_bytes=20 * 200_000, exact=True, conserved=True)


@one_process
def test_blocking_in_one_thread(bench, settings):
    """send, then receive at the other end, all in one thread with blocking calls: works as long as the message fits."""
    bench.settings = settings
    size = 2048 if "RING_KIB" in settings else 16384
    bench.succeed(bench.start([bench.program("one_thread"), "both", "--connections=3", f"--max-size={size}"], SERVER))
    bench.assert_ring(streams=6, min_bytes=100_000, exact=True, conserved=True, sides=[SERVER])


# ---- both directions at once ---------------------------------------------------------------------------------------------


@two_processes
def test_full_duplex(bench, settings):
    bench.settings = settings
    volume = less_if_slow(settings, 16 << 20, 1 << 20)
    bench.run_pair("full_duplex", "--connections=2", f"--bytes={volume}")
    bench.assert_ring(streams=2, min_bytes=2 * volume, exact=True, conserved=True)


@two_processes
def test_full_duplex_cold(bench, settings):
    """Without a warm-up: the upgrade happens while both directions are full. The ends may miss each other for the whole of a short
    run, so there are several; every one must be right, and not all may have stayed on TCP."""
    bench.settings = settings
    volume = less_if_slow(settings, 16 << 20, 8 << 20)
    for _ in range(4):
        bench.run_pair("full_duplex", "--connections=2", f"--bytes={volume}", "--warm=0")
    bench.assert_ring(streams=1, min_bytes=1000, conserved=True)


@one_process
def test_full_duplex_one_process(bench, settings):
    bench.settings = settings
    volume = less_if_slow(settings, 8 << 20, 1 << 20)
    bench.succeed(bench.start([bench.program("full_duplex"), "both", "--connections=2", f"--bytes={volume}"], SERVER))
    bench.assert_ring(streams=4, min_bytes=2 * volume, exact=True, conserved=True, sides=[SERVER])


# ---- addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listen,host",
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.1.2.3"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "::"),
        ("::", "127.0.0.1"),
        ("::", "::ffff:127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("0.0.0.0", "own"),
    ],
)
def test_addresses(bench, listen, host):
    """Destination 0.0.0.0 and ::, IPv6, v4-mapped on either side, and the machine's own address (local == peer)."""
    if host == "own":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.connect(("192.0.2.1", 9))
            except OSError:
                pytest.skip("this machine has no address but loopback")
            host = s.getsockname()[0]
    options = ["--connections=2", "--rounds=100", "--max-size=1000"]
    server = bench.start([bench.program("echo_threads"), "server", f"--listen={listen}", *options], SERVER)
    client = bench.start([bench.program("echo_threads"), "client", f"--port={server.port()}", f"--host={host}", *options], CLIENT)
    bench.succeed(client)
    bench.succeed(server)
    bench.assert_ring(streams=2, min_bytes=10_000, exact=True, conserved=True)


# ---- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.no_ring
@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
def test_disable(bench, side):
    """MPKLINK_DISABLE=1 at one end: plain TCP, as if the library were not there."""
    options = ["--connections=2", "--rounds=100"]
    off = {"DISABLE": 1}
    server = bench.start(
        [bench.program("echo_threads"), "server", *options], SERVER, settings=off if side is SERVER else None
    )
    client = bench.start(
        [bench.program("echo_threads"), "client", f"--port={server.port()}", *options], CLIENT, settings=off if side is CLIENT else None
    )
    bench.succeed(client)
    bench.succeed(server)
    other = CLIENT if side is SERVER else SERVER
    bench.assert_not_used(other)
    stats = bench.stats(side)  # a disabled library may report or keep silent, but not more than this
    assert stats.upgraded == 0 and stats.ring == 0, str(stats)


@pytest.mark.no_ring
@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
def test_warmup_is_respected(bench):
    """With a warm-up longer than the connection nothing is upgraded."""
    bench.settings = {"WARMUP": 100000}
    bench.run_pair("echo_threads", "--connections=4", "--rounds=100")
    for side in (CLIENT, SERVER):
        bench.assert_not_used(side)
    bench.assert_gates()


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
def test_connections_at_once_share_a_board(bench):
    """Upgrades that come before the first one was accepted wait for its pair instead of making pairs of their own."""
    connections = 800
    traffic = BUILD / "tests" / "bench" / "traffic"
    bench.settings = {"WARMUP": 0}
    server = bench.start([traffic, "serve", "echo", "--mode=epoll"], SERVER)
    many = [traffic, "many", f"--address=tcp:{server.port()}", f"--connections={connections}", "--busy=1", "--hold-only"]
    client = bench.start(many, CLIENT, stdin=subprocess.PIPE)
    client.wait_line("READY")
    boards = pathlib.Path(f"/proc/{server.pid}/maps").read_text().count("mpklink-board")
    client.popen.stdin.close()
    assert client.wait() == 0, client.output()
    server.stop()
    bench.assert_ring(streams=connections // 2, min_bytes=10_000)
    assert 1 <= boards <= 3, f"{boards} boards for one peer"


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
def test_short_connections(bench):
    """Where connections are over before an upgrade pays, only one that goes on is upgraded."""
    short, long = 20, 1
    server = bench.start([bench.program("echo_threads"), "server", f"--connections={short + long}"], SERVER)
    for rounds in [15] * short + [300]:
        client = [bench.program("echo_threads"), "client", f"--port={server.port()}", "--connections=1", f"--rounds={rounds}"]
        bench.succeed(bench.start(client, CLIENT))
    bench.succeed(server)
    bench.assert_ring(streams=long, min_bytes=10_000)
    assert bench.stats(SERVER).upgraded <= 3 + long, str(bench.stats(SERVER))


SLOW_CLIENT = """
import socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    for _ in range(150):
        s.sendall(b"x" * 64)
        assert len(s.recv(64, socket.MSG_WAITALL)) == 64
        time.sleep(0.005)
"""


@pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
def test_slow_connection_among_short_ones(bench):
    """The server, which has seen short connections only, is late; by then the client, which has not, has tried for long."""
    traffic = BUILD / "tests" / "bench" / "traffic"
    server = bench.start([traffic, "serve", "echo", "--mode=epoll"], SERVER)
    for _ in range(5):
        short = [traffic, "churn", f"--address=tcp:{server.port()}", "--seconds=0.05"]
        assert bench.start(short, CLIENT).wait() == 0
    client = bench.start([sys.executable, "-c", SLOW_CLIENT, server.port()], CLIENT)
    assert client.wait() == 0, client.output()
    server.stop()
    bench.assert_ring(streams=1, min_bytes=3000)


@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
def test_source_port(bench, combo):
    """A client that binds its port before it connects."""
    server = bench.start([bench.program("echo_threads"), "server", "--connections=1"], SERVER)
    bench.succeed(
        bench.start(
            [bench.program("echo_threads"), "client", f"--port={server.port()}", "--connections=1", f"--source-port={free_port()}"],
            CLIENT,
        )
    )
    bench.succeed(server)
    bench.assert_ring(streams=1, min_bytes=10_000, exact=True, conserved=True)
