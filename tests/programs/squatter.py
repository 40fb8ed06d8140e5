# SPDX-License-Identifier: MIT
"""squatter.py MODE NAME: sits on (or talks to) the abstract Unix socket of somebody else's connection.

bind: bound, not listening. listen: never accepts. close: accepts and closes. garbage: accepts and sends nonsense. flood: sends as much as
it can. stream: of the wrong socket type. connect…: connects to the name instead, and is silent, sends nonsense, closes, floods, or comes again and again.
"""

import os
import socket
import sys
import time


def nonsense(connection, flood=False):
    connection.setblocking(False)
    for size in [0, 1, 7, 64, 200, 4096, 65536] * (200 if flood else 1):
        try:
            connection.send(os.urandom(size))
        except OSError:
            return


def visit_for_ever(address):
    """READY after the first visit."""
    visits = []
    while True:
        visitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            visitor.connect(address)
        except OSError:
            time.sleep(0.0001)
            continue
        if not visits:
            print("READY", flush=True)
        visits = [*visits[-20:], visitor]


def main():
    mode, name = sys.argv[1:3]
    address = "\0" + name
    if mode == "connect-again":
        visit_for_ever(address)
    if mode.startswith("connect"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(address)
        if mode == "connect-garbage":
            nonsense(connection)
        elif mode == "connect-flood":
            nonsense(connection, flood=True)
        elif mode == "connect-close":
            connection.close()
        print("READY", flush=True)
        time.sleep(60)
        return
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if mode == "stream" else socket.SOCK_SEQPACKET)
    listener.bind(address)
    if mode != "bind":
        listener.listen(16)
    print("READY", flush=True)
    held = []
    while True:
        if mode in ("bind", "listen", "stream"):
            time.sleep(60)
            continue
        connection, _ = listener.accept()
        if mode == "close":
            connection.close()
            continue
        nonsense(connection, flood=mode == "flood")
        held.append(connection)


main()
