# SPDX-License-Identifier: MIT
"""MPKLINK_RULES through the real library: what a rule ignores stays on TCP and says so, everything else uses its ring."""

import os

import pytest

from harness import BUILD, CLIENT, SERVER, Combo, free_port

both = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: starts a client as another user")
NOBODY = 65534

CONNECTIONS, ROUNDS = 4, 300


def talk(bench, server_rules=None, client_rules=None, **client):
    """A server and a client that exchange CONNECTIONS * ROUNDS checked messages, each with its own rules."""
    options = [f"--connections={CONNECTIONS}", f"--rounds={ROUNDS}", "--max-size=4096"]
    rules = lambda text: {} if text is None else {"RULES": text}  # noqa: E731
    server = bench.start([bench.program("echo_threads"), "server", *options], SERVER, settings=rules(server_rules), name="server")
    port = server.port()
    client_rules = client_rules and client_rules.replace("PORT", str(port))
    client = bench.start([bench.program("echo_threads"), "client", f"--port={port}", *options], CLIENT, settings=rules(client_rules), name="client", **client)
    bench.succeed(client)
    bench.succeed(server)
    return server, client


def assert_accelerated(bench):
    bench.assert_ring(streams=1, min_bytes=10_000, conserved=True)  # on a busy machine some connections are over too soon
    assert bench.stats(CLIENT).plain["rule"] == bench.stats(SERVER).plain["rule"] == 0


def assert_ignored(bench, by):
    """Both ends on TCP; the end `by` that has the rule counts it."""
    for side in (CLIENT, SERVER):
        bench.assert_not_used(side)
    assert bench.stats(by).plain["rule"] == CONNECTIONS, bench.stats(by)
    bench.assert_gates()


@both
@pytest.mark.parametrize("rules", [
    "", "ignore,port=1", "accelerate;ignore", "ignore,exe=nginx", "ignore,exe=/bin/*", "accelerate,exe=echo_*;ignore", "ignore,addr=10.0.0.0/8",
    "ignore,dir=in,port=1", "ignore,uid=4242", "accelerate,uid=0-4294967294;ignore", "accelerate,exe=*/tests/programs/echo_threads,addr=127.0.0.1;ignore",
])
def test_not_meant(bench, rules):
    talk(bench, rules, rules)
    assert_accelerated(bench)


@both
@pytest.mark.parametrize("rules", [
    "ignore", "ignore,port=PORT", "ignore,dir=out", "ignore,exe=echo_threads", "ignore,exe=*/echo_threads,port=1-65535", "ignore,addr=127.0.0.0/8",
    "accelerate,port=1;ignore,addr=127.0.0.1", "accelerate,exe=nginx;ignore",
])
def test_client_ignores(bench, rules):
    talk(bench, None, rules)
    assert_ignored(bench, CLIENT)


@both
@pytest.mark.parametrize("rules", ["ignore", "ignore,dir=in", "ignore,exe=echo*,addr=127.0.0.1,dir=in"])
def test_server_ignores(bench, rules):
    talk(bench, rules, None)
    assert_ignored(bench, SERVER)


@both
@pytest.mark.parametrize("by", [CLIENT, SERVER])
def test_user_of_the_peer(bench, by):
    """Known only when the ends have met."""
    rules = f"ignore,uid={os.geteuid()}"
    talk(bench, *((rules, None) if by is SERVER else (None, rules)))
    assert_ignored(bench, by)


@both
@needs_root
@pytest.mark.parametrize("uid,ignored", [(NOBODY, True), (NOBODY - 1, False)])
def test_user_of_the_peer_is_the_peers(bench, uid, ignored):
    """The server is root's, the client is not: the server's rule is about the client."""
    bench.settings = {"PEERS": f"0,{NOBODY}"}
    talk(bench, f"ignore,uid={uid}", None, uid=NOBODY)
    if ignored:
        assert_ignored(bench, SERVER)
    else:
        assert_accelerated(bench)


@both
@pytest.mark.parametrize("rules", ["ignroe", "ignore,prot=1", "accelerate,port=x", "accelerate,dir=out,dir=up", ",", "accelerate,exe="])
def test_mistake_does_not_accelerate(bench, rules):
    """… and is told once on stderr."""
    _, client = talk(bench, None, rules)
    assert_ignored(bench, CLIENT)
    assert client.stderr().count(f"MPKLINK_RULES={rules} is not understood") == 1, client.output()
    assert "stays on TCP" in client.stderr()


@both
def test_mistake_elsewhere_harms_nothing(bench):
    _, client = talk(bench, None, "ignore,exe=nginx,port=x;ignore,port=1,dir=up")
    assert "is not understood" in client.stderr()
    assert_accelerated(bench)


@both
@pytest.mark.parametrize("ports,rules", [("1", "accelerate"), ("!PORT", "accelerate,port=PORT")])
def test_ports_must_allow_too(bench, ports, rules):
    port = free_port()
    options = [f"--connections={CONNECTIONS}", f"--rounds={ROUNDS}", f"--port={port}"]
    settings = {"PORTS": ports.replace("PORT", str(port)), "RULES": rules.replace("PORT", str(port))}
    server = bench.start([bench.program("echo_threads"), "server", *options], SERVER, name="server")
    assert server.port() == port
    bench.succeed(bench.start([bench.program("echo_threads"), "client", *options], CLIENT, settings=settings, name="client"))
    bench.succeed(server)
    assert bench.stats(CLIENT).plain["ports"] == CONNECTIONS and bench.stats(CLIENT).plain["rule"] == 0
    bench.assert_not_used(CLIENT)


@both
def test_name_is_the_executables(bench):
    """Not what a program calls itself: prctl(PR_SET_NAME) and argv[0] are its own."""
    link = bench.dir / "innocent"
    link.symlink_to(bench.program("echo_threads"))
    server = bench.start([bench.program("echo_threads"), "server", "--connections=1", "--rounds=60"], SERVER, name="server")
    bench.succeed(bench.start([link, "client", f"--port={server.port()}", "--connections=1", "--rounds=60"], CLIENT,
                              settings={"RULES": "accelerate,exe=innocent;ignore,exe=echo_threads"}, name="client"))  # fmt: skip
    bench.succeed(server)
    assert bench.stats(CLIENT).plain["rule"] == 1
    bench.assert_not_used(CLIENT)


@both
def test_by_the_configuration_file(bench):
    """From mpklink.toml to the ring: `mpklink run` hands the library the flat form."""
    config = bench.dir / "config.toml"
    server = bench.start([bench.program("echo_threads"), "server", "--connections=4", "--rounds=60"], SERVER, name="server")
    port = server.port()
    config.write_text(f'[[rule]]\naction = "accelerate"\nexe = "nginx"\n[[rule]]\naction = "ignore"\nport = [1, {port}]\ndirection = "out"\n')
    env = bench.env_for(CLIENT)
    env["MPKLINK_LIBRARY"] = env.pop("LD_PRELOAD").split(":")[-1]
    tool = bench.start([BUILD / "tools" / "mpklink", "run", "--config", config, "--", bench.program("echo_threads"), "client", f"--port={port}",
                        "--connections=4", "--rounds=60"], name="client", env=env)  # fmt: skip
    bench.succeed(tool)
    bench.succeed(server)
    assert_ignored(bench, CLIENT)
