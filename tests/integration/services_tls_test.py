# SPDX-License-Identifier: MIT
"""TLS by OpenSSL on both ends: its records are bytes of a stream like any others."""

import json
import subprocess

import pytest

from harness import CLIENT, PYTHON, SERVER, Combo, eventually, free_port, wait_for_port
from needs import need
from servers import Nginx
from services import CLIENTS, GOT, PROGRAMS, RECORDS, ask, assert_carried, items, root, wanted  # noqa: F401

pytestmark = RECORDS

LINES, LINE_BYTES = 200, 1000
TLS_CLIENTS = [client for client in CLIENTS if client != "Java HttpClient"]  # Java has a TLS of its own


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """(certificate, key), PEM, for 127.0.0.1."""
    where = tmp_path_factory.mktemp("tls")
    where.parent.chmod(0o755)
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", where / "key.pem", "-out", where / "cert.pem"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return where / "cert.pem", where / "key.pem"


@pytest.mark.parametrize("client", TLS_CLIENTS)
def test_nginx(bench, record_property, root, certificate, client):  # noqa: F811
    need(*CLIENTS[client])
    port = free_port()
    cert, key = certificate
    nginx = Nginx(bench, root, server=f"listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key};")
    asked = items(echoes=False)
    assert ask(bench, client, f"https://127.0.0.1:{port}", asked, ca=cert) == wanted(asked, root)
    nginx.stop()
    bench.assert_ring(streams=1, min_bytes=GOT)
    verdict = "ring" if bench.combo is Combo.BOTH else "TCP (peer-absent)" if bench.combo is not Combo.NEITHER else "plain TCP"
    record_property("service", json.dumps({"server": "nginx, TLS", "client": client, "preloaded": bench.combo.value, "verdict": verdict}))


def start_openssl_server(bench, certificate):
    """It gives each line back, backwards, to one client, and ends with it."""
    port = free_port()
    argv = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificate[0], "-key", certificate[1], "-rev", "-naccept", 1, "-quiet"]
    server = bench.start(argv, SERVER, name="s_server")
    wait_for_port(port, server)
    return server, port


def lines() -> list:
    return [f"{number:04}".ljust(LINE_BYTES, "abcdefghij"[number % 10]) for number in range(LINES)]


@pytest.mark.parametrize("combo", [Combo.CLIENT, Combo.SERVER, Combo.BOTH], ids=lambda combo: combo.value)
def test_openssl_server_and_client(bench, certificate):
    server, port = start_openssl_server(bench, certificate)
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", certificate[0], "-verify_return_error", "-quiet", "-no_ign_eof"]
    client = bench.start(argv, CLIENT, name="s_client", stdin=subprocess.PIPE)
    for number, line in enumerate(lines(), 1):
        client.stdin.write(line.encode() + b"\n")
        client.stdin.flush()
        eventually(lambda: client.stdout().count("\n") == number or not client.running(), what=f"line {number}")
    client.stdin.close()
    client.finish()
    server.finish()
    assert client.stdout().splitlines() == [line[::-1] for line in lines()]
    bench.assert_ring(streams=1, min_bytes=2 * (LINES - 40) * LINE_BYTES)


@pytest.mark.parametrize("combo", [Combo.CLIENT, Combo.SERVER, Combo.BOTH], ids=lambda combo: combo.value)
def test_openssl_server_python_client(bench, certificate):
    server, port = start_openssl_server(bench, certificate)
    argv = [PYTHON, PROGRAMS / "tls_lines.py", port, certificate[0], LINES, LINE_BYTES]
    assert "checked" in bench.run(argv, CLIENT)
    server.finish()
    bench.assert_ring(streams=1, min_bytes=2 * (LINES - 40) * LINE_BYTES)
