# SPDX-License-Identifier: MIT
"""nginx, redis and other people's HTTP servers as the tests use them: configuration, start, proper end."""

import os
import pathlib
import re
import signal

from harness import PYTHON, SCRIPTS, SERVER, Bench, Proc, Side, free_port, wait_for_port

NGINX_CONF = """
daemon off;
{main}
{user}
worker_processes {workers};
pid {dir}/nginx.pid;
error_log {dir}/error.log info;
worker_shutdown_timeout 20s;
events {{ worker_connections 1024; {events} }}
http {{
  access_log off;
  default_type application/octet-stream;
  sendfile {sendfile};
  tcp_nodelay on;
  keepalive_timeout 300s;
  keepalive_requests 1000000000;
  client_max_body_size 1g;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  {http}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {root};
    location = /hello {{ return 200 "hello\\n"; }}
    location /dav/ {{ alias {dir}/dav/; dav_methods PUT DELETE; create_full_put_path on; }}
    {server}
  }}
}}
"""


class Nginx:
    """A running nginx; `stop` ends it so that every process reports its statistics. `orphan`: its parent ends at once, as a daemon's does;
    only then does it follow SIGUSR2."""

    def __init__(self, bench: Bench, root, *, side: Side = SERVER, workers=1, sendfile=True, user=None, main="", http="", server="", events="",
                 settings=None, name="nginx", env=None, orphan=False):  # fmt: skip
        self.bench, self.workers = bench, workers
        self.dir = bench.dir / name
        self.port = free_port()
        (self.dir / "dav").mkdir(parents=True)
        user = user or ("www-data" if os.getuid() == 0 else None)
        if user and os.getuid() == 0:
            import pwd

            account = pwd.getpwnam(user)
            os.chown(self.dir / "dav", account.pw_uid, account.pw_gid)
        conf = self.dir / "nginx.conf"
        conf.write_text(
            NGINX_CONF.format(
                dir=self.dir, root=root, workers=workers, port=self.port, sendfile="on" if sendfile else "off",
                user=f"user {user};" if user else "", main=main, http=http, server=server, events=events,
            )
        )  # fmt: skip
        argv = ["/usr/sbin/nginx", "-c", conf, "-e", self.dir / "error.log"]
        if orphan:
            argv = ["/bin/sh", "-c", '"$@" & sleep 0.3', "sh", *argv]
        self.proc: Proc = bench.start(argv, side, name=name, settings=settings, env=env)
        wait_for_port(self.port, self.proc)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path.lstrip('/')}"

    def reload(self) -> None:
        """What `nginx -s reload` does."""
        self.proc.send_signal(signal.SIGHUP)

    def worker_pids(self) -> list:
        task = pathlib.Path(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def error_log(self) -> str:
        path = self.dir / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        self.proc.stop(signal.SIGQUIT)
        bad = [line for line in self.error_log().splitlines() if re.search(r"\[(alert|crit|emerg)\]", line)]
        assert not bad, "nginx complained:\n" + "\n".join(bad[:20])
        assert "exited on signal" not in self.error_log(), self.error_log()[-3000:]


class Redis:
    """A running redis-server."""

    def __init__(self, bench: Bench, *options):
        self.bench = bench
        self.port = free_port()
        self.proc = bench.start(
            ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--dir", bench.dir, "--save", "", *options], SERVER, name="redis"
        )
        wait_for_port(self.port, self.proc)

    def stop(self) -> None:
        self.proc.stop(signal.SIGTERM)


# ---- the service of tests/programs/services, by other people's servers -----------------------------------------------------------


class HttpServer:
    """GET /NAME is a file of `root`, POST /echo gives the body back. `ends_with`: its exit code after SIGTERM."""

    ends_with = 0

    def __init__(self, bench: Bench, root):
        self.proc, self.port = self.start(bench, root)

    def start(self, bench, root):
        raise NotImplementedError

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def stop(self) -> None:
        self.proc.stop(signal.SIGTERM, self.ends_with)


class ToldItsPort(HttpServer):
    """A server that does not choose its port."""

    def command(self, port: int) -> list:
        raise NotImplementedError

    def start(self, bench, root):
        port = free_port()
        proc = bench.start(self.command(port), SERVER, name="app", env={"SERVICE_ROOT": str(root), "PYTHONPATH": str(SCRIPTS / "services")})
        wait_for_port(port, proc)
        return proc, port


class Gunicorn(ToldItsPort):
    worker = "gthread"

    def command(self, port):
        options = ["--worker-class", self.worker, "--workers", 1, "--keep-alive", 60, "--bind", f"127.0.0.1:{port}"]
        return [PYTHON, "-B", "-m", "gunicorn", *options, *(["--threads", 4] if self.worker == "gthread" else []), "app:wsgi"]


class GunicornSync(Gunicorn):
    """Closes every connection after its first answer."""

    worker = "sync"


class Uvicorn(ToldItsPort):
    loop = "asyncio"

    def command(self, port):
        options = ["--loop", self.loop, "--lifespan", "off", "--timeout-keep-alive", 60, "--host", "127.0.0.1", "--port", port]
        return [PYTHON, "-B", "-m", "uvicorn", "--no-access-log", *options, "app:asgi"]


class UvicornUvloop(Uvicorn):
    loop = "uvloop"


class NodeHttp(HttpServer):
    def start(self, bench, root):
        proc = bench.start(["node", SCRIPTS / "services" / "http.js", "server", root], SERVER, name="app")
        return proc, proc.port()


class JavaHttp(HttpServer):
    """com.sun.net.httpserver. `classes`: where Http.class is."""

    ends_with = 143  # a JVM's after SIGTERM: its hooks have run
    classes = None

    def start(self, bench, root):
        options = ["-XX:TieredStopAtLevel=1", "-Dsun.net.httpserver.nodelay=true", "-cp", self.classes]
        proc = bench.start(["java", *options, "Http", "server", root], SERVER, name="app")
        return proc, int(proc.wait_line(r"^PORT (\d+)$", 30).group(1))


class Proxied:
    """nginx before another server, with connections to it that are kept."""

    def __init__(self, bench: Bench, root, backend: type):
        self.backend = backend(bench, root)
        self.nginx = Nginx(
            bench, root, http=f"upstream back {{ server 127.0.0.1:{self.backend.port}; keepalive 4; }}",
            server='location /b/ { proxy_pass http://back/; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_max_temp_file_size 0; }',
        )  # fmt: skip

    def url(self, path: str = "") -> str:
        return self.nginx.url(f"b{path}")

    def stop(self) -> None:
        self.nginx.stop()
        self.backend.stop()
