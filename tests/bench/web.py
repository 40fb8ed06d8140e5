# SPDX-License-Identifier: MIT
"""nginx, with wrk (as fast as it goes) or h2load (at a fixed rate)."""

import json
import re
from pathlib import Path

from cells import Result, Workload
from processes import BenchError
from programs import program

KEPT_IN_CONF = 1000  # bytes; larger bodies are files
LUA = Path(__file__).with_name("http.lua")

CONF = """\
worker_processes {workers};
daemon off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  # nginx closes a connection after 1000 requests by default; here one connection is to last for a whole run.
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  sendfile off;
  open_file_cache max=10;
  client_body_temp_path temp;
  proxy_temp_path temp;
  fastcgi_temp_path temp;
  uwsgi_temp_path temp;
  scgi_temp_path temp;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    listen unix:{unix};
    location / {{ {content} }}
  }}
}}
"""


class Nginx(Workload):
    """A small body comes from the configuration (`return 200`), a larger one from a file, read and written (sendfile off)."""

    unit = "requests/s"
    descriptors = 8192

    def __init__(self, connections, body, workers=1, close=False):
        self.connections, self.body, self.workers, self.close = connections, body, workers, close

    def start(self, stage):
        (stage.directory / "body").write_text("x" * self.body)

        def command(port):
            conf = stage.directory / "nginx.conf"
            conf.write_text(CONF.format(workers=self.workers, port=port, unix=stage.unix_path, content=self.content(stage)))
            stage.unix_path.unlink(missing_ok=True)
            return [program("nginx"), "-p", stage.directory, "-e", "error.log", "-c", conf]

        port = stage.start_on_free_port(command)
        stage.address = f"http://127.0.0.1:{port}/body"

    def content(self, stage):
        return f'return 200 "{"x" * self.body}";' if self.body <= KEPT_IN_CONF else f"root {stage.directory};"


class Wrk(Nginx):
    unix = False
    client_name = "wrk"

    def seconds(self, wanted):
        return max(1, round(wanted))  # wrk takes whole seconds

    def run(self, stage, seconds):
        header = ["-H", "Connection: close"] if self.close else []
        command = [program("wrk"), "-t1", f"-c{self.connections}", f"-d{seconds}s", "--latency", "-s", LUA, *header, stage.address]
        return parse_wrk(stage.run_client(command, seconds))


def parse_wrk(text):
    match = re.search(r"^RESULT (\{.*\})$", text, re.M)
    if match is None:
        raise BenchError(f"wrk printed no result: {text[-200:]!r}")
    found = json.loads(match[1])
    if found["requests"] == 0:
        raise BenchError("wrk did not get a single answer")
    rate = found["requests"] / found["duration_us"] * 1e6
    details = {"errors": found["errors"]} if any(found["errors"].values()) else {}
    return Result(rate, found["requests"], found["bytes"], found["latency_us"], sum(found["errors"].values()), details)


# ---- h2load ---------------------------------------------------------------------------------------


class H2load(Nginx):
    """HTTP/1.1 at a share of what wrk gets out of TCP with as many connections."""

    def __init__(self, connections, body, share):
        super().__init__(connections, body)
        self.share = share
        self.closed_loop = Wrk(connections, body)

    def prepare(self, tcp_stage, seconds):
        fastest = self.closed_loop.run(tcp_stage, self.closed_loop.seconds(seconds)).rate
        self.rate = self.share * fastest
        return {"closed_loop_tcp_per_second": fastest, "rate_per_second": self.rate}

    def run(self, stage, seconds):
        log = stage.directory / "requests"
        log.unlink(missing_ok=True)
        each = max(1, round(self.rate / self.connections))
        base = ["--base-uri", f"unix:{stage.unix_path}"] if stage.mode.unix else []
        command = [program("h2load"), "--h1", "-t1", f"-c{self.connections}", f"--rps={each}", f"-D{round(seconds * 1000)}ms"]
        output = stage.run_client([*command, f"--log-file={log}", *base, stage.address], seconds)
        return parse_h2load(output, log.read_text(), seconds, self.rate)


def parse_h2load(output, log, seconds, wanted_rate):
    counts = re.search(r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output, re.M)
    if counts is None:
        raise BenchError(f"h2load printed no result: {output[-200:]!r}")
    succeeded, *errors = map(int, counts.groups())
    took = sorted(int(line.split("\t")[2]) for line in log.splitlines())
    if not took:
        raise BenchError("h2load did not get a single answer")
    rate = succeeded / seconds
    return Result(rate, succeeded, None, percentiles(took), sum(errors), {"share_of_rate_kept": rate / wanted_rate})


def percentiles(in_order):
    def at(share):
        return in_order[min(len(in_order) - 1, int(share * len(in_order)))]

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": in_order[-1]}
