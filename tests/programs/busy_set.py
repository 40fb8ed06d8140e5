# SPDX-License-Identifier: MIT
"""busy_set.py server | chat PORT | forked PORT | full PORT: a full ring in an epoll set in which another stream always has something.

The server answers lines: "ping" with "pong"; "give N" with N bytes; "both N" with N bytes, which it writes before it reads the N that the
client writes before it reads. forked: a child reads what its parent asked for. full: the client does "both", and chats in the same set.
"""

import os
import select
import socket
import sys
import time

WARM = 60
N = 700_000


def connect(port):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ping(sock):
    sock.sendall(b"ping\n")
    assert sock.recv(5, socket.MSG_WAITALL) == b"pong\n"


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


class Served:
    def __init__(self, sock):
        self.sock, self.out, self.skip, self.line = sock, b"", 0, b""

    def read(self):
        """False at the end."""
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:  # "full" does not wait for its last answer
            return False
        if not data:
            return False
        taken = min(self.skip, len(data))
        self.skip -= taken
        self.line += data[taken:]
        while b"\n" in self.line:
            word, _, self.line = self.line.partition(b"\n")
            command, *number = word.split()
            size = int(number[0]) if number else 0
            self.out += b"pong\n" if command == b"ping" else pattern(size)
            self.skip = size if command == b"both" else 0
        return True

    def interest(self):
        return select.EPOLLOUT if self.out else select.EPOLLIN


def serve():
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"PORT {listener.getsockname()[1]}", flush=True)
    epoll, served = select.epoll(), {}
    epoll.register(listener, select.EPOLLIN)
    epoll.register(0, select.EPOLLIN)
    while True:
        for fd, events in epoll.poll():
            if fd == 0:
                return
            if fd == listener.fileno():
                sock = listener.accept()[0]
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                served[sock.fileno()] = Served(sock)
                epoll.register(sock, select.EPOLLIN)
                continue
            one = served[fd]
            before = one.interest()
            if not one.out and events & (select.EPOLLIN | select.EPOLLHUP) and not one.read():
                del served[fd]
                one.sock.close()
                continue
            try:
                while one.out:
                    one.out = one.out[one.sock.send(one.out) :]
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                one.out = b""
            if one.interest() != before:
                epoll.modify(fd, one.interest())


def chat(port):
    sock = connect(port)
    for _ in range(WARM):
        ping(sock)
    print("CHATS", flush=True)
    while not select.select([0], [], [], 0)[0]:
        for _ in range(100):
            ping(sock)


def forked(port):
    sock = connect(port)
    for _ in range(WARM):
        ping(sock)
    sock.sendall(f"give {N}\n".encode())
    time.sleep(0.1)  # the ring is full, and the server waits for room
    pid = os.fork()
    if pid == 0:
        assert sock.recv(N, socket.MSG_WAITALL) == pattern(N)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def full(port):
    sock, other = connect(port), connect(port)
    for _ in range(WARM):
        ping(sock)
        ping(other)
    sock.sendall(f"both {N}\n".encode())
    sock.setblocking(False)
    other.sendall(b"ping\n")
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLOUT)
    epoll.register(other, select.EPOLLIN)
    out, got = b"." * N, b""
    while len(got) < N:
        for fd, _ in epoll.poll():
            if fd == other.fileno():
                assert other.recv(5) == b"pong\n"
                other.sendall(b"ping\n")
            elif out:
                out = out[sock.send(out) :]
                if not out:
                    epoll.modify(sock, select.EPOLLIN)
            else:
                got += sock.recv(65536)
    assert got == pattern(N)


role = sys.argv[1]
if role == "server":
    serve()
else:
    {"chat": chat, "forked": forked, "full": full}[role](int(sys.argv[2]))
    print("EXIT-SUCCESS")
