# SPDX-License-Identifier: MIT
"""nginx and redis as the tests use them: configuration, start, proper end."""

import os
import pathlib
import re
import signal

from harness import SERVER, Bench, Proc, Side, free_port, wait_for_port

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
