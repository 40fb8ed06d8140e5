# SPDX-License-Identifier: MIT
"""py_http.py server | client PORT CONNECTIONS REQUESTS: Python's http.server and http.client with checksummed bodies."""

import hashlib
import http.client
import http.server
import random
import signal
import socket
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Sum", hashlib.sha256(body).hexdigest())
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):  # /SIZE: so many bytes
        size = int(self.path[1:])
        self.answer(random.Random(size).randbytes(size))

    def do_POST(self):  # the body backwards
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(body).hexdigest() == self.headers["X-Sum"]
        self.answer(body[::-1])


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


def serve():
    server = Server(("127.0.0.1", 0), Handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"PORT {server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=60)


def fetch(number, port, requests, failures):
    try:
        rng = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(requests):
            size = rng.choice([0, 1, 100, 5000, 70_000]) if i % 20 or i < 20 else 3_000_000
            if i % 2:
                body = rng.randbytes(size)
                connection.request("POST", "/", body, {"X-Sum": hashlib.sha256(body).hexdigest()})
                want = body[::-1]
            else:
                connection.request("GET", f"/{size}")
                want = random.Random(size).randbytes(size)
            response = connection.getresponse()
            got = response.read()
            assert response.status == 200
            assert got == want and hashlib.sha256(got).hexdigest() == response.getheader("X-Sum"), f"request {i}"
            assert connection.sock is not None, "the connection was not kept"
        connection.close()
    except BaseException as error:
        failures.append(repr(error)[:300])


def main():
    if sys.argv[1] == "server":
        serve()
        return
    port, connections, requests = map(int, sys.argv[2:5])
    failures = []
    threads = [threading.Thread(target=fetch, args=(i, port, requests, failures)) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("\n".join(failures))
    print("checked")


main()
