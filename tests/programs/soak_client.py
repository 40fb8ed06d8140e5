# SPDX-License-Identifier: MIT
"""soak_client.py TABLE KIND SEED CONNECTIONS SECONDS NAME=PORT…: connections to the servers named, every byte checked; a line of JSON for each.

KIND is stream (soak_server.py, soak_peer.js), http (nginx) or redis. SECONDS 0: until SIGTERM, with SIGUSR2 to end all connections and rest,
and SIGHUP to go on.
"""

import errno
import os
import random
import re
import signal
import socket
import sys
import threading
import time

from soak_lib import HEADER, PERIOD, Helper, Plain, Stream, Table, Watch, Wrong, end_of, hand_over, receive_all, say, send_all

OPS = os.environ["SOAK_OPS"].split(",") if "SOAK_OPS" in os.environ else ["fdopen", "dup", "pass", "fork", "abort", *[None] * 5]


class NotServed(Exception):
    """An answer that says the server had no means to serve."""


class Retired(Exception):
    """A kept connection that the server ended between two requests."""


class Client:
    def __init__(self, table, kind, seed, targets, seconds):
        self.table, self.seed, self.targets = table, seed, targets
        self.work = {"stream": self.stream, "http": self.http, "redis": self.redis}[kind]
        self.lock = threading.Lock()
        self.count = 0
        self.deadline = time.monotonic() + seconds if seconds else None
        self.rest = threading.Event()
        self.helper = Helper(self._helped) if kind == "stream" else None
        self.watch = Watch()

    def _helped(self, sock, state):
        if not hasattr(self, "watch"):  # in the helper, which was forked before there was one
            self.watch = Watch()
        link = Plain(sock, random.Random(state["number"]), self.watch)
        self._end_of_stream(link, Stream.from_state(self.table, state), state)

    def next_number(self):
        with self.lock:
            self.count += 1
            return (os.getpid() << 16 | self.count & 0xFFFF) & 0xFFFFFFFF

    def over(self):
        return self.rest.is_set() or self.deadline is not None and time.monotonic() > self.deadline

    def thread(self, n):
        rng = random.Random(self.seed * 1009 + n)
        while not self.over():
            name, port = rng.choice(self.targets)
            report = {"number": self.next_number(), "target": name, "t0": time.monotonic(), "bytes": 0, "first": False, "end": None, "op": None}
            try:
                self.watch.enter(f"connect to {name}")
                try:
                    sock = socket.socket()
                    sock.connect(("127.0.0.1", port))
                finally:
                    self.watch.leave()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                report["port"] = sock.getsockname()[1]
            except OSError as error:
                if error.errno != errno.EMFILE:
                    report.update(end=f"connect {end_of(error)}", t1=time.monotonic())
                    say(**report)
                time.sleep(0.1)
                continue
            if self.work(sock, rng, report) == "handed over":
                continue
            report["t1"] = time.monotonic()
            say(**report)
            if report["end"] != "ok":
                time.sleep(0.1)

    # -- streams

    def stream(self, sock, rng, report):
        link = Plain(sock, rng, self.watch)
        op, rounds, word = rng.choice(OPS), rng.choice([1, 10, 40, 100, 200]), rng.randrange(1 << 31)
        stream = Stream(self.table, report["number"], rounds, word, client=True)
        report["op"] = op
        try:
            send_all(link, HEADER.pack(b"SOAK", report["number"], rounds, word))
            stream.run(link, rng.randrange(1, 200_000))
            if op == "abort":
                report.update(end="ok", bytes=stream.up + stream.down)
                link.close()
                return None
            say_state = stream.state
            stream.state = lambda: {**say_state(), "report": report}
            try:
                link = hand_over(op, link, stream, rng, self.helper, lambda link, stream: self._end_of_stream(link, stream, stream.state()))
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
            if link is None:
                return "handed over"
        except (Wrong, OSError, EOFError) as error:
            self._failed(link, stream, report, error)
            return None
        self._end_of_stream(link, stream, {"report": report})
        return "handed over"  # it has reported

    def _failed(self, link, stream, report, error):
        report.update(end=f"wrong {error}" if isinstance(error, Wrong) else end_of(error), bytes=stream.up + stream.down, first=stream.down > 0)
        link.close()

    def _end_of_stream(self, link, stream, state):
        report = state["report"]
        try:
            stream.run(link)
            stream.finish(link)
            report.update(end="ok", bytes=stream.up + stream.down)
            link.close()
        except (Wrong, OSError, EOFError) as error:
            self._failed(link, stream, report, error)
        report["t1"] = time.monotonic()
        say(**report)

    # -- nginx

    def http(self, sock, rng, report):
        link = Plain(sock, rng, self.watch)
        path = f"/dav/{report['number']}"
        try:
            for i in range(rng.choice([1, 20, 100, 300])):
                if self.over():
                    break
                kind = rng.random()
                if kind < 0.9:
                    first = rng.randrange(PERIOD)
                    size = min(PERIOD - first, rng.choice([1, 100, 5000, 60_000, 400_000 if i % 10 == 0 else 1000]))
                    headers = f"Range: bytes={first}-{first + size - 1}\r\n"
                    self._request(link, report, "GET", "/table", headers, b"", 206, self.table.bytes[first : first + size])
                else:
                    body = self.table.slice(report["number"], 0, i, rng.choice([1, 3000, 100_000]))
                    self._request(link, report, "PUT", path, "", body, (201, 204), b"")
                    self._request(link, report, "GET", path, "", b"", 200, body)
                    self._request(link, report, "DELETE", path, "", b"", 204, b"")
            report["end"] = "ok"
        except Retired as error:
            report["end"] = f"retired {error}"
        except NotServed as error:
            report["end"] = f"not served {error}"
        except (Wrong, OSError, EOFError) as error:
            report["end"] = f"wrong {error}" if isinstance(error, Wrong) else end_of(error)
        link.close()

    def _request(self, link, report, method, path, headers, body, wanted, expected):
        request = f"{method} {path} HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
        try:
            send_all(link, request + body)
            data = link.receive(65536)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "end of file")
        except (ConnectionResetError, BrokenPipeError) as error:
            if report["bytes"]:
                raise Retired(end_of(error)) from None
            raise
        report["first"] = True
        while b"\r\n\r\n" not in data:
            part = link.receive(65536)
            if not part:
                raise EOFError
            data += part
        head, _, got = data.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        length = re.search(rb"(?im)^content-length:\s*(\d+)\s*$", head)
        length = int(length.group(1)) if length else 0
        if len(got) < length:
            got += receive_all(link, length - len(got))
        if status in (500, 503):
            raise NotServed(status)
        if status not in (wanted if isinstance(wanted, tuple) else (wanted,)) or (len(got) != length):
            raise Wrong(f"{method} {path} {headers.strip()}: status {status}, {len(got)} of {length} bytes")
        if method == "GET" and got != expected:
            raise Wrong(f"{method} {path} {headers.strip()}: {len(got)} bytes, {len(expected)} expected")
        report["bytes"] += len(got) + len(body)
        if re.search(rb"(?im)^connection:\s*close\s*$", head):
            raise Retired("as told")

    # -- redis

    def redis(self, sock, rng, report):
        link = Plain(sock, rng, self.watch)
        number = report["number"]
        try:
            for i in range(rng.choice([1, 20, 100, 300])):
                if self.over():
                    break
                count = rng.choice([1, 1, 8])
                values = [self.table.slice(number, k, i, rng.choice([1, 100, 5000, 30_000, 300_000 if i % 10 == 0 else 10])) for k in range(count)]
                keys = [b"soak:%d:%d" % (number, k) for k in range(count)]
                self._commands(link, [(b"SET", k, v, b"EX", b"60") for k, v in zip(keys, values)], [b"+OK\r\n"] * count)
                self._commands(link, [(b"GET", k) for k in keys], [b"$%d\r\n%s\r\n" % (len(v), v) for v in values])
                self._commands(link, [(b"DEL", *keys)], [b":%d\r\n" % count])
                report["bytes"] += 2 * sum(map(len, values))
                report["first"] = True
            report["end"] = "ok"
        except (Wrong, OSError, EOFError) as error:
            report["end"] = f"wrong {error}" if isinstance(error, Wrong) else end_of(error)
        link.close()

    @staticmethod
    def _commands(link, commands, answers):
        out = [b"*%d\r\n" % len(c) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in c) for c in commands]
        send_all(link, b"".join(out))
        expected = b"".join(answers)
        got = receive_all(link, len(expected))
        if got != expected:
            raise Wrong(f"redis: {len(got)} bytes are not those expected; they begin {got[:60]!r}")


def main():
    table, kind, seed, connections, seconds = Table(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    targets = [(name, int(port)) for name, port in (t.split("=") for t in sys.argv[6:])]
    signals = [signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP]
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    client = Client(table, kind, seed, targets, seconds)
    threads = []

    def begin():
        client.rest.clear()
        threads[:] = [threading.Thread(target=client.thread, args=(n,)) for n in range(connections)]
        for thread in threads:
            thread.start()

    begin()
    while seconds == 0:
        got = signal.sigwait(signals)
        if got == signal.SIGHUP:
            begin()
            continue
        client.rest.set()
        for thread in threads:
            thread.join()
        say(resting=True)
        if got == signal.SIGTERM:
            break
    for thread in threads:
        thread.join()
    if client.helper:
        client.helper.ours.close()
        os.waitpid(client.helper.pid, 0)


main()
