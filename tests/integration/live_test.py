# SPDX-License-Identifier: MIT
"""`mpklink top`, `metrics`, `off` and `on` with running processes. (`ss` is in ss_test.py, `dump` in dump_test.py.)"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

from harness import CLIENT, SERVER, Combo, eventually
from live_tools import (
    NOBODY, OWN_UID, TOOL, Puppet, as_user, connected, is_root, look, metrics_samples, own_dir, refused, start_tool, streams_of, tool, values_of,
)  # fmt: skip
from servers import Nginx
from status_page import OFF, OFF_PORTS, talk

pytestmark = pytest.mark.parametrize("combo", [Combo.BOTH], ids=["both"])

needs_root = pytest.mark.skipif(not is_root(), reason="needs root: becomes another user")
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


@contextlib.contextmanager
def busy(server, client):
    """Messages to and fro in the background."""
    server.do("stop = False\ndef answer():\n  while data := s.recv(100): s.sendall(data)\nworker = threading.Thread(target=answer); worker.start()")
    client.do("stop = False\ndef asking():\n  while not stop: ask(c, 20)\nworker = threading.Thread(target=asking); worker.start()")
    yield
    client.do("stop = True; worker.join(); c.shutdown(socket.SHUT_WR)")
    server.do("worker.join()")


# ---- top -----------------------------------------------------------------------------------------------------------------


def test_top_without_terminal(bench):
    server, client = connected(bench)
    with busy(server, client):
        text = tool(bench, "top", "-n", 2, "-d", 0.3, "--port", server.proc.port()).stdout
    tables = text.split("mpklink top - ")[1:]
    assert len(tables) == 2 and "\x1b" not in text
    for table in tables:
        assert re.match(r"\d\d:\d\d:\d\d  2 streams \(2 (guarded|shared)\) of \d+ process", table)
        row = next(line.split() for line in table.splitlines() if line.startswith(f"python3[{client.pid}]") and "127.0.0.1" in line)
        assert row[4] != "0" and row[5] != "0" and row[6] != "0", table
    server.end(), client.end()
    bench.assert_ring(exact=True)


def test_top_json(bench):
    """A line for each look; the busiest first; the rates are those of the counters."""
    server, client = connected(bench)
    idle_server, idle_client = connected(bench, server_side=SERVER, client_side=CLIENT)
    with busy(server, client):
        lines = [json.loads(line) for line in tool(bench, "top", "--json", "-n", 3, "-d", 0.3).stdout.splitlines()]
    assert len(lines) == 3
    for before, now in zip(lines, lines[1:]):
        assert now["interval_s"] >= 0.3 and now["time_s"] > before["time_s"]
        rates = [s["tx_bytes_per_s"] + s["rx_bytes_per_s"] for s in now["streams"]]
        assert rates == sorted(rates, reverse=True) and now["streams"][0]["pid"] in (server.pid, client.pid)
        row, row_before = (next(s for s in line["streams"] if s["pid"] == client.pid) for line in (now, before))
        moved = row["tx_bytes"] - row_before["tx_bytes"]
        assert moved > 0 and abs(row["tx_bytes_per_s"] * now["interval_s"] - moved) < 1
        process = next(p for p in now["processes"] if p["pid"] == client.pid)
        assert process["ring_bytes_per_s"] > 0 and process["calls_per_s"] > 0 and {"bells_per_s", "sleeps_per_s", "spin_hits_per_s"} <= process.keys()
        assert next(s for s in now["streams"] if s["pid"] == idle_client.pid)["tx_bytes_per_s"] == 0
    for puppet in (server, client, idle_server, idle_client):
        puppet.end()
    bench.assert_ring(streams=2)


class Terminal:
    """A tmux of its own, with a shell in it."""

    def __init__(self, bench):
        self.bench, self.socket = bench, str(own_dir(bench) / "tmux")
        self("-f", "/dev/null", "new-session", "-d", "-x", "150", "-y", "30", "env", "-i", f"PATH={os.environ['PATH']}", "PS1=READY> ", "TERM=screen",
             "MPKLINK_TEST_RUN=" + bench.env_for(None)["MPKLINK_TEST_RUN"], "bash", "--norc", "--noprofile")  # fmt: skip
        self.wait("READY>")

    def __call__(self, *args) -> str:
        return subprocess.run(["tmux", "-S", self.socket, *map(str, args)], check=True, capture_output=True, text=True, timeout=30,
                              env=self.bench.env_for(None), **as_user(None)).stdout  # fmt: skip

    def type(self, text: str) -> None:
        self("send-keys", "-l", text)
        self("send-keys", "Enter")

    def screen(self) -> str:
        return self("capture-pane", "-p")

    def wait(self, pattern: str) -> str:
        def seen():
            text = self.screen()
            return text if re.search(pattern, text, re.M) else None

        return eventually(seen, timeout_s=30, what=f"{pattern!r} on the screen")

    def format(self, name: str) -> str:
        return self("display-message", "-p", "#{" + name + "}").strip()

    def pid_of_top(self) -> int:
        shell = int(self.format("pane_pid"))

        def child():
            pids = [int(p) for p in open(f"/proc/{shell}/task/{shell}/children").read().split()]
            return pids[0] if pids else None

        return eventually(child)

    def close(self) -> None:
        self("kill-server")


@pytest.fixture
def terminal(bench):
    t = Terminal(bench)
    yield t
    with contextlib.suppress(subprocess.CalledProcessError):
        t.close()
    eventually(lambda: not [p for p in os.listdir("/proc") if p.isdigit() and is_tmux_of(int(p), t.socket)], what="the end of tmux")


def is_tmux_of(pid: int, socket_path: str) -> bool:
    with contextlib.suppress(OSError):
        return socket_path.encode() in open(f"/proc/{pid}/cmdline", "rb").read()
    return False


def assert_given_back(terminal) -> None:
    """The first screen, with a cursor, and an echo of what is typed."""
    terminal.wait(r"READY> $|READY>\s*$")
    assert (terminal.format("alternate_on"), terminal.format("cursor_flag")) == ("0", "1")
    terminal.type("stty -a | tr ';' '\\n' | grep -o '[-]*icanon\\|[-]*echo\\b' | tr '\\n' ' '; echo ECHO-WORKS")
    text = terminal.wait(r"^.*icanon echo .*ECHO-WORKS|^icanon echo")
    assert "-icanon" not in text.split("ECHO-WORKS")[1] and "'; echo ECHO-WORKS" in text, text


@needs_tmux
@pytest.mark.parametrize("end", ["q", "Ctrl-C", "SIGTERM", "SIGHUP", "iterations"])
def test_top_on_terminal(bench, terminal, end):
    server, client = connected(bench)
    options = " -n 3" if end == "iterations" else ""
    with busy(server, client):
        terminal.type(f"{TOOL} top -d 0.3 --port {server.proc.port()}{options}")
        if end != "iterations":
            text = terminal.wait(r"^mpklink top - \d\d:\d\d:\d\d  q quits  2 streams")
            assert terminal.format("alternate_on") == "1" and terminal.format("cursor_flag") == "0"
            text = terminal.wait(rf"^python3\[{client.pid}\]\s+127\.0\.0\.1:\d+\s+127\.0\.0\.1:\d+\s+\w+\s+[1-9]")
            assert "SPIN HITS/s" in text and "IN RING" in text
        if end == "q":
            terminal("send-keys", "q")
        elif end == "Ctrl-C":
            terminal("send-keys", "C-c")
        elif end.startswith("SIG"):
            os.kill(terminal.pid_of_top(), getattr(signal, end))
        eventually(lambda: terminal.format("alternate_on") == "0", timeout_s=30)
        assert_given_back(terminal)
    server.end(), client.end()
    bench.assert_ring(exact=True)


@needs_tmux
def test_top_stops_and_resizes(bench, terminal):
    """Ctrl-Z gives the terminal back; fg takes it again. A smaller window has the most important lines only."""
    server, client = connected(bench)
    terminal.type(f"{TOOL} top -d 0.3")
    terminal.wait("^mpklink top")
    terminal("send-keys", "C-z")
    terminal.wait("Stopped")
    assert_given_back(terminal)
    terminal.type("fg")
    terminal.wait("^mpklink top")
    terminal("resize-window", "-x", "50", "-y", "9")
    eventually(lambda: len(terminal.screen().splitlines()) == 9 and terminal.screen().startswith("mpklink top"), timeout_s=30)
    assert all(len(line) <= 50 for line in terminal.screen().splitlines())
    terminal("send-keys", "q")
    eventually(lambda: terminal.format("alternate_on") == "0", timeout_s=30)
    server.end(), client.end()
    bench.assert_ring()


@pytest.mark.parametrize("args", [["-d", "0"], ["-n", "0"], ["-d", "x"], ["--frequency", "2"]])
def test_top_wrong_use(bench, args):
    refused(bench, "top", *args, code=2)


def test_top_reader_gone(bench):
    """`mpklink top | head -1`"""
    top = subprocess.Popen([TOOL, "top", "-d", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=bench.env_for(None), **as_user(None))
    top.stdout.readline()
    top.stdout.close()
    assert top.wait(30) == 3 and "reader ended" in top.stderr.read()
    top.stderr.close()


# ---- metrics -------------------------------------------------------------------------------------------------------------


def test_metrics(bench):
    server, client = connected(bench, rounds=100)
    samples = metrics_samples(tool(bench, "metrics").stdout)
    of = {"pid": server.pid, "program": "python3"}
    assert values_of(samples, "mpklink_streams", **of, reason="") == [1]
    assert values_of(samples, "mpklink_upgrades_total", **of) == [1] and values_of(samples, "mpklink_gate_found_open_total", **of) == [0]
    ring = values_of(samples, "mpklink_bytes_total", **of, path="ring", direction="rx")
    server.end(), client.end()
    assert ring == [bench.stats(SERVER).ring_rx]
    bench.assert_ring(exact=True)


def test_metrics_count_fallbacks(bench):
    bench.settings = {"PORTS": "!1-65535"}
    server, client = connected(bench)
    samples = metrics_samples(tool(bench, "metrics").stdout)
    assert values_of(samples, "mpklink_fallbacks_total", pid=client.pid, reason="ports") == [1]
    assert values_of(samples, "mpklink_streams", pid=client.pid, mode="tcp", reason="ports") == [1]
    server.end(), client.end()
    bench.assert_fell_back()


def test_counters_never_fall(bench):
    """Streams come and go, and their bytes move from their rows to the process's counters."""
    puppet = Puppet(bench, SERVER)
    puppet.do("l = listener(); serve_echo(l); stop = False")
    puppet.do("""
def churn():
    while not stop:
        with socket.create_connection(l.getsockname()) as x: ask(x, 10)
worker = threading.Thread(target=churn); worker.start()""")
    last = 0
    for _ in range(20):
        now = sum(values_of(metrics_samples(tool(bench, "metrics").stdout), "mpklink_bytes_total", pid=puppet.pid))
        assert now >= last
        last = now
    puppet.do("stop = True; worker.join()")
    puppet.end()
    bench.assert_ring(sides=[SERVER])


