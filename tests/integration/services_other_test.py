# SPDX-License-Identifier: MIT
"""redis, gRPC, Go and static programs with ends of other languages."""

import json
import signal
import subprocess

import pytest

from harness import BUILD, CLIENT, PYTHON, SCRIPTS, SERVER, SO, Combo, read_text
from needs import built, need
from servers import Nginx, Redis
from services import ALONE, PROGRAMS, RECORDS, ask, assert_only, items, root, wanted  # noqa: F401

pytestmark = RECORDS

GRPC_CALL = BUILD / "tests" / "bench" / "grpc_call"
VALUES = [0, 1, 100, 5000, 70_000] * 8 + [1_000_000]


def record(record_property, bench, server, client) -> None:
    verdict = {Combo.BOTH: "ring", Combo.NEITHER: "plain TCP"}.get(bench.combo, "TCP (peer-absent)")
    record_property("service", json.dumps({"server": server, "client": client, "preloaded": bench.combo.value, "verdict": verdict}))


def assert_ring_or_peer_absent(bench, min_bytes, client) -> None:
    bench.assert_ring(streams=1, min_bytes=min_bytes)
    if bench.combo in (Combo.CLIENT, Combo.SERVER):
        assert_only(bench.stats(bench.sides()[0]), client if bench.combo is Combo.CLIENT else "the server", "peer-absent")


# ---- redis -------------------------------------------------------------------------------------------------------------------


def redis_by_cli(bench, redis) -> None:
    count, value = 300, "0123456789" * 500
    commands = "".join(f"SET key-{i} {i}-{value}\nGET key-{i}\n" for i in range(count))
    cli = bench.start(["redis-cli", "-p", redis.port], CLIENT, name="redis-cli", stdin=subprocess.PIPE)
    cli.stdin.write(commands.encode())
    cli.stdin.close()
    assert cli.finish().split() == [word for i in range(count) for word in ("OK", f"{i}-{value}")]


def redis_by(*argv):
    def check(bench, redis):
        assert "checked" in bench.run([*argv, redis.port, *VALUES], CLIENT, timeout_s=60)

    return check


REDIS_CLIENTS = {
    "redis-cli": ((), redis_by_cli),
    "node": ((), redis_by("node", PROGRAMS / "redis.js")),
    "redis-py": (("redis-py",), redis_by(PYTHON, PROGRAMS / "redis_library.py")),
}


@pytest.mark.parametrize("client", REDIS_CLIENTS)
def test_redis(bench, record_property, client):
    needed, check = REDIS_CLIENTS[client]
    need(*needed)
    redis = Redis(bench)
    check(bench, redis)
    redis.stop()
    assert_ring_or_peer_absent(bench, 2_000_000, client)
    record(record_property, bench, "redis", client)


# ---- gRPC --------------------------------------------------------------------------------------------------------------------


def call_by_cpp(bench, port) -> int:
    """Bytes that went each way."""
    total, seconds = 0, 0.3 if bench.combo is Combo.BOTH else 2  # alone, it must be clear that the peer has no library
    for size in (1000, 300_000):
        argv = [GRPC_CALL, "call", "--address", f"tcp:{port}", "--bytes", size, "--seconds", seconds, "--warmup-ms", 300]
        total += json.loads(bench.run(argv, CLIENT, timeout_s=60))["operations"] * size
    return total


def call_by_python(bench, port) -> int:
    sizes = [100] * (40 if bench.combo is Combo.BOTH else ALONE) + [0, 1, 1000, 65_536, 3_000_000]
    assert "checked" in bench.run([PYTHON, PROGRAMS / "grpc_echo.py", "client", port, *sizes], CLIENT, timeout_s=60)
    return 3_000_000


GRPC_SERVERS = {"C++": ("grpc_call", [GRPC_CALL, "serve"]), "Python": ("grpc", [PYTHON, PROGRAMS / "grpc_echo.py", "server"])}
GRPC_CLIENTS = {"C++": ("grpc_call", call_by_cpp), "Python": ("grpc", call_by_python)}


@pytest.mark.parametrize("client", GRPC_CLIENTS)
@pytest.mark.parametrize("server", GRPC_SERVERS)
def test_grpc(bench, record_property, server, client):
    (server_needs, argv), (client_needs, call) = GRPC_SERVERS[server], GRPC_CLIENTS[client]
    need(server_needs, client_needs)
    proc = bench.start(argv, SERVER, name="server")
    each_way = call(bench, int(proc.wait_line(r"^PORT (\d+)$", 30).group(1)))
    proc.stop(signal.SIGTERM)
    assert_ring_or_peer_absent(bench, 2 * each_way, client)
    record(record_property, bench, f"gRPC {server}", f"gRPC {client}")


