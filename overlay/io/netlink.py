"""Links and addresses of the network namespace, by rtnetlink (RFC 3549; linux/rtnetlink.h).

Only dumps for now; the overlay adds what changes the kernel.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFINFO = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change mask
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ATTR = struct.Struct("=HH")

_RTM_GETLINK, _RTM_GETADDR = 18, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP, _IFF_LOOPBACK = 1, 8
_RECEIVE_BYTES = 1 << 18


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


def links() -> list[Link]:
    """All interfaces. Raises OSError."""
    found = []
    for body in _dump(_RTM_GETLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, _, index, flags, _ = _IFINFO.unpack_from(body)
        attributes = dict(_attributes(body[_IFINFO.size :]))
        info = dict(_attributes(attributes.get(_IFLA_LINKINFO, b"")))
        found.append(
            Link(
                index=index,
                name=attributes[_IFLA_IFNAME].rstrip(b"\0").decode(),
                kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
                up=bool(flags & _IFF_UP),
                loopback=bool(flags & _IFF_LOOPBACK),
            )
        )
    return found


def addresses() -> list[Address]:
    """All addresses of all interfaces. Raises OSError."""
    found = []
    for body in _dump(_RTM_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, prefix, _, scope, index = _IFADDR.unpack_from(body)
        attributes = dict(_attributes(body[_IFADDR.size :]))
        raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if raw:
            found.append(Address(index, ip_address(raw), prefix, scope))
    return found


def _dump(kind: int, body: bytes) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        netlink.send(_NLMSG.pack(_NLMSG.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        while True:
            data = netlink.recv(_RECEIVE_BYTES)
            while data:
                length, message, _, _, _ = _NLMSG.unpack_from(data)
                if message == _NLMSG_DONE:
                    return
                if message == _NLMSG_ERROR:
                    code = struct.unpack_from("=i", data, _NLMSG.size)[0]
                    raise OSError(-code, "netlink refused the dump")
                yield data[_NLMSG.size : length]
                data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTR.size:
        length, kind = _ATTR.unpack_from(data)
        if length < _ATTR.size:
            return
        yield kind & 0x3FFF, data[_ATTR.size : length]
        data = data[(length + 3) & ~3 :]
