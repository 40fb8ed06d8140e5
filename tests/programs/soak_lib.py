# SPDX-License-Identifier: MIT
"""What the soak's Python programs share: the pattern, a checked stream, reports, and a watch over calls that hang.

Every byte depends on its place: the byte at offset o of a direction is table[(start + o) % PERIOD], where table is a file of random bytes and
start comes from the stream's number. A stream is a header of the client's, rounds of a block up and a block down, then the server's word that
all it got was right. Sizes come from a generator that both ends (and soak_peer.js) run.
"""

import ctypes
import errno
import json
import os
import select
import socket
import struct
import threading
import time

PERIOD = 1_048_573  # a prime: no multiple of a page or a ring
HEADER = struct.Struct("<4sIII")  # "SOAK", number, rounds, first random word
DONE = struct.Struct("<4sI")
HANG_S = float(os.environ.get("SOAK_HANG_S", 5))
PIECE = 65536
MODES = os.environ.get("SOAK_MODES", "block,block,timeout,poll,epoll").split(",")

libc = ctypes.CDLL(None, use_errno=True)
libc.fdopen.restype = ctypes.c_void_p
libc.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
libc.fread.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
libc.fread.restype = libc.fwrite.restype = ctypes.c_size_t
libc.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
libc.fflush.argtypes = libc.fclose.argtypes = libc.ferror.argtypes = [ctypes.c_void_p]


class Table:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = file.read() * 2

    def slice(self, number, direction, offset, size):
        """At most PERIOD bytes."""
        at = (number * 7919 + direction * 104_729 + offset) % PERIOD
        return self.bytes[at : at + size]


class Wrong(Exception):
    """Bytes that are not the pattern's: a loss, whatever else happened."""


def end_of(error):
    """How an error is called in a report."""
    if isinstance(error, EOFError):
        return "EOF"
    return errno.errorcode.get(error.errno, repr(error)) if isinstance(error, OSError) and error.errno else repr(error)


def say(**fields):
    """One line of a report. One write: processes and threads share the file."""
    os.write(1, (json.dumps(fields) + "\n").encode())


class Watch:
    """Says of each call that hangs, once."""

    def __init__(self):
        self.calls = {}
        self.start()

    def start(self):
        """Also in a forked child, which has lost the thread."""
        self.calls.clear()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self):
        while True:
            time.sleep(0.5)
            now = time.monotonic()
            for thread, call in list(self.calls.items()):
                if call and now - call[1] > HANG_S and not call[2]:
                    call[2] = True
                    say(hang=call[0], t0=call[1], t1=now, pid=os.getpid())

    def enter(self, what):
        self.calls[threading.get_ident()] = [what, time.monotonic(), False]

    def leave(self):
        call = self.calls.pop(threading.get_ident(), None)
        if call and call[2]:
            say(hang=call[0], t0=call[1], t1=time.monotonic(), pid=os.getpid(), ended=True)


