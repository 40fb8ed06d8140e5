# SPDX-License-Identifier: MIT
"""py_prefork.py N: an echo server of N forked children that accept from one listener. SIGTERM ends them all."""

import os
import signal
import socket
import sys
import threading


def echo(sock):
    with sock:
        while data := sock.recv(50_000):
            sock.sendall(data)


def child(listener):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=echo, args=(sock,), daemon=True).start()


def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    pids = []
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if pid == 0:
            child(listener)
        pids.append(pid)

    def stop(*_):
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    print(f"PORT {listener.getsockname()[1]}", flush=True)
    while True:
        signal.pause()


main()
