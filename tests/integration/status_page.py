# SPDX-License-Identifier: MIT
"""Reads and writes shm/status.h in another process, as a tool does; and a process that does what a test tells it."""

import collections
import ipaddress
import json
import mmap
import os
import pathlib
import re
import struct
import subprocess

from harness import PYTHON, REPO, SCRIPTS, eventually

OFF, OFF_PORTS, TAP = 1, 2, 4
DATA, END, RESET = 1, 2, 3
MODES = ["free", "candidate", "upgrading", "shared", "plain"]
REASONS = re.findall(r'^REASON\(\w+, "([^"]+)"', (REPO / "preload/reasons.def").read_text(), re.M)
COUNTERS = ["upgraded", "revoked", "ring_tx", "ring_rx", "ring_returned", "tcp_tx", "tcp_rx", "bells", "sleeps", "spin_hits", "gates",
            "gate_found_open", "tap_records", "tap_dropped"]  # fmt: skip

HEADER = struct.Struct("<QIIIIII16sI32sIIIQ")
FIELDS = "magic version header_bytes row_bytes rows pid layout_version library_version guard guard_why disabled rows_used rows_missing started_ns"
ROW = struct.Struct("<IIII16s16sIIQQQQQQQII8x")
COUNTERS_AT = 104
REQUESTS_AT = 768
TAP_RECORD = struct.Struct("<IIQQQIIII16s16sHHBB2x")

Header = collections.namedtuple("Header", FIELDS)
Row = collections.namedtuple(
    "Row", "number sequence mode reason fd local peer connector since tx rx tx_calls rx_calls tcp_tx tcp_rx upgrades revokes"
)
Record = collections.namedtuple(
    "Record", "kind time offset dropped pid row outgoing local peer connector shared payload"
)


def address(packed: bytes, port: int):
    ip = ipaddress.IPv6Address(packed)
    return str(ip.ipv4_mapped or ip), port


def status_fds(pid: int) -> list:
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{entry}") == "/memfd:mpklink-status (deleted)":
                found.append(int(entry))
        except OSError:
            pass
    return found


class Page:
    """The page of a process; it can be read when that has ended, too."""

    def __init__(self, pid: int):
        fds = status_fds(pid)
        assert len(fds) == 1, f"process {pid} has {len(fds)} status pages"
        with open(f"/proc/{pid}/fd/{fds[0]}", "r+b", buffering=0) as file:
            self.stat = os.fstat(file.fileno())
            self.map = mmap.mmap(file.fileno(), 0)
        self.header_bytes = self.header().header_bytes

    def header(self) -> Header:
        return Header(*HEADER.unpack_from(self.map, 0))

    def counters(self) -> dict:
        return dict(zip(COUNTERS, struct.unpack_from(f"<{len(COUNTERS)}Q", self.map, COUNTERS_AT)))

    def plain(self) -> dict:
        values = struct.unpack_from(f"<{len(REASONS)}Q", self.map, COUNTERS_AT + 8 * len(COUNTERS))
        return {slug: n for slug, n in zip(REASONS, values) if n}

    def totals(self) -> dict:
        """ring_tx and its kin as they are now."""
        c = self.counters()
        rows = self.rows()
        return {
            "tcp_tx": c["tcp_tx"] + sum(r.tcp_tx for r in rows), "ring_tx": c["ring_tx"] + sum(max(r.tx - r.tcp_tx, 0) for r in rows),
            "tcp_rx": c["tcp_rx"] + sum(r.tcp_rx for r in rows), "ring_rx": c["ring_rx"] + sum(max(r.rx - r.tcp_rx, 0) for r in rows),
        }  # fmt: skip

    def rows(self) -> list:
        """Those that are in use."""
        found = []
        for i in range(self.header().rows_used):
            v = ROW.unpack_from(self.map, self.header_bytes + i * ROW.size)
            if v[1] == 0 or v[0] % 2:
                continue
            reason = REASONS[v[2] - 1] if v[2] else None
            local, peer = address(v[4], v[6] >> 16), address(v[5], v[6] & 0xFFFF)
            found.append(Row(i, v[0], MODES[v[1]], reason, v[3], local, peer, v[7] == 1, *v[8:]))
        return found

    def row(self, mode=None) -> Row:
        """The only one."""
        rows = [r for r in self.rows() if mode in (None, r.mode)]
        assert len(rows) == 1, self.rows()
        return rows[0]

    # -- requests

    def want(self, what: int) -> None:
        struct.pack_into("<I", self.map, REQUESTS_AT, what)

    def wanted(self) -> int:
        return struct.unpack_from("<I", self.map, REQUESTS_AT)[0]

    def set_tap(self, name: bytes, port: int = 0) -> None:
        self.map[REQUESTS_AT + 8 : REQUESTS_AT + 72] = name.ljust(64, b"\0")
        struct.pack_into("<I", self.map, REQUESTS_AT + 4, len(name))
        struct.pack_into("<Q", self.map, REQUESTS_AT + 72, port)
        self.want(self.wanted() | TAP)

    def set_off_port(self, port: int, off: bool = True) -> None:
        at = REQUESTS_AT + 80 + port // 8
        self.map[at] = self.map[at] | 1 << port % 8 if off else self.map[at] & ~(1 << port % 8)

    def scribble(self, bytes_: bytes) -> None:
        """Over all of Requests."""
        self.map[REQUESTS_AT : REQUESTS_AT + 80 + 8192] = bytes_[: 80 + 8192]