def serve(bench, *args):
    proc = start_tool(bench, "metrics", "--listen", *args)
    address = eventually(lambda: re.search(r"http://(\[.*\]|[\d.]+):(\d+)/metrics", proc.stderr()), what="the server")
    return proc, (address.group(1).strip("[]"), int(address.group(2)))


def ask_http(address, request: bytes) -> tuple:
    """→ status, headers, body"""
    with socket.create_connection(address, timeout=30) as s:
        s.sendall(request)
        answer = b""
        while piece := s.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return lines[0], headers, body


@pytest.mark.parametrize("listen", ["0", "127.0.0.1:0", "[::1]:0"])
def test_metrics_over_http(bench, listen):
    server, client = connected(bench)
    proc, address = serve(bench, listen)
    status, headers, body = ask_http(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "HTTP/1.1 200 OK" and headers["content-type"].startswith("text/plain; version=0.0.4") and int(headers["content-length"]) == len(body)
    assert values_of(metrics_samples(body.decode()), "mpklink_streams", pid=server.pid) == [1]
    talk(server, client, 5)
    head = ask_http(address, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert head[0] == "HTTP/1.1 200 OK" and not head[2]
    for request, code in ((b"GET / HTTP/1.1\r\n\r\n", 200), (b"GET /x HTTP/1.1\r\n\r\n", 404), (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
                          (b"\x16\x03\x01\r\n\r\n", 400), (b"GET /metrics\r\n\r\n", 400), (b"GET /" + b"a" * 10000 + b" HTTP/1.1\r\n\r\n", 431)):  # fmt: skip
        with contextlib.suppress(ConnectionResetError):  # when more was sent than it reads
            assert ask_http(address, request)[0].split()[1] == str(code), request
    proc.stop(signal.SIGTERM, code=0)
    server.end(), client.end()
    bench.assert_ring(exact=True)


def test_metrics_server_and_slow_clients(bench):
    """Clients that say nothing hold nobody up, and are sent away."""
    proc, address = serve(bench, "0")
    silent = [socket.create_connection(address) for _ in range(20)]
    for s in silent:
        s.sendall(b"GET /metr")
    assert ask_http(address, b"GET /metrics HTTP/1.1\r\n\r\n")[0].endswith("200 OK")
    silent[0].settimeout(30)
    assert silent[0].recv(1) == b"", "a client that says nothing is to be sent away"
    for s in silent:
        s.close()
    assert ask_http(address, b"GET /metrics HTTP/1.1\r\n\r\n")[0].endswith("200 OK")
    proc.stop(signal.SIGINT, code=0)


def test_metrics_cannot_listen(bench):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(bench, "metrics", "--listen", taken.getsockname()[1], words=["Address already in use", "another port"])
    refused(bench, "metrics", "--listen", "192.0.2.1:9465", words=["no address of this machine"])
    for wrong in ("x", "1.2.3:80", "70000", "::1:x"):
        refused(bench, "metrics", f"--listen={wrong}", code=2)


def test_metrics_textfile(bench):
    server, client = connected(bench)
    path = own_dir(bench) / "mpklink.prom"
    for _ in range(2):
        tool(bench, "metrics", "--textfile", path)
    assert values_of(metrics_samples(path.read_text()), "mpklink_streams", pid=client.pid) == [1]
    assert path.stat().st_mode & 0o777 == 0o644 and [p.name for p in path.parent.iterdir()] == ["mpklink.prom"]
    refused(bench, "metrics", "--textfile", bench.dir / "none" / "x.prom", words=["cannot be written", "No such file"])
    assert json.loads(tool(bench, "metrics", "--json").stdout)
    server.end(), client.end()
    bench.assert_ring(exact=True)


@needs_root
def test_metrics_textfile_not_allowed(bench):
    refused(bench, "metrics", "--textfile", bench.dir / "x.prom", words=["Permission denied", "folder"])
    assert not list(bench.dir.glob("*.prom*"))


# ---- off and on ----------------------------------------------------------------------------------------------------------


def modes(bench, *puppets):
    return sorted(s["mode"] for s in streams_of(bench, *puppets))


@pytest.mark.parametrize("by", ["port", "pid", "all"])
def test_off_and_on(bench, by):
    """Live streams go back to TCP without losing a byte (every answer is compared), new ones stay there, until it is on again."""
    server, client = connected(bench, rounds=50)
    port = server.proc.port()
    named = {"port": ["--port", port], "pid": ["--pid", server.pid, "--pid", client.pid], "all": ["--all"]}[by]
    with busy(server, client):
        done = tool(bench, "off", *named, "--timeout", 30)
        assert re.match(r"off in \d+ process(es)?: \d+ streams? (is|are) on TCP\n", done.stdout), done.stdout
        assert modes(bench, server, client) == ["tcp", "tcp"] and {s["reason"] for s in streams_of(bench, server, client)} == {"switched-off"}
    second = f"c = socket.create_connection(('127.0.0.1', {port}))"
    client.do(second), server.do("s, _ = l.accept()")
    talk(server, client, 50)
    assert modes(bench, server, client)[:2] == ["tcp", "tcp"] and look(bench, "--pid", client.pid)["processes"][0]["upgraded"] == 1
    assert "are upgraded again" in tool(bench, "on", *named).stdout
    assert server.page().wanted() == client.page().wanted() == 0
    client.do("c.close(); " + second), server.do("s.close(); s, _ = l.accept()")
    talk(server, client, 50)
    assert look(bench, "--pid", client.pid)["processes"][0]["upgraded"] == 2
    server.end(), client.end()
    bench.assert_ring(streams=2)
    bench.assert_revoked()


def test_off_says_who_sleeps(bench):
    server, client = connected(bench)
    waiting = server.begin("s.sendall(receive_all(s, 100))")
    done = tool(bench, "off", "--pid", server.pid, "--timeout", 0.2, code=1)
    assert re.search(rf"; 1 is still in shared memory, as python3\[{server.pid}\] is asleep: they leave at their next operation", done.stdout)
    assert json.loads(tool(bench, "off", "--pid", server.pid, "--timeout", 0, "--json", code=1).stdout) == {
        "processes": 1, "streams_on_tcp": 0, "streams_shared": 1,
    }  # fmt: skip
    client.do("ask(c, 1)"), server.wait(waiting)
    talk(server, client, 10)
    assert json.loads(tool(bench, "off", "--pid", server.pid, "--json").stdout)["streams_shared"] == 0
    server.end(), client.end()
    bench.assert_revoked()


def test_off_ports_add_up(bench):
    server, client = connected(bench)
    page = server.page()
    port = server.proc.port()
    tool(bench, "off", "--port", 1, "--port", 65535, "--pid", server.pid)
    tool(bench, "off", "--port", 80, "--pid", server.pid)
    talk(server, client, 20)
    assert page.wanted() == OFF | OFF_PORTS and modes(bench, server) != ["tcp"]
    tool(bench, "on", "--port", 1, "--port", 80, "--pid", server.pid)
    assert page.wanted() == OFF | OFF_PORTS
    tool(bench, "on", "--port", 65535, "--pid", server.pid)
    assert page.wanted() == 0
    # All, and of all one port: that cannot be said.
    tool(bench, "off", "--pid", server.pid, "--timeout", 0, code=1)
    assert page.wanted() == OFF
    tool(bench, "off", "--port", port, "--pid", server.pid, "--timeout", 0, code=1)
    assert page.wanted() == OFF, "one port is off, and all others have come on"
    refused(bench, "on", "--port", port, "--pid", server.pid, words=["all streams", f"mpklink on --pid {server.pid}"])
    tool(bench, "on", "--pid", server.pid)
    talk(server, client, 5)
    server.end(), client.end()
    bench.assert_ring(exact=True)


def test_off_nginx(bench, docroot):
    nginx = Nginx(bench, docroot.dir, workers=2)
    wrk = bench.start(["wrk", "-t1", "-c8", "-d4", nginx.url("hello")], CLIENT)
    # By pid, as root: nobody else's processes are to be touched.
    pids = [str(pid) for pid in [*nginx.worker_pids(), wrk.pid]]

    def streams():
        return [s for s in look(bench, "--port", nginx.port, uid=os.geteuid())["streams"] if str(s["pid"]) in pids]

    eventually(lambda: len([s for s in streams() if s["mode"] != "tcp"]) >= 4)
    pids = sorted({str(s["pid"]) for s in streams()})  # who has a page
    tool(bench, "off", "--port", nginx.port, "--pid", ",".join(pids), "--timeout", 30, uid=os.geteuid())
    assert {s["mode"] for s in streams()} == {"tcp"}
    text = wrk.finish()
    assert "Socket errors" not in text and "Non-2xx" not in text, text
    nginx.stop()
    bench.assert_ring(streams=4)
    bench.assert_revoked()


@needs_root
def test_off_is_for_ones_own(bench):
    server, client = connected(bench)
    refused(bench, "off", "--pid", server.pid, uid=NOBODY, words=["belongs to user %d" % OWN_UID])
    refused(bench, "off", "--all", uid=NOBODY, words=["no running process of yours", "MPKLINK_PORTS"])
    assert server.page().wanted() == 0
    server.end(), client.end()
    bench.assert_ring(exact=True)


@pytest.mark.parametrize("command", ["off", "on"])
@pytest.mark.parametrize("args, words", [([], ["--port N, --pid N or --all"]), (["--all", "--pid", "1"], ["--all goes with neither"]), (["--port", "x"], []),
                                         (["8080"], ["8080"])])  # fmt: skip
def test_switch_wrong_use(bench, command, args, words):
    refused(bench, command, *args, code=2, words=words)


def test_switch_of_vanished(bench):
    child = subprocess.Popen(["true"])
    child.wait()
    refused(bench, "off", "--pid", child.pid, words=["there is no process"])


def test_another_command_holds_the_page(bench):
    import fcntl

    from status_page import status_fds

    server, client = connected(bench)
    with open(f"/proc/{server.pid}/fd/{status_fds(server.pid)[0]}", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        begin = time.monotonic()
        refused(bench, "off", "--pid", server.pid, words=["busy", "try again"])
        assert time.monotonic() - begin < 50
    talk(server, client, 5)
    server.end(), client.end()
    bench.assert_ring(exact=True)
