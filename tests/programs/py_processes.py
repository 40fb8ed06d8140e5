# SPDX-License-Identifier: MIT
"""py_processes.py forking | inetd | send_fds | handles: echo servers that give their connections to other processes. SIGTERM ends them."""

import multiprocessing
import multiprocessing.reduction
import os
import signal
import socket
import socketserver
import subprocess
import sys


def echo(sock):
    with sock:
        while data := sock.recv(50_000):
            sock.sendall(data)


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        echo(self.request)


class ForkingServer(socketserver.ForkingMixIn, socketserver.TCPServer):
    max_children = 100
    request_queue_size = 100


class InetdServer(socketserver.TCPServer):
    """Another program has the connection as its standard input and output; it goes on from the first byte."""

    request_queue_size = 100
    children = []

    def process_request(self, request, client_address):
        request.sendall(request.recv(50_000))  # a word with it before
        self.children.append(subprocess.Popen(["cat"], stdin=request, stdout=request))
        request.close()

    def server_close(self):
        for child in self.children:
            assert child.wait(10) == 0
        super().server_close()


def passing_worker(channel):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pids = []
    while True:
        data, fds, _, _ = socket.recv_fds(channel, 1, 4)
        if not data:
            break
        for fd in fds:
            pids.append(os.fork())
            if pids[-1] == 0:
                echo(socket.socket(fileno=fd))
                os._exit(0)
            os.close(fd)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0


class PassingServer(socketserver.TCPServer):
    """socket.send_fds to a worker process that was there before, after a word with the client."""

    request_queue_size = 100

    def __init__(self, *args):
        super().__init__(*args)
        self.channel, theirs = socket.socketpair()
        self.worker = os.fork()
        if self.worker == 0:
            self.channel.close()
            self.socket.close()
            passing_worker(theirs)
            os._exit(0)
        theirs.close()

    def process_request(self, request, client_address):
        request.sendall(request.recv(50_000))
        socket.send_fds(self.channel, [b"f"], [request.fileno()])
        request.close()

    def server_close(self):
        self.channel.close()
        assert os.waitpid(self.worker, 0)[1] == 0
        super().server_close()


def serve_handle(connection):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    echo(socket.socket(fileno=multiprocessing.reduction.recv_handle(connection)))


class HandleServer(socketserver.TCPServer):
    """multiprocessing's way, with a spawned (not forked) process per connection."""

    request_queue_size = 100
    context = multiprocessing.get_context("spawn")
    children = []

    def process_request(self, request, client_address):
        request.sendall(request.recv(50_000))
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve_handle, args=(theirs,))
        process.start()
        multiprocessing.reduction.send_handle(ours, request.fileno(), process.pid)
        request.close()
        self.children.append(process)

    def server_close(self):
        for process in self.children:
            process.join(20)
            assert process.exitcode == 0
        super().server_close()


def main():
    servers = {"forking": ForkingServer, "inetd": InetdServer, "send_fds": PassingServer, "handles": HandleServer}
    server = servers[sys.argv[1]](("127.0.0.1", 0), Echo)

    def stop(*_):
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    print(f"PORT {server.server_address[1]}", flush=True)
    try:
        server.serve_forever(poll_interval=60)
    finally:
        server.server_close()


if __name__ == "__main__":
    main()
