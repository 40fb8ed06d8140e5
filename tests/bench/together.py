# SPDX-License-Identifier: MIT
"""together.py COMMAND… [-- COMMAND…]: starts commands as one server; at SIGTERM ends them, the last one first, and ends with 0 if all ended well.

So a proxy and what is behind it are one process to the suite, and a JVM, which ends with 143 after SIGTERM, has ended well.
"""

import signal
import subprocess
import sys

GOOD = (0, 128 + signal.SIGTERM)
LIMIT_S = 8


def commands(words):
    found = [[]]
    for word in words:
        if word == "--":
            found.append([])
        else:
            found[-1].append(word)
    return found


def end(process):
    process.terminate()
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
    # The signal that is awaited here must not stay blocked in them.
    unblock = lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGCHLD])
    running = [subprocess.Popen(command, preexec_fn=unblock) for command in commands(sys.argv[1:])]
    told = signal.sigwait([signal.SIGTERM, signal.SIGCHLD])  # a child that ends by itself ends all
    codes = [end(process) for process in reversed(running)]
    sys.exit(0 if told == signal.SIGTERM and all(code in GOOD for code in codes) else 1)


main()
