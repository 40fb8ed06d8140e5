# SPDX-License-Identifier: MIT
"""redis_check.py PORT CONNECTIONS ROUNDS [SECONDS]: random binary values, set and got back, one by one and in pipelines."""

import random
import socket
import sys
import threading
import time


class Client:
    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    def send(self, *commands):
        out = []
        for command in commands:
            out.append(b"*%d\r\n" % len(command))
            out += [b"$%d\r\n%s\r\n" % (len(word), word) for word in command]
        self.sock.sendall(b"".join(out))

    def reply(self):
        line = self.file.readline()
        assert line.endswith(b"\r\n"), line
        if line[:1] == b"$":
            length = int(line[1:])
            if length < 0:
                return None
            value = self.file.read(length + 2)
            assert value[length:] == b"\r\n"
            return value[:length]
        assert line[:1] in b"+:", line
        return line[1:-2]


def work(number, port, rounds, deadline, failures):
    try:
        rng = random.Random(number)
        client = Client(port)
        values = {}
        for i in range(rounds):
            if deadline and time.monotonic() > deadline:
                break
            key = b"%d:%d" % (number, rng.randrange(50))
            values[key] = rng.randbytes(rng.choice([0, 1, 10, 1000, 20_000, 100_000]) if i % 100 else 1_000_000)
            client.send((b"SET", key, values[key]))
            assert client.reply() == b"OK"
            keys = rng.sample(sorted(values), min(len(values), 8))
            client.send(*[(b"GET", k) for k in keys])
            for k in keys:
                assert client.reply() == values[k], k
        client.file.close()
        client.sock.close()
    except BaseException as error:  # a thread's failure must fail the program
        failures.append(repr(error)[:300])


def main():
    port, connections, rounds = map(int, sys.argv[1:4])
    deadline = time.monotonic() + float(sys.argv[4]) if len(sys.argv) > 4 else None
    failures = []
    threads = [threading.Thread(target=work, args=(i, port, rounds, deadline, failures)) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("\n".join(failures))
    print("checked")


main()
