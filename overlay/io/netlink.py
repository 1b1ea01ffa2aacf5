"""A socket to the kernel's rtnetlink: messages in batches, answers with the kernel's own words (RFC 3549).

One ``Netlink`` speaks to one network namespace, from any thread.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from overlay import defaults
from overlay.io.namespaces import in_namespace
from overlay.rtnetlink import ACK, DUMP, GETADDR, REQUEST, Message, all_links, attributes, devices

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ERROR = struct.Struct("=i")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR, _NLM_F_ACK_TLVS = 0x10, 0x200
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_NLMSGERR_ATTR_MSG = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. kind is empty for real devices, else "veth", "bridge", "vxlan", ..."""

    index: int
    name: str
    kind: str
    up: bool
    loopback: bool


@dataclass(frozen=True, slots=True)
class Address:
    """One address of the interface ``index``; prefix in bits; scope as the kernel numbers it (0 global, 253 link)."""

    index: int
    ip: IPv4Address | IPv6Address
    prefix: int
    scope: int


class Netlink:
    """See the module. namespace: a file descriptor; None: that of this process."""

    def __init__(self, namespace: int | None = None) -> None:
        self._socket = _open() if namespace is None else in_namespace(namespace, _open)
        self._sequence = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def change(self, messages: Sequence[Message], ignore: Collection[int] = ()) -> None:
        """Perform all messages in order. One that fails does not stop those behind it. Raises the first OSError.

        ignore: error numbers that are no failure.
        """
        size = defaults.NETLINK_MESSAGES_PER_BATCH
        failure: OSError | None = None
        for start in range(0, len(messages), size):
            for error in self._batch(messages[start : start + size]):
                if error.errno not in ignore and failure is None:
                    failure = error
        if failure is not None:
            raise failure

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of all answers. A dump that changed under way is made again. Raises OSError."""
        for _ in range(defaults.NETLINK_DUMP_ATTEMPTS_MAX):
            bodies, whole = self._dump(message)
            if whole:
                break
        return bodies

    def _batch(self, messages: Sequence[Message]) -> list[OSError]:
        failures = []
        with self._lock:
            first = self._sequence + 1
            self._sequence += len(messages)
            packed = [
                _header(message, message.flags | REQUEST | ACK, number)
                for number, message in enumerate(messages, first)
            ]
            self._socket.send(b"".join(packed))
            waiting = {*range(first, first + len(messages))}
            while waiting:
                for kind, flags, number, body in _messages(self._socket.recv(_BUFFER_BYTES)):
                    if kind == _NLMSG_ERROR and number in waiting:
                        waiting.discard(number)
                        if (error := _error(flags, body)) is not None:
                            failures.append(error)
        return failures

    def _dump(self, message: Message) -> tuple[list[bytes], bool]:
        bodies: list[bytes] = []
        whole = True
        with self._lock:
            self._sequence += 1
            self._socket.send(_header(message, DUMP | REQUEST, self._sequence))
            while True:
                for kind, flags, number, body in _messages(self._socket.recv(_BUFFER_BYTES)):
                    if number != self._sequence:
                        continue
                    whole = whole and not flags & _NLM_F_DUMP_INTR
                    if kind == _NLMSG_DONE:
                        return bodies, whole
                    if kind == _NLMSG_ERROR:
                        raise _error(flags, body) or OSError(0, "netlink answered a dump with nothing")
                    bodies.append(body)


def links() -> list[Link]:
    """All interfaces of this process's namespace. Raises OSError."""
    netlink = Netlink()
    try:
        found = devices(netlink.dump(all_links()))
    finally:
        netlink.close()
    return [Link(one.index, one.name, one.kind, one.up, one.loopback) for one in found]


def addresses() -> list[Address]:
    """All addresses of all interfaces of this process's namespace. Raises OSError."""
    netlink = Netlink()
    try:
        bodies = netlink.dump(Message(GETADDR, DUMP, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))
    finally:
        netlink.close()
    found = []
    for body in bodies:
        _, prefix, _, scope, index = _IFADDR.unpack_from(body)
        named = dict(attributes(body[_IFADDR.size :]))
        raw = named.get(_IFA_LOCAL) or named.get(_IFA_ADDRESS)
        if raw:
            found.append(Address(index, ip_address(raw), prefix, scope))
    return found


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    opened.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
    opened.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
    opened.bind((0, 0))
    return opened


def _header(message: Message, flags: int, number: int) -> bytes:
    length = _HEADER.size + len(message.body)
    return _HEADER.pack(length, message.kind, flags, number, 0) + message.body + b"\0" * (-length % 4)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of a datagram: type, flags, sequence number, body."""
    while len(data) >= _HEADER.size:
        length, kind, flags, number, _ = _HEADER.unpack_from(data)
        yield kind, flags, number, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _error(flags: int, body: bytes) -> OSError | None:
    """What an acknowledgement says; None: that it is done."""
    code = -_ERROR.unpack_from(body)[0]
    if code == 0:
        return None
    text = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        said = dict(attributes(body[_ERROR.size + _HEADER.size :])).get(_NLMSGERR_ATTR_MSG, b"")
        text += f": {said.rstrip(bytes(1)).decode(errors='replace')}" if said else ""
    return OSError(code, text)
