# SPDX-License-Identifier: MIT
"""CPython's own tests, as Debian packages them; one suite per module."""

import json
import pathlib

import sources
from suite import Outcome, Suite

PYTHON = "/usr/bin/python3.11"
INSIDE = pathlib.Path(__file__).with_name("cpython_inside.py").resolve()
NEVER = ["*VSOCK*"]  # hangs in virtual machines, without us too
ROUNDS = 40  # how often a module is gone on with after a test ended the process

QUICK_SOCKET = [f"*.{name}.*" for name in ("BasicTCPTest", "TCPCloserTest", "RecvIntoTCPTest")] + ["*.SendfileUsingSendTest.testCount"]
QUICK_ASYNCIO = ["*test_streams*", "*test_server*", "*test_buffered_proto*", "*test_sock_lowlevel.EPoll*"]

MODULES = {
    # name: (does it move bytes over loopback TCP?, what of it is quick: patterns, None for all of it, [] for nothing)
    "test_socket": (True, QUICK_SOCKET),
    "test_select": (False, None),
    "test_poll": (False, []),
    "test_epoll": (False, None),
    "test_selectors": (False, []),
    "test_asyncio": (True, QUICK_ASYNCIO),
    "test_socketserver": (False, []),  # the connections are over before they can be upgraded
    "test_httplib": (True, []),
    "test_httpservers": (False, []),  # the same
    "test_ssl": (True, []),
    "test_ftplib": (True, []),
    "test_smtplib": (True, None),
    "test_poplib": (True, ["*TestPOP3_TLSClass*"]),
    "test_imaplib": (True, []),
    "test_asyncore": (False, []),
    "test_asynchat": (True, None),
    "test_logging": (False, []),  # the same, mostly
    "test_urllib2_localnet": (False, None),  # the same, mostly: now and then a ring carries a request
    "test_xmlrpc": (False, []),  # the same, mostly
    "test_subprocess": (False, []),
    "test_multiprocessing_fork": (True, []),
}

# Servers that write an answer and wait for something else before it is read: in TCP's buffers it fits, in 64 bytes it does not.
# test_poplib's TLS server never waits for space, so the handshake's longest flight has to fit.
TINY = {"test_httplib": "256B", "test_ftplib": "256B", "test_poplib": "4"}


class CPython(Suite):
    def __init__(self, module):
        self.name = module
        self.rings_expected, self.quick = MODULES[module]
        self.tiny = TINY.get(module, Suite.tiny)

    def prepare(self, cache):
        sources.install(sources.PYTHON_PACKAGES, cache / "cpython.log")

    def run(self, sandbox, quick, limit, without=()):
        outcomes = {}
        patterns = self.quick if quick and self.quick else []
        for _ in range(ROUNDS):
            # What has begun has an outcome, so every round makes progress or is the last.
            new, ended = self.round(sandbox, patterns, [*NEVER, *without, *outcomes], limit)
            outcomes.update(new)
            if ended or not new:
                return outcomes
        raise RuntimeError(f"{self.name}: the process ended {ROUNDS} times before its last test")

    def run_alone(self, sandbox, test_id, limit):
        new, _ = self.round(sandbox, [test_id], NEVER, limit)
        return new.get(test_id, Outcome("missing", "did not run alone"))

    def round(self, sandbox, patterns, ignored, limit):
        """({test id: outcome}, whether regrtest came to its end)"""
        records = sandbox.folder / "records"
        records.unlink(missing_ok=True)
        ignore_file, match_file = sandbox.folder / "ignore", sandbox.folder / "match"
        ignore_file.write_text("".join(f"{name}\n" for name in ignored))
        match_file.write_text("".join(f"{name}\n" for name in patterns))
        argv = [PYTHON, str(INSIDE), str(records), str(limit), "-u", "network", "--ignorefile", str(ignore_file)]
        if patterns:
            argv += ["--matchfile", str(match_file)]
        done = sandbox.run([*argv, self.name], timeout=max(1800, limit * 2))
        # regrtest says how it went in any case; a process that ended before did so in the middle of a test.
        return self.read(records, done), "Tests result:" in done.output

    def read(self, records, done):
        outcomes, running = {}, None
        for line in records.read_text().splitlines() if records.exists() else []:
            one = json.loads(line)
            if one["status"] == "started":
                running = one["id"]
                outcomes[running] = Outcome("fail", "no outcome")
                continue
            # A subtest's failure comes before the test's own outcome, which is then not a success.
            outcomes[one["id"]] = Outcome(one["status"], one["detail"])
            running = None
        if running is not None:
            kind = "hang" if "Timeout (" in done.output or done.code is None else "crash"
            outcomes[running] = Outcome(kind, f"exit code {done.code}\n{done.output[-6000:]}")
        return outcomes


def suites():
    return [CPython(module) for module in MODULES]
