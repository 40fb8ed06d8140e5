# SPDX-License-Identifier: MIT
"""http_hold.py PORT CONNECTIONS: keep-alive connections that are used for a while and then held until standard input ends."""

import http.client
import sys

port, count = map(int, sys.argv[1:3])
connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(count)]
for _ in range(60):
    for connection in connections:
        connection.request("GET", "/hello")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"hello\n")
print("HOLDING", flush=True)
sys.stdin.read()
for connection in connections:
    assert connection.sock is not None
    connection.close()
