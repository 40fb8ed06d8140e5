# SPDX-License-Identifier: MIT
"""Reads pcapng with raw IP packets: strict, by the standards alone, and independent of what writes it. Checksums are verified, streams put
together by sequence number."""

import collections
import ipaddress
import struct

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

Segment = collections.namedtuple("Segment", "time_ns source target sequence acknowledged flags payload comment")


def options(data: bytes) -> dict:
    found = {}
    while data:
        code, length = struct.unpack_from("<HH", data)
        if code == 0:
            assert length == 0 and len(data) == 4, "something follows the end of the options"
            return found
        found[code] = data[4 : 4 + length]
        assert len(found[code]) == length and not any(data[4 + length : 4 + length + -length % 4])
        data = data[4 + length + -length % 4 :]
    return found


def blocks(data: bytes):
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert length % 4 == 0 and 12 <= length <= len(data), "a block is cut"
        assert struct.unpack_from("<I", data, length - 4)[0] == length
        yield kind, data[8 : length - 4]
        data = data[length:]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def parse_ip(packet: bytes):
    """→ source, target, the pseudo header of the checksum, the TCP segment"""
    if packet[0] >> 4 == 4:
        version, _, length, _, fragment, hops, protocol, _, source, target = struct.unpack_from(">BBHHHBBH4s4s", packet)
        assert version == 0x45 and length == len(packet) and fragment == 0x4000 and hops > 0
        assert checksum(packet[:20]) == 0, "wrong checksum of an IP header"
        tcp = packet[20:]
        pseudo = source + target + struct.pack(">BBH", 0, protocol, len(tcp))
    else:
        first, length, protocol, hops, source, target = struct.unpack_from(">IHBB16s16s", packet)
        assert first >> 28 == 6 and length == len(packet) - 40 and hops > 0
        tcp = packet[40:]
        pseudo = source + target + struct.pack(">IHBB", len(tcp), 0, 0, protocol)
    assert protocol == 6
    return str(ipaddress.ip_address(source)), str(ipaddress.ip_address(target)), pseudo, tcp


def parse_packet(time_ns: int, packet: bytes, comment: str) -> Segment:
    source, target, pseudo, tcp = parse_ip(packet)
    sport, dport, sequence, acknowledged, offset, flags, window, _, urgent = struct.unpack_from(">HHIIBBHHH", tcp)
    assert checksum(pseudo + tcp) == 0, "wrong checksum of a TCP segment"
    assert window > 0 and urgent == 0
    return Segment(time_ns, (source, sport), (target, dport), sequence, acknowledged, flags, tcp[(offset >> 4) * 4 :], comment)


class Direction:
    def __init__(self):
        self.initial, self.data, self.end, self.fin = None, {}, 0, False

    def put(self, segment: Segment) -> None:
        if segment.flags & SYN:
            assert self.initial is None, "a second SYN"
            self.initial = segment.sequence
            return
        assert self.initial is not None, "no SYN before"
        at = (segment.sequence - self.initial - 1) & 0xFFFFFFFF
        if segment.payload:
            assert not self.fin, "data after FIN"
            assert at not in self.data and at >= self.end, f"bytes at {at} came twice: {self.end} are there"
            self.data[at] = segment.payload
            self.end = at + len(segment.payload)
        if segment.flags & FIN:
            assert at >= self.end and not self.fin
            self.end, self.fin = at, True

    def bytes(self) -> bytes:
        """All, where nothing is missing."""
        assert self.missing() == 0, f"{self.missing()} bytes are missing"
        return b"".join(self.data[at] for at in sorted(self.data))

    def missing(self) -> int:
        return self.end - sum(len(d) for d in self.data.values())

    def known_as(self) -> int:
        """What the other side acknowledges when it has all."""
        return (self.initial + 1 + self.end + self.fin) & 0xFFFFFFFF


class Connection:
    def __init__(self, client, server):
        self.client, self.server, self.segments, self.reset = client, server, [], False
        self.up, self.down = Direction(), Direction()  # from the client, from the server

    def put(self, segment: Segment) -> None:
        own, other = (self.up, self.down) if segment.source == self.client else (self.down, self.up)
        if segment.flags & ACK and other.initial is not None:
            assert (other.known_as() - segment.acknowledged) & 0xFFFFFFFF < 1 << 31, "acknowledges what was never sent"
        assert segment.flags & ACK or segment.flags == SYN
        self.segments.append(segment)
        self.reset |= bool(segment.flags & RST)
        own.put(segment)


class Capture:
    def __init__(self, data: bytes, complete=True):
        """`complete`: it was ended properly."""
        self.connections, self.statistics, self.comments, self.packets = [], None, [], 0
        kinds = list(blocks(data))
        assert [k for k, _ in kinds[:2]] == [SECTION, INTERFACE]
        order, major, minor, length = struct.unpack_from("<IHHq", kinds[0][1])
        assert (order, major, minor, length) == (0x1A2B3C4D, 1, 0, -1)
        link, _, _ = struct.unpack_from("<HHI", kinds[1][1])
        assert link == 101 and options(kinds[1][1][8:])[9] == b"\x09", "raw IP and nanoseconds"
        open_ones = {}
        for kind, body in kinds[2:]:
            if kind == STATISTICS:
                found = options(body[12:])
                self.statistics = {"received": struct.unpack("<Q", found[4])[0], "dropped": struct.unpack("<Q", found[5])[0]}
                continue
            assert kind == PACKET and self.statistics is None
            number, high, low, size, original = struct.unpack_from("<IIIII", body)
            assert number == 0 and size == original
            comment = options(body[20 + size + -size % 4 :]).get(1, b"").decode()
            segment = parse_packet(high << 32 | low, body[20 : 20 + size], comment)
            key = frozenset((segment.source, segment.target))
            if segment.flags == SYN:
                open_ones[key] = Connection(segment.source, segment.target)
                self.connections.append(open_ones[key])
            assert key in open_ones, "a packet before the SYN"
            open_ones[key].put(segment)
            self.packets += 1
        assert (self.statistics is not None) == complete

    @classmethod
    def of_file(cls, path, **kwargs) -> "Capture":
        return cls(path.read_bytes(), **kwargs)

    def only(self) -> Connection:
        assert len(self.connections) == 1, [(c.client, c.server) for c in self.connections]
        return self.connections[0]
