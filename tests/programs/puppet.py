# SPDX-License-Identifier: MIT
"""Does what it is told: each line of its standard input is a JSON string with statements of Python, answered by "DONE <line number>" on
standard output, or by "FAILED <line number>" and a traceback. What the statements define stays. Ends with its input."""

import ctypes  # noqa: F401
import json
import os  # noqa: F401
import select  # noqa: F401
import socket
import sys
import threading
import time  # noqa: F401
import traceback

libc = ctypes.CDLL(None, use_errno=True)


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def listener(host="127.0.0.1"):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.bind((host, 0))
    s.listen(4096)
    say(f"PORT {s.getsockname()[1]}")
    return s


def receive_all(s, n):
    got = bytearray()
    while len(got) < n:
        piece = s.recv(n - len(got))
        assert piece, f"the end after {len(got)} of {n} bytes"
        got += piece
    return bytes(got)


def serve_echo(s):
    """Every connection of a listener gets its bytes back, each from a thread of its own."""

    def echo(c):
        with c:
            while data := c.recv(65536):
                c.sendall(data)

    def accept():
        while True:
            try:
                c, _ = s.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(c,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def ask(c, rounds, size=100):
    """Message and answer, checked."""
    for i in range(rounds):
        message = bytes([i % 251]) * size
        c.sendall(message)
        assert receive_all(c, size) == message


for number, line in enumerate(sys.stdin):
    try:
        exec(json.loads(line), globals())
        say(f"DONE {number}")
    except BaseException:
        say(traceback.format_exc())
        say(f"FAILED {number}")