def parse_record(data: bytes) -> Record:
    magic, kind, time_ns, offset, dropped, pid, row, length, outgoing, local, peer, lport, pport, connector, shared = TAP_RECORD.unpack_from(data)
    assert magic == 0x504B504D and length == len(data) - TAP_RECORD.size and length <= 16384
    return Record(kind, time_ns, offset, dropped, pid, row, outgoing == 1, address(local, lport), address(peer, pport), connector == 1, shared == 1,
                  data[TAP_RECORD.size :])  # fmt: skip


class Puppet:
    """tests/programs/puppet.py."""

    def __init__(self, bench, side, **options):
        self.proc = bench.start([PYTHON, SCRIPTS / "puppet.py"], side, stdin=subprocess.PIPE, **options)
        self.lines = 0

    @property
    def pid(self):
        return self.proc.pid

    def begin(self, statements: str) -> int:
        self.proc.stdin.write((json.dumps(statements) + "\n").encode())
        self.proc.stdin.flush()
        self.lines += 1
        return self.lines - 1

    def wait(self, number: int, timeout_s: float = 30) -> None:
        answer = self.proc.wait_line(rf"^(DONE|FAILED) {number}$", timeout_s).group(1)
        assert answer == "DONE", self.proc.output()

    def do(self, statements: str, timeout_s: float = 30) -> None:
        self.wait(self.begin(statements), timeout_s)

    def tell(self, expression: str):
        """The value of an expression, by way of JSON."""
        self.do(f"import json; say('VALUE{self.lines} ' + json.dumps({expression}))")
        return json.loads(self.proc.wait_line(rf"^VALUE{self.lines - 1} (.*)$").group(1))

    def page(self) -> Page:
        return Page(self.pid)

    def end(self) -> None:
        self.proc.stdin.close()
        self.proc.finish()


def connected(bench, rounds=30, server_side=None, client_side=None, **options):
    """Two puppets with a connection, upgraded where both are preloaded."""
    from harness import CLIENT, SERVER

    server = Puppet(bench, server_side or SERVER, name="server", **options)
    server.do("l = listener()")
    client = Puppet(bench, client_side or CLIENT, name="client", **options)
    client.do(f"c = socket.create_connection(('127.0.0.1', {server.proc.port()}))")
    server.do("s, _ = l.accept()")
    talk(server, client, rounds)
    return server, client


def talk(server, client, rounds, size=100):
    number = server.begin(f"[s.sendall(receive_all(s, {size})) for _ in range({rounds})]")
    client.do(f"ask(c, {rounds}, {size})")
    server.wait(number)


def until_mode(page: Page, mode: str) -> Row:
    return eventually(lambda: next((r for r in page.rows() if r.mode == mode), None), what=f"a row that is {mode}")


def commands_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