class Plain:
    """A socket in one of the ways in which programs use one."""

    def __init__(self, sock, rng, watch=None):
        self.sock, self.rng, self.watch = sock, rng, watch
        self.mode = rng.choice(MODES)
        sock.settimeout({"block": None, "timeout": 60}.get(self.mode, 0))
        self.epoll = None

    def _wait(self, out):
        if self.mode == "epoll" and self.epoll is None:
            try:
                self.epoll = select.epoll()
                self.epoll.register(self.sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                self.mode = "poll"
        if self.mode == "poll":
            poll = select.poll()
            poll.register(self.sock, select.POLLOUT if out else select.POLLIN)
            poll.poll(60_000)
        else:
            self.epoll.poll(60)

    def _call(self, what, out, call):
        if self.watch:
            self.watch.enter(what)
        try:
            while True:
                try:
                    return call()
                except BlockingIOError:
                    self._wait(out)
        finally:
            if self.watch:
                self.watch.leave()

    def send(self, data):
        """Some of it."""
        n = min(len(data), self.rng.choice([PIECE, PIECE, 4096, 17]) if len(data) > 1000 else len(data))
        view = memoryview(data)[:n]
        way = self.rng.randrange(4)
        if way == 0:
            return self._call("sendmsg", True, lambda: self.sock.sendmsg([view[: n // 3], view[n // 3 :]]))
        if way == 1 and self.mode != "timeout":
            return self._call("write", True, lambda: os.write(self.sock.fileno(), view))
        return self._call("send", True, lambda: self.sock.send(view))

    def receive(self, most, coming=False):
        """Some bytes; `coming`: as many as that are sure to come."""
        way = self.rng.randrange(4)
        most = min(most, PIECE)
        if way == 0 and self.mode == "block" and coming:
            return self._call("recv-all", False, lambda: self.sock.recv(most, socket.MSG_WAITALL))
        if way == 1 and self.mode != "timeout":
            return self._call("read", False, lambda: os.read(self.sock.fileno(), most))
        if way == 2:
            return self._call("recvmsg", False, lambda: self.sock.recvmsg(most)[0])
        return self._call("recv", False, lambda: self.sock.recv(most))

    def end_sending(self):
        self.sock.shutdown(socket.SHUT_WR)

    def close(self):
        if self.epoll is not None:
            self.epoll.close()
        self.sock.close()


class Stdio:
    """The same of C's stdio: what fdopen() has is no longer the library's."""

    def __init__(self, sock, watch=None):
        sock.settimeout(None)
        os.set_blocking(sock.fileno(), True)
        self.fd, self.watch = sock.detach(), watch
        self.file = libc.fdopen(self.fd, b"r+b")
        if not self.file:
            os.close(self.fd)
            raise OSError(ctypes.get_errno(), "fdopen")

    def _call(self, what, call):
        if self.watch:
            self.watch.enter(what)
        try:
            return call()
        finally:
            if self.watch:
                self.watch.leave()

    def _failed(self):
        raise OSError(ctypes.get_errno() or errno.EIO, "stdio")

    def send(self, data):
        def write():
            if libc.fwrite(data, 1, len(data), self.file) != len(data) or libc.fflush(self.file) != 0:
                self._failed()
            return len(data)

        return self._call("fwrite", write)

    def receive(self, most, coming=False):
        buffer = ctypes.create_string_buffer(min(most, PIECE))

        def read():
            n = libc.fread(buffer, 1, len(buffer), self.file)
            if n < len(buffer) and libc.ferror(self.file):
                self._failed()
            return buffer.raw[:n]

        return self._call("fread", read)

    def end_sending(self):
        sock = socket.socket(fileno=self.fd)
        try:
            sock.shutdown(socket.SHUT_WR)
        finally:
            sock.detach()

    def close(self):
        libc.fclose(self.file)


class Stream:
    """Where a stream is, in numbers that another process can go on with; `run` moves it on."""

    FIELDS = ("number", "rounds", "word", "client", "up", "down", "sending_up", "left")

    def __init__(self, table, number, rounds, word, client):
        self.table, self.number, self.rounds, self.word, self.client = table, number, rounds, word, client
        self.up = self.down = 0  # offsets
        self.sending_up = True
        self.left = self._size()

    @classmethod
    def from_state(cls, table, state):
        stream = cls.__new__(cls)
        stream.table = table
        for name in cls.FIELDS:
            setattr(stream, name, state[name])
        return stream

    def state(self):
        return {name: getattr(self, name) for name in self.FIELDS}

    def _size(self):
        self.word = (self.word * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        kind, value = (self.word >> 8) % 16, self.word >> 12
        if kind < 8:
            return 1 + value % 200
        if kind < 13:
            return 1 + value % 8000
        return 1 + value % (400_000 if kind == 15 else 60_000)

    def _next_block(self):
        if not self.sending_up:
            self.rounds -= 1
        self.sending_up = not self.sending_up
        self.left = self._size() if self.rounds else 0

    def run(self, link, limit=None):
        """To the end of the last round, or until `limit` bytes have moved. What moved."""
        moved = 0
        while self.rounds and (limit is None or moved < limit):
            direction = 0 if self.sending_up else 1
            offset = self.up if self.sending_up else self.down
            if self.sending_up == self.client:
                n = link.send(self.table.slice(self.number, direction, offset, min(self.left, PIECE)))
            else:
                data = link.receive(self.left, coming=True)
                if not data:
                    raise EOFError
                n = len(data)
                if data != self.table.slice(self.number, direction, offset, n):
                    raise Wrong(f"stream {self.number} direction {direction} offset {offset} size {n}")
            if self.sending_up:
                self.up += n
            else:
                self.down += n
            moved += n
            self.left -= n
            if self.left == 0:
                self._next_block()
        return moved

    def finish(self, link):
        """The end of a stream, whose rounds are over."""
        if not self.client:
            send_all(link, DONE.pack(b"DONE", self.number))
            if link.receive(1):
                raise Wrong(f"stream {self.number}: bytes behind the end")
            return
        if receive_all(link, DONE.size) != DONE.pack(b"DONE", self.number):
            raise Wrong(f"stream {self.number}: the server does not say that all was right")
        link.end_sending()
        if link.receive(1):
            raise Wrong(f"stream {self.number}: bytes behind the end")


def send_all(link, data):
    while data:
        data = data[link.send(data) :]


def receive_all(link, size):
    data = b""
    while len(data) < size:
        part = link.receive(size - len(data), coming=True)
        if not part:
            raise EOFError
        data += part
    return data


class Helper:
    """A process, forked before there are threads, that goes on with streams whose sockets it is passed. `go_on(sock, state)` per stream."""

    def __init__(self, go_on):
        self.lock = threading.Lock()
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self.ours.close()
            try:
                self._serve(theirs, go_on)
            finally:
                os._exit(0)
        theirs.close()

    @staticmethod
    def _serve(theirs, go_on):
        threads = []
        while True:
            data, fds, _, _ = socket.recv_fds(theirs, 65536, 4)
            if not data:
                break
            threads = [t for t in threads if t.is_alive()]
            threads.append(threading.Thread(target=go_on, args=(socket.socket(fileno=fds[0]), json.loads(data)), daemon=True))
            threads[-1].start()
        for thread in threads:  # its streams outlive who began them
            thread.join(60)

    def pass_on(self, sock, state):
        with self.lock:
            socket.send_fds(self.ours, [json.dumps(state).encode()], [sock.fileno()])


def close_others(keep):
    """In a forked child: the other connections are its parent's, and would not end with it."""
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 << 16)


def hand_over(op, link, stream, rng, helper, go_on):
    """Does `op` to the socket in the middle of its stream. The link to go on with; None: another process has it."""
    watch = link.watch
    if isinstance(link, Stdio):
        return link
    if op == "fdopen":
        sock = socket.socket(fileno=os.dup(link.sock.fileno()))
        link.close()
        return Stdio(sock, watch)
    if op == "dup":
        sock = socket.socket(fileno=os.dup(link.sock.fileno()))
        link.close()
        return Plain(sock, rng, watch)
    if op == "pass":
        helper.pass_on(link.sock, stream.state())
        link.close()
        return None
    if op == "fork":
        pid = os.fork()
        if pid == 0:
            try:
                close_others(link.sock.fileno())
                if watch:
                    watch.start()
                go_on(Plain(link.sock, rng, watch), stream)
            finally:
                os._exit(0)
        link.close()
        os.waitpid(pid, 0)
        return None
    return link
