# SPDX-License-Identifier: MIT
"""limited.py server | client PORT: an echo pair whose ends run short of something, told what to do by lines on standard input.

    serve              the server: takes a connection and echoes until it ends
    talk ROUNDS SIZE   the client: a connection, so many messages there and back, every byte checked
    begin ROUNDS SIZE  … which stays open; `end` closes it
    naps               two threads wait for a moment on the last connection, on which nothing comes
    hold N             the server: takes N connections, echoes 30 messages of 100 bytes on each, and keeps them
    open N             the client: makes these
    fill               sends on every connection that is kept what goes without waiting, 400,000 bytes at most, and says how much
    close              closes them
    nofile N           room for N more descriptors
    as BYTES           room for so much more address space
    memlock BYTES      locked memory
    maps N             room for N more mappings (vm.max_map_count)
    take BYTES         needs so much memory now
    fork               makes a child
    free               no limit any more
Each is answered by a line `OK …`, or `FAILED …`. One thread; it allocates nothing large itself.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import select
import socket
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = mmap.PAGESIZE
FAILED = ctypes.c_void_p(-1).value
pattern = bytes(range(256)) * 4096
limits, kept, striped = {}, [], []


def limit(what, soft):
    limits.setdefault(what, resource.getrlimit(what))
    resource.setrlimit(what, (min(soft, limits[what][1]) if limits[what][1] >= 0 else soft, limits[what][1]))


def virtual_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * PAGE


def stripe(room):
    """Every second page of a large mapping in another protection: mappings until there are no more, then `room` fewer."""
    size = 1 << 30
    at = libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    striped.append((at, size))
    count = 0
    while libc.mprotect(at + (2 * count + 1) * PAGE, PAGE, mmap.PROT_READ) == 0:
        count += 1
        if (2 * count + 3) * PAGE > size:
            raise MemoryError("no limit of mappings")
    for _ in range(4):  # mmap may have one more than mprotect
        one = libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0)
        if one == FAILED:
            break
        striped.append((one, PAGE))
    for i in range(room // 2):
        libc.mprotect(at + (2 * (count - 1 - i) + 1) * PAGE, PAGE, 0)
    return count


def free():
    for what, old in limits.items():
        resource.setrlimit(what, old)
    while striped:
        libc.munmap(*striped.pop())


def converse(sock, rounds, size):
    offset = 0
    for _ in range(rounds):
        message = pattern[offset % 251 : offset % 251 + size]
        sock.sendall(message)
        got = b""
        while len(got) < size:
            part = sock.recv(size - len(got))
            if not part:
                raise EOFError
            got += part
        if got != message:
            raise ValueError("wrong bytes")
        offset += size


def serve(listener):
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    total = 0
    while data := sock.recv(8192):
        sock.sendall(data)
        total += len(data)
    sock.close()
    return total


def begin(port, rounds, size):
    sock = socket.socket()
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    converse(sock, rounds, size)
    return sock


def hold(listener, count):
    for _ in range(count):
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(30):
            sock.sendall(sock.recv(100, socket.MSG_WAITALL))
        kept.append(sock)


def nap():
    poll = select.poll()
    poll.register(kept[-1], select.POLLIN)
    poll.poll(100)


def naps():
    other = threading.Thread(target=nap)
    other.start()
    nap()
    other.join()


def fill():
    total = 0
    for sock in kept:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sent = 0
            while sent < 400_000:
                n = sock.send(pattern[:20_000])
                sent += n
                total += n
    return total


def close():
    while kept:
        kept.pop().close()


def first_free_number():
    fd = os.dup(0)
    os.close(fd)
    return fd


def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def take(size):
    at = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if at == FAILED:
        raise MemoryError
    libc.munmap(at, size)


def main():
    server = sys.argv[1] == "server"
    listener = socket.create_server(("127.0.0.1", 0)) if server else None
    port = listener.getsockname()[1] if server else int(sys.argv[2])
    if server:
        print(f"PORT {port}", flush=True)
    commands = {
        "serve": lambda: serve(listener),
        "talk": lambda rounds, size: begin(port, rounds, size).close(),
        "begin": lambda rounds, size: kept.append(begin(port, rounds, size)),
        "more": lambda rounds, size: converse(kept[-1], rounds, size),
        "end": lambda: kept.pop().close(),
        "hold": lambda n: hold(listener, n),
        "open": lambda n: kept.extend(begin(port, 30, 100) for _ in range(n)),
        "naps": naps, "fill": fill, "close": close,
        "nofile": lambda n: limit(resource.RLIMIT_NOFILE, first_free_number() + n),
        "as": lambda n: limit(resource.RLIMIT_AS, virtual_bytes() + n),
        "memlock": lambda n: limit(resource.RLIMIT_MEMLOCK, n),
        "maps": stripe, "take": take, "fork": fork, "free": free,
    }  # fmt: skip
    for number, line in enumerate(sys.stdin):
        word, *numbers = line.split()
        try:
            print(f"OK {number} {commands[word](*map(int, numbers))}", flush=True)
        except (OSError, MemoryError, EOFError, ValueError) as error:
            print(f"FAILED {number} {error!r}", flush=True)


main()
