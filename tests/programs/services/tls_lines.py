# SPDX-License-Identifier: MIT
"""tls_lines.py PORT CA LINES BYTES: random lines to `openssl s_server -rev` through Python's ssl; each comes back backwards."""

import os
import socket
import ssl
import sys


def main():
    port, ca, count, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    context = ssl.create_default_context(cafile=ca)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname="127.0.0.1") as stream:
        answers = stream.makefile("rb")
        for number in range(count):
            line = os.urandom(size // 2).hex().encode()
            stream.sendall(line + b"\n")
            assert answers.readline() == line[::-1] + b"\n", f"line {number} came back wrong"
    print("checked")


main()
