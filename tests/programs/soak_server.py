# SPDX-License-Identifier: MIT
"""soak_server.py TABLE PORT SEED: serves the streams of soak_lib.py, one thread each, and now and then hands one on in its middle.

SOAK_BREAK=byte|drop|hang|leak makes it do something wrong once in a while, so that the soak can be seen to notice.
"""

import errno
import os
import random
import signal
import socket
import sys
import threading
import time

from soak_lib import HEADER, Helper, Plain, Stream, Table, Wrong, end_of, hand_over, receive_all, say

OPS = ["fdopen", "dup", "pass", "fork", None, None, None, None]
BREAK = os.environ.get("SOAK_BREAK")
BREAK_EVERY = 20


class FlipsOne(Plain):
    """A link with one wrong byte in the first long piece it sends."""

    def send(self, data):
        if len(data) <= 100:
            return Plain.send(self, data)
        n = Plain.send(self, data[:50] + bytes([data[50] ^ 1]) + data[51:])
        if n > 50:
            self.send = super().send
        return n


def go_on(link, stream):
    """The rest of a stream."""
    end = "ok"
    try:
        stream.run(link)
        stream.finish(link)
    except Wrong as error:
        say(wrong=str(error))
        end = "wrong"
    except (OSError, EOFError) as error:
        end = end_of(error)
    link.close()
    return end


class Server:
    def __init__(self, table, port, seed):
        self.table, self.seed, self.count = table, seed, 0
        self.helper = Helper(lambda sock, state: go_on(Plain(sock, random.Random(seed)), Stream.from_state(table, state)))
        self.listener = self._listen(port)
        self.kept = []

    @staticmethod
    def _listen(port):
        for _ in range(100):
            try:
                return socket.create_server(("127.0.0.1", port), backlog=128)
            except OSError as error:  # a child of a server that was killed may have the port for a moment
                if error.errno != errno.EADDRINUSE:
                    raise
                time.sleep(0.1)
        raise OSError(errno.EADDRINUSE, "the port stays taken")

    def serve(self, sock, count):
        rng = random.Random(self.seed * 1_000_003 + count)
        broken = BREAK if count % BREAK_EVERY == BREAK_EVERY - 1 else None
        link = (FlipsOne if broken == "byte" else Plain)(sock, rng)
        try:
            magic, number, rounds, word = HEADER.unpack(receive_all(link, HEADER.size))
            if magic != b"SOAK":
                raise Wrong(f"header {magic}")
            stream = Stream(self.table, number, rounds, word, client=False)
            stream.run(link, rng.randrange(1, 200_000))
            if broken == "hang":
                time.sleep(8)
            if broken == "leak":
                self.kept += [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
            if broken == "drop":
                link.close()
                return
            try:
                link = hand_over(rng.choice(OPS), link, stream, rng, self.helper, go_on)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
            if link is not None:
                go_on(link, stream)
        except Wrong as error:
            say(wrong=str(error))
        except (OSError, EOFError):
            link.close()  # the client's end says whether that was right

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ECONNABORTED):
                    raise
                time.sleep(0.05)
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(sock, self.count), daemon=True).start()
            self.count += 1


def main():
    table, port, seed = Table(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    server = Server(table, port, seed)
    threading.Thread(target=server.accept, daemon=True).start()
    signal.sigwait([signal.SIGTERM])


main()
