# SPDX-License-Identifier: MIT
"""What the tests of `mpklink dump` share: a dump under way, and two programs that send each other patterns."""

import hashlib
import signal
import socket
import struct

from capture import Capture
from harness import CLIENT, SERVER, eventually
from live_tools import OWN_UID, Puppet, own_dir, start_tool
from status_page import REQUESTS_AT, TAP


def tap_name(page) -> bytes:
    length = struct.unpack_from("<I", page.map, REQUESTS_AT + 4)[0]
    return bytes(page.map[REQUESTS_AT + 8 : REQUESTS_AT + 8 + length])


def is_asked(page) -> bool:
    return bool(page.wanted() & TAP)


class Dump:
    """A running dump into a file."""

    def __init__(self, bench, *filter_words, asked=(), uid=OWN_UID):
        self.bench = bench
        self.path = own_dir(bench) / f"dump-{len(bench.procs)}.pcapng"
        self.proc = start_tool(bench, "dump", *filter_words, "-w", self.path, uid=uid)
        for puppet in asked:
            page = puppet.page()
            ours = f"mpklink-tap/{self.proc.pid}/".encode()
            eventually(lambda: is_asked(page) and tap_name(page).startswith(ours), what="the request")

    def written(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def end(self, number=signal.SIGINT, code=0) -> Capture:
        if self.proc.running():
            self.proc.send_signal(number)
        self.proc.finish(code)
        return Capture.of_file(self.path)


def pattern(seed: str, size: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


PATTERN = "import hashlib\ndef pattern(seed, size): return hashlib.shake_256(seed.encode()).digest(size)\n"


def not_yet_connected(bench, host="127.0.0.1", **options):
    server, client = Puppet(bench, SERVER, name="server", **options), Puppet(bench, CLIENT, name="client", **options)
    server.do(PATTERN + f"l = listener('{host}')")
    # A page is made by the first listener; the client has one from its first connection on.
    client.do(PATTERN + f"x = socket.create_connection(('{host}', {server.proc.port()})); x.close()")
    server.do("x, _ = l.accept(); x.close()")
    return server, client


def connect(server, client, host="127.0.0.1"):
    client.do(f"c = socket.create_connection(('{host}', {server.proc.port()}))")
    server.do("s, _ = l.accept()")


def exchange(server, client, rounds, size=3000, dump=None):
    """Both ways; the client's and the server's bytes. With a `dump` never more at a time than its socket takes, so that nothing is dropped."""
    at_once = 5 if dump else rounds
    for first in range(0, rounds, at_once):
        those = f"for i in range({first}, {min(first + at_once, rounds)})"
        number = server.begin(f"{those}: assert receive_all(s, {size}) == pattern(f'up{{i}}', {size}); s.sendall(pattern(f'down{{i}}', {size}))")
        client.do(f"{those}: c.sendall(pattern(f'up{{i}}', {size})); assert receive_all(c, {size}) == pattern(f'down{{i}}', {size})")
        server.wait(number)
        if dump:
            last = pattern(f"down{min(first + at_once, rounds) - 1}", size)[-50:]
            eventually(lambda: last in dump.written(), timeout_s=30, what="the bytes in the capture")
    return tuple(b"".join(pattern(f"{way}{i}", size) for i in range(rounds)) for way in ("up", "down"))


def client_port(client) -> int:
    return client.tell("c.getsockname()[1]")
