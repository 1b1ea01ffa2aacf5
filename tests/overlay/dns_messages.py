"""DNS as a client writes and reads it: slow, simple and not the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address

A, PTR, MX, TXT, AAAA, OPT = 1, 12, 15, 16, 28, 41


def name_bytes(name: str) -> bytes:
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def edns(udp_bytes: int, version: int = 0) -> bytes:
    return b"\0" + struct.pack(">HHBBHH", OPT, udp_bytes, 0, version, 0, 0)


def question(
    name: str, kind: int = A, *, number: int = 7, udp_bytes: int = 0, klass: int = 1, flags: int = 0x0100
) -> bytes:
    extra = edns(udp_bytes) if udp_bytes else b""
    header = struct.pack(">HHHHHH", number, flags, 1, 0, 0, 1 if extra else 0)
    return header + name_bytes(name) + struct.pack(">HH", kind, klass) + extra


def answer_to(query: bytes, addresses: list[str], *, code: int = 0, ttl: int = 30) -> bytes:
    """An upstream server's answer."""
    end = query.index(b"\0", 12) + 5
    records = b"".join(
        b"\xc0\x0c" + struct.pack(">HHIH", A, 1, ttl, 4) + IPv4Address(address).packed for address in addresses
    )
    return query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses), 0, 0) + query[12:end] + records


@dataclass
class Answer:
    number: int
    code: int
    authoritative: bool
    truncated: bool
    recursion: bool
    question: bytes
    addresses: list[str] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    ttls: set[int] = field(default_factory=set)
    udp_bytes: int = 0
    names: set[str] = field(default_factory=set)


def read_name(wire: bytes, at: int) -> tuple[str, int]:
    labels, end, jumps = [], 0, 0
    while wire[at]:
        if wire[at] >= 0xC0:
            end = end or at + 2
            at = (wire[at] & 0x3F) << 8 | wire[at + 1]
            jumps += 1
            assert jumps < 20
            continue
        labels.append(wire[at + 1 : at + 1 + wire[at]].decode("latin-1"))
        at += 1 + wire[at]
    return ".".join(labels), end or at + 1


def read(wire: bytes) -> Answer:
    number, flags, questions, answers, authorities, additions = struct.unpack_from(">HHHHHH", wire)
    assert flags & 0x8000
    at = 12
    for _ in range(questions):
        at = read_name(wire, at)[1] + 4
    bits = (bool(flags & 0x0400), bool(flags & 0x0200), bool(flags & 0x0080))
    found = Answer(number, flags & 15, *bits, wire[12:at])
    for _ in range(answers + authorities + additions):
        name, at = read_name(wire, at)
        kind, klass, ttl, length = struct.unpack_from(">HHIH", wire, at)
        at += 10
        if kind == OPT:
            found.udp_bytes = klass
            found.code |= ttl >> 24 << 4
        else:
            found.ttls.add(ttl)
            found.names.add(name)
        if kind == A:
            found.addresses.append(str(IPv4Address(wire[at : at + length])))
        elif kind == PTR:
            found.pointers.append(read_name(wire, at)[0])
        at += length
    assert at == len(wire)
    return found
