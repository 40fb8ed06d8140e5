# SPDX-License-Identifier: MIT
"""Is the library in use, wherever it was installed: a server and a client that are started as a user would start them."""

import json
import os
import pathlib
import subprocess

PYTHON = "/usr/bin/python3"
WAIT_S = 30
ROUNDS = 500
MESSAGE = 100

SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
peer, _ = listener.accept()
while data := peer.recv(4096):
    peer.sendall(data)
"""
CLIENT = f"""
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for i in range({ROUNDS}):
    message = bytes([i % 256]) * {MESSAGE}
    s.sendall(message)
    got = b""
    while len(got) < {MESSAGE}:
        got += s.recv(4096)
    assert got == message
"""


def clean_env(**extra) -> dict:
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("MPKLINK_")}
    return {**env, **{name: str(value) for name, value in extra.items()}}


def echo(directory: pathlib.Path, prefix=(), **env) -> list:
    """The statistics of both ends of an echo; each is started by `prefix` and has `env`."""
    stats = directory / "stats.jsonl"
    stats.unlink(missing_ok=True)
    full_env = clean_env(MPKLINK_STATS=stats, **env)
    command = [*map(str, prefix), PYTHON, "-c"]
    with subprocess.Popen([*command, SERVER], env=full_env, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = server.stdout.readline().strip()
            assert port, "the server did not start"
            subprocess.run([*command, CLIENT, port], env=full_env, check=True, timeout=WAIT_S)
            assert server.wait(WAIT_S) == 0
        finally:
            server.kill()
    return [json.loads(line) for line in stats.read_text().splitlines()] if stats.exists() else []


def assert_ring_used(lines: list) -> None:
    assert len(lines) == 2, lines
    for line in lines:
        assert line["upgraded"] == 1 and line["ring_tx_bytes"] + line["ring_rx_bytes"] > ROUNDS * MESSAGE, line
