# SPDX-License-Identifier: MIT
"""owners.py server|client TAG [OPTIONS]: questions and answers over one connection that carry a TAG, so that bytes of another connection
are seen, by a process that changes who it is, or where, after its socket was made.

--port=N --source-port=N --host=ADDRESS
--uid-after=N       setuid(N) once connected or accepted, before the first byte
--netns-after=FILE  setns(FILE) then
--change-at=N       … before question or answer N instead
--pass-to=N         passes the connection to a child with uid N (fork, setuid), which asks or answers; the parent closes its own
--rounds=N          questions (client); --pause-at=N: prints PAUSED before question N and goes on when its standard input has a line

After the client's end of file the server says FAREWELLS messages more, and closes when they are read.
"""

import argparse
import ctypes
import fcntl
import os
import socket
import sys
import termios
import time

SIZE = 64
FAREWELLS = 40


def message(tag, kind, i):
    return f"{tag} {kind} {i}".ljust(SIZE, ".").encode()


def receive(connection):
    """One message, or what there is before the end."""
    got = b""
    while len(got) < SIZE:
        part = connection.recv(SIZE - len(got))
        if not part:
            break
        got += part
    return got


def answer(connection, options):
    i = 0
    while True:
        got = receive(connection)
        if not got:
            break
        assert got == message(options.tag, "asks", i), (got, i)
        change(options, i)
        connection.sendall(message(options.tag, "answers", i))
        i += 1
    for i in range(FAREWELLS):
        connection.sendall(message(options.tag, "leaves", i))
    while int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, b"1234"), sys.byteorder) > 0:
        time.sleep(0.001)


def ask(connection, options):
    for i in range(options.rounds):
        if i == options.pause_at:
            print("PAUSED", flush=True)
            sys.stdin.readline()
        change(options, i)
        connection.sendall(message(options.tag, "asks", i))
        got = receive(connection)
        assert got == message(options.tag, "answers", i), (got, i)
    connection.shutdown(socket.SHUT_WR)
    for i in range(FAREWELLS):
        got = receive(connection)
        assert got == message(options.tag, "leaves", i), (got, i)
    assert connection.recv(1) == b""


def change(options, i):
    if i != options.change_at:
        return
    if options.netns_after:
        with open(options.netns_after) as file:
            CLONE_NEWNET = 0x40000000
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    if options.uid_after is not None:
        os.setuid(options.uid_after)


def serve_or_ask(connection, options):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    (answer if options.role == "server" else ask)(connection, options)
    connection.close()


def hand_over(connection, options):
    """SCM_RIGHTS to a child that is another user."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        connection.close()
        here.close()
        os.setuid(options.pass_to)
        _, [fd], _, _ = socket.recv_fds(there, 1, 1)
        serve_or_ask(socket.socket(fileno=fd), options)
        sys.exit(0)
    there.close()
    socket.send_fds(here, [b"x"], [connection.fileno()])
    connection.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("tag")
    parser.add_argument("--host", default="127.0.0.1")
    for name in ("port", "source-port"):
        parser.add_argument(f"--{name}", type=int, default=0)
    for name in ("uid-after", "pass-to", "pause-at", "change-at"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--netns-after")
    options = parser.parse_args()
    if options.role == "server":
        listener = socket.create_server((options.host, options.port))
        print("PORT", listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        listener.close()
    else:
        source = (options.host, options.source_port) if options.source_port else None
        connection = socket.create_connection((options.host, options.port), source_address=source)
    if options.change_at is None:
        change(options, None)
    if options.pass_to is not None:
        hand_over(connection, options)
    else:
        serve_or_ask(connection, options)
    print("EXIT-SUCCESS", flush=True)


main()
