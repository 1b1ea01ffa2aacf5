"""Entries of the kernel's connection tracking, by ctnetlink (linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address

from overlay.rtnetlink import ACK, DUMP, REQUEST, attribute, attributes

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NFGEN = struct.Struct(">BBH")  # family, version, resource
_SUBSYSTEM = 1
_GET, _DELETE = 1, 2
_TUPLE_ORIGINAL, _TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = 1
_PROTO_NUMBER = 1
_NESTED = 0x8000
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_BUFFER_BYTES = 1 << 18
_TIMEOUT_S = 10.0


def forget_udp(backends: Collection[IPv4Address]) -> int:
    """Delete the UDP flows of this thread's namespace that lead to these addresses; how many there were.

    The next packet of such a flow is a first packet again, and is led to a backend that is there. Raises OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:  # NETLINK_NETFILTER
        netlink.settimeout(_TIMEOUT_S)
        netlink.bind((0, 0))
        found = [
            original
            for original, protocol, answers_from in _flows(netlink)
            if protocol == socket.IPPROTO_UDP and answers_from in backends
        ]
        return sum(_delete(netlink, number, original) for number, original in enumerate(found, 2))


def _flows(netlink: socket.socket) -> Iterator[tuple[bytes, int, IPv4Address]]:
    """All IPv4 flows: the tuple of the first packet as it came, the protocol, and who answers."""
    netlink.send(_message(_GET, DUMP | REQUEST, 1, b""))
    while True:
        data = netlink.recv(_BUFFER_BYTES)
        while len(data) >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                raise _error(body)
            found = dict(attributes(body[_NFGEN.size :]))
            reply = dict(attributes(found[_TUPLE_REPLY]))
            source = dict(attributes(reply[_TUPLE_IP])).get(_IP_SOURCE)
            number = dict(attributes(reply[_TUPLE_PROTO]))[_PROTO_NUMBER][0]
            if source is not None:
                yield found[_TUPLE_ORIGINAL], number, IPv4Address(source)
            data = data[(length + 3) & ~3 :]


def _delete(netlink: socket.socket, number: int, original: bytes) -> bool:
    netlink.send(_message(_DELETE, REQUEST | ACK, number, attribute(_TUPLE_ORIGINAL | _NESTED, original)))
    error = _error(netlink.recv(_BUFFER_BYTES)[_HEADER.size :])
    if error.errno not in (0, errno.ENOENT):
        raise error
    return error.errno == 0


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    body = _NFGEN.pack(socket.AF_INET, 0, 0) + body
    return _HEADER.pack(_HEADER.size + len(body), _SUBSYSTEM << 8 | kind, flags, number, 0) + body


def _error(body: bytes) -> OSError:
    code = -struct.unpack_from("=i", body)[0]
    return OSError(code, os.strerror(code))
