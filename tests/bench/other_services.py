# SPDX-License-Identifier: MIT
"""Other people's servers and clients: the programs of tests/programs/services, which tests/integration/services_test.py checks. This measures."""

import subprocess
from pathlib import Path

from cells import Result
from measure import listens
from processes import BenchError
from programs import program
from stage import free_port
from traffic import Grpc, parse_client
from web import LUA, Nginx, parse_wrk

PROGRAMS = Path(__file__).resolve().parents[1] / "programs" / "services"
TOGETHER = Path(__file__).with_name("together.py")
PYTHON = "/usr/bin/python3"
BODY = 100

PROXY_CONF = """\
worker_processes 1;
daemon off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path temp;
  proxy_temp_path temp;
  fastcgi_temp_path temp;
  uwsgi_temp_path temp;
  scgi_temp_path temp;
  {upstream}
  server {{
    {listen}
    location / {{ {content} }}
  }}
}}
"""


def java_classes(directory):
    """Http.class, compiled once for all cells."""
    if not (directory / "Http.class").exists():
        argv = [program("javac"), "-encoding", "UTF-8", "-d", str(directory), str(PROGRAMS / "Http.java")]
        result = subprocess.run(argv, capture_output=True, text=True, timeout=300)
        if result.returncode != 0:
            raise BenchError(f"javac: {result.stderr.strip()[-300:]}")
    return directory


def python_app(directory, module, *options):
    env = ["env", f"SERVICE_ROOT={directory / 'root'}", f"PYTHONPATH={PROGRAMS}"]
    return [*env, PYTHON, "-B", "-m", module, *options]


APPS = {
    "gunicorn gthread": lambda d, port: python_app(
        d, "gunicorn", "--worker-class", "gthread", "--threads", 4, "--keep-alive", 60, "--bind", f"127.0.0.1:{port}", "app:wsgi"),
    "uvicorn asyncio": lambda d, port: python_app(
        d, "uvicorn", "--no-access-log", "--loop", "asyncio", "--lifespan", "off", "--port", port, "app:asgi"),
    "uvicorn uvloop": lambda d, port: python_app(
        d, "uvicorn", "--no-access-log", "--loop", "uvloop", "--lifespan", "off", "--port", port, "app:asgi"),
    "node": lambda d, port: [program("node"), PROGRAMS / "http.js", "server", d / "root", port],
    "Java": lambda d, port: [
        program("java"), "-Dsun.net.httpserver.nodelay=true", "-cp", java_classes(d.parent.parent), "Http", "server", d / "root", port],
}  # fmt: skip


class Service(Nginx):
    """An application alone, or nginx before it (`proxied`), or nginx alone with TLS."""

    unix = False
    client_name = "the client"

    def __init__(self, app=None, proxied=False, tls=False):
        super().__init__(connections=16, body=BODY)
        self.app, self.proxied, self.tls = app, proxied, tls

    def start(self, stage):
        root = stage.directory / "root"
        root.mkdir()
        (root / "body").write_text("x" * BODY)
        front, back = free_port(), free_port()
        parts = []
        if self.app:
            parts += [APPS[self.app](stage.directory, back if self.proxied else front)]
        if self.proxied or self.tls:
            parts += [self.nginx(stage, front, back)]
        command = [PYTHON, TOGETHER, *parts[0]]
        for part in parts[1:]:
            command += ["--", *part]
        ports = [front, back] if self.proxied else [front]
        stage.start_server(command, lambda _: all(listens(port) for port in ports), self.app or "nginx")
        stage.address = f"{'https' if self.tls else 'http'}://127.0.0.1:{front}/body"

    def nginx(self, stage, front, back):
        listen, upstream, content = f"listen 127.0.0.1:{front} backlog=4096;", "", f'return 200 "{"x" * BODY}";'
        if self.tls:
            listen = f"listen 127.0.0.1:{front} backlog=4096 ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem;"
            make_certificate(stage.directory)
        if self.proxied:
            upstream = f"upstream back {{ server 127.0.0.1:{back}; keepalive 32; keepalive_requests 1000000000; }}"
            content = 'proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection "";'
        conf = stage.directory / "nginx.conf"
        conf.write_text(PROXY_CONF.format(listen=listen, upstream=upstream, content=content))
        return [program("nginx"), "-p", stage.directory, "-e", "error.log", "-c", conf]


def make_certificate(directory):
    argv = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=127.0.0.1", "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        raise BenchError(f"openssl: {result.stderr.strip()[-300:]}")


class WrkService(Service):
    client_name = "wrk"

    def seconds(self, wanted):
        return max(1, round(wanted))

    def run(self, stage, seconds):
        command = [program("wrk"), "-t1", f"-c{self.connections}", f"-d{seconds}s", "--latency", "-s", LUA, stage.address]
        return parse_wrk(stage.run_client(command, seconds))


class Fetch(Service):
    """One kept connection of an HTTP library's, one request after the other."""

    def __init__(self, library, app=None):
        super().__init__(app)
        self.library = library

    def start(self, stage):
        if self.app:
            super().start(stage)
        else:
            Nginx.start(self, stage)

    def run(self, stage, seconds):
        base, path = stage.address.rsplit("/", 1)
        if self.library == "Java":
            argv = [program("java"), "-cp", java_classes(stage.directory.parent.parent), "Http", "measure", seconds, base, f"/{path}"]
        else:
            argv = [PYTHON, PROGRAMS / "client.py", self.library, "--seconds", seconds, base, f"/{path}"]
        found = parse_client(stage.run_client(argv, seconds))
        return Result(found["operations_per_second"], found["operations"], None, found["latency_us"], found["errors"])


class CrossedGrpc(Grpc):
    """gRPC with C++ or Python at each end."""

    unix = False
    client_name = "one of the two ends"

    def __init__(self, server, client, size=BODY):
        super().__init__(size)
        self.server, self.caller = server, client

    def start(self, stage):
        if self.server == "C++":
            super().start(stage)
            return
        command = [PYTHON, PROGRAMS / "grpc_echo.py", "server"]
        found = stage.start_server(command, lambda server: port_of(server.output()), "grpc_echo.py")
        stage.address = f"tcp:{found}"

    def run(self, stage, seconds):
        if self.caller == "C++":
            return super().run(stage, seconds)
        port = stage.address.partition(":")[2]
        found = parse_client(stage.run_client([PYTHON, PROGRAMS / "grpc_echo.py", "client", "--seconds", seconds, port, self.size], seconds))
        return Result(found["operations_per_second"], found["operations"], None, found["latency_us"], found["errors"])


def port_of(text):
    first = text.partition("\n")[0]
    return int(first.split()[1]) if first.startswith("PORT ") and "\n" in text else None