# ---- what the library cannot reach -------------------------------------------------------------------------------------------

PRELOADED = {"LD_PRELOAD": str(SO)}


@pytest.fixture(scope="session")
def go_programs(tmp_path_factory):
    """Static, and linked to libc: neither asks libc for sockets."""
    need("go")
    where = tmp_path_factory.mktemp("go")
    where.parent.chmod(0o755)
    for name, cgo in (("static", "0"), ("dynamic", "1")):
        built("http.go", str(where), "go", "build", "-o", str(where / name), CGO_ENABLED=cgo)
    return where


@pytest.mark.parametrize("combo", [Combo.CLIENT], ids=["both"])
@pytest.mark.parametrize("linked", ["static", "dynamic"])
def test_go_server(bench, record_property, root, go_programs, linked):  # noqa: F811
    """Under the preload as ever; its client is told that nobody answers."""
    server = bench.start([go_programs / linked, "server", root], None, name="server", env=PRELOADED)
    port = server.port()
    assert ("libmpklink" in read_text(f"/proc/{server.pid}/maps")) is (linked == "dynamic")
    asked = items(echoes=True, warm=ALONE)
    assert ask(bench, "curl", f"http://127.0.0.1:{port}", asked) == wanted(asked, root)
    server.stop(signal.SIGTERM)
    bench.assert_not_used(CLIENT)
    assert_only(bench.stats(CLIENT), "curl", "peer-absent")
    record_property("service", json.dumps({"server": f"Go ({linked})", "client": "curl", "preloaded": "both", "verdict": "TCP (peer-absent)"}))


@pytest.mark.parametrize("combo", [Combo.SERVER], ids=["both"])
@pytest.mark.parametrize("linked", ["static", "dynamic"])
def test_go_client(bench, record_property, root, go_programs, linked):  # noqa: F811
    nginx = Nginx(bench, root)
    asked = items(echoes=False, warm=ALONE)
    lines = bench.run([go_programs / linked, "client", nginx.url(""), *asked], None, name="client", env=PRELOADED).splitlines()
    assert lines == wanted(asked, root)
    nginx.stop()
    bench.assert_not_used(SERVER)
    assert_only(bench.stats(SERVER), "nginx", "peer-absent")
    record_property("service", json.dumps({"server": "nginx", "client": f"Go ({linked})", "preloaded": "both", "verdict": "TCP (peer-absent)"}))


@pytest.mark.parametrize("combo", [Combo.CLIENT], ids=["both"])
def test_go_by_the_tool(bench, root, go_programs):  # noqa: F811
    """`mpklink run` refuses what it can do nothing for, and warns where it can do little."""
    mpklink = BUILD / "tools" / "mpklink"
    refused = bench.start([mpklink, "run", "--", go_programs / "static", "server", root], None, name="refused")
    assert refused.wait() == 126 and "statically linked" in refused.stderr()
    server = bench.start([mpklink, "run", "--", go_programs / "dynamic", "server", root], None, name="server")
    assert ask(bench, "curl", f"http://127.0.0.1:{server.port()}", ["/f1", "/f100k"]) == wanted(["/f1", "/f100k"], root)
    assert "Go" in server.stderr(), "no warning"
    server.stop(signal.SIGTERM)
    bench.assert_not_used(CLIENT)


@pytest.fixture(scope="session")
def static_echo(tmp_path_factory):
    where = tmp_path_factory.mktemp("static")
    where.parent.chmod(0o755)
    argv = ["g++", "-std=gnu++17", "-O1", "-static", "-pthread", "-o", where / "echo", SCRIPTS / "echo_threads.cc"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return where / "echo"


@pytest.mark.parametrize("combo", [Combo.CLIENT, Combo.SERVER], ids=["static-server", "static-client"])
def test_static_program(bench, static_echo):
    """One end is static C++ under the preload, which it never sees; the other one is upgraded by nobody and says so."""
    ends = {SERVER: [static_echo, "server"], CLIENT: [static_echo, "client"]}
    preloaded = bench.sides()[0]
    ends[preloaded] = [bench.program("echo_threads"), preloaded.value]
    how = {side: {} if side is preloaded else {"env": PRELOADED} for side in ends}
    server = bench.start(ends[SERVER], SERVER, name="server", **how[SERVER])
    client = bench.start([*ends[CLIENT], f"--port={server.port()}"], CLIENT, name="client", **how[CLIENT])
    bench.succeed(client)
    bench.succeed(server)
    bench.assert_not_used(preloaded)
    assert_only(bench.stats(preloaded), preloaded.value, "peer-absent")
