# SPDX-License-Identifier: MIT
"""py_subprocess.py PORT: an echo client that runs other programs in every way subprocess and os know, between its round trips."""

import os
import random
import socket
import subprocess
import sys

sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
rng = random.Random(5)


def round_trips(count):
    for _ in range(count):
        data = rng.randbytes(rng.randrange(1, 2000))
        sock.sendall(data)
        got = b""
        while len(got) < len(data):
            got += sock.recv(65536)
        assert got == data


round_trips(60)
for _ in range(3):
    # closes every descriptor above 2 in the child (vfork or fork + close_range)
    assert subprocess.run(["/bin/echo", "a"], capture_output=True, text=True, check=True).stdout == "a\n"
    round_trips(10)
    assert subprocess.run("exit 3", shell=True, close_fds=False).returncode == 3
    round_trips(10)
    assert subprocess.run(["/bin/true"], preexec_fn=os.getpid, start_new_session=True).returncode == 0
    round_trips(10)
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    assert os.waitpid(pid, 0)[1] == 0
    round_trips(10)
    assert os.system("exit 5") >> 8 == 5
    round_trips(10)
    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    round_trips(5)
    assert child.communicate(b"through cat")[0] == b"through cat"
    round_trips(10)
sock.shutdown(socket.SHUT_WR)
assert sock.recv(1) == b""
print("checked")
