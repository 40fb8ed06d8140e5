# SPDX-License-Identifier: MIT
"""An exact HTTP/1.1 keep-alive load generator: several connections, one thread each, every response checked.

A server may close a kept-alive connection between two requests, and a client finds that out only by trying (RFC 9112, 9.3.1): a
request on a *reused* connection that ends without a single response byte is repeated on a new connection and counted as `retried`.
Everything else that goes wrong is a failure: a refused or reset new connection, a partial response, a wrong status, length or body.
Prints "requests N retried N failed N"; exit code 1 when anything failed.
"""

import argparse
import hashlib
import re
import socket
import sys
import threading
import time


class Tally:
    def __init__(self):
        self.lock = threading.Lock()
        self.requests = self.retried = self.failed = 0
        self.messages = []

    def count(self, name, message=None):
        with self.lock:
            setattr(self, name, getattr(self, name) + 1)
            if message:
                self.messages.append(message)


class ClosedEarly(Exception):
    """The connection ended before the first byte of a response."""


class Connection:
    def __init__(self, args):
        self.sock = socket.create_connection((args.host, args.port), timeout=20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""
        self.used = False

    def exchange(self, request):
        """(status, body, server closes) of one request."""
        try:
            self.sock.sendall(request)
            first = self.rest or self.sock.recv(65536)
        except (ConnectionResetError, BrokenPipeError) as error:
            raise ClosedEarly(repr(error)) from None
        if not first:
            raise ClosedEarly("end of file")
        data = first
        while b"\r\n\r\n" not in data:
            data += self.more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?im)^content-length:\s*(\d+)\s*$", head).group(1))
        parts, missing = [body], length - len(body)
        while missing > 0:
            parts.append(self.more())
            missing -= len(parts[-1])
        body = b"".join(parts)
        self.rest = body[length:]
        self.used = True
        return int(head.split()[1]), body[:length], re.search(rb"(?im)^connection:\s*close\s*$", head) is not None

    def more(self):
        data = self.sock.recv(262144)
        if not data:
            raise EOFError("end of file inside a response")
        return data


def worker(args, tally, go_on):
    connection, done = None, 0
    body = args.send.encode()
    request = f"{args.method} {args.path} HTTP/1.1\r\nHost: {args.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    while go_on(done):
        try:
            if connection is None:
                connection = Connection(args)
            status, got, closes = connection.exchange(request)
        except ClosedEarly as error:
            if connection.used:
                tally.count("retried")
            else:
                tally.count("failed", f"first request on a connection: {error}")
                done += 1
            connection = None
            continue
        except (OSError, EOFError, ValueError) as error:
            tally.count("failed", f"{'connect' if connection is None else 'response'}: {error!r}")
            connection = None
            done += 1
            continue
        done += 1
        tally.count("requests")
        if status != args.status:
            tally.count("failed", f"status {status}")
        elif args.body is not None and got != args.body.encode():
            tally.count("failed", f"body {got[:100]!r}")
        elif args.sha256 and hashlib.sha256(got).hexdigest() != args.sha256:
            tally.count("failed", f"checksum of {len(got)} bytes")
        elif connection.rest:
            tally.count("failed", "bytes after the response")
        if closes:
            connection = None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--method", default="GET")
    parser.add_argument("--send", default="")
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--body")
    parser.add_argument("--sha256")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--requests", type=int, default=100, help="per connection")
    parser.add_argument("--seconds", type=float, help="instead of --requests")
    parser.add_argument("--until-eof", action="store_true", help="instead of --requests: until standard input ends")
    args = parser.parse_args()
    tally = Tally()
    end = threading.Event()
    if args.until_eof:
        threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
        go_on = lambda done: not end.is_set()
    elif args.seconds:
        deadline = time.monotonic() + args.seconds
        go_on = lambda done: time.monotonic() < deadline
    else:
        go_on = lambda done: done < args.requests
    threads = [threading.Thread(target=worker, args=(args, tally, go_on)) for _ in range(args.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"requests {tally.requests} retried {tally.retried} failed {tally.failed}")
    for message in tally.messages[:10]:
        print(message)
    sys.exit(1 if tally.failed or tally.requests == 0 else 0)


main()
