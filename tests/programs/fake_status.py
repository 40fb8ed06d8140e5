# SPDX-License-Identifier: MIT
"""A process that shows a status page of its own making, for what a tool does with a stranger's: fake_status.py < CONTENT

The content is all of standard input up to its end; eight bytes "PIDPIDPI" in it become the process's number. It says READY, and stays until
it is ended. --no-seals leaves the file unsealed; --name NAME is the name of the process."""

import argparse
import ctypes
import fcntl
import os
import signal
import sys

F_ADD_SEALS, SEAL, SHRINK, GROW = 1033, 1, 2, 4

parser = argparse.ArgumentParser()
parser.add_argument("--no-seals", action="store_true")
parser.add_argument("--name")
arguments = parser.parse_args()
if arguments.name:
    PR_SET_NAME = 15
    ctypes.CDLL(None).prctl(PR_SET_NAME, os.fsencode(arguments.name), 0, 0, 0)
content = sys.stdin.buffer.read().replace(b"PIDPIDPI", os.getpid().to_bytes(8, "little"))
fd = os.memfd_create("mpklink-status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
os.write(fd, content)
if not arguments.no_seals:
    fcntl.fcntl(fd, F_ADD_SEALS, SHRINK | GROW | SEAL)
print("READY", flush=True)
signal.pause()
