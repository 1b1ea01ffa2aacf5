"""Messages of rtnetlink (RFC 3549), packed and read: the shapes of all that the overlay tells the kernel.

Each function here makes one message; overlay/io/netlink.py carries it. Numbers are the kernel's, from
linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h and linux/if_addr.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, GETROUTE = 24, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400

_IFINFO = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change mask
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # family, lengths of destination and source, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NESTED = 0x8000

_INET, _BRIDGE = 2, 7
_UP, _LOOPBACK = 1, 8
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_NET_NS_FD, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 28, 31, 32
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_MCAST_SNOOPING, _BR_NF_CALL_IPTABLES = 1, 5, 23, 36
_BRPORT_HAIRPIN = 4
_VXLAN_ID, _VXLAN_LEARNING, _VXLAN_PROXY, _VXLAN_PORT = 1, 7, 11, 15
_VETH_PEER = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_NTF_SELF = 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_TABLE_MAIN, _PROTO_STATIC, _UNICAST, _SCOPE_LINK = 254, 4, 1, 253


@dataclass(frozen=True, slots=True)
class Message:
    """One message without its header. flags: those of its kind; REQUEST and ACK are added when it is sent."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Device:
    """One interface as a dump shows it. kind: "bridge", "vxlan", "veth", or empty for a real device.

    vni, port: of a VXLAN. filters: a bridge hands its packets to the IP layer's rules.
    """

    index: int
    name: str
    kind: str
    up: bool
    mtu: int
    mac: str
    master: int = 0
    loopback: bool = False
    vni: int = 0
    port: int = 0
    filters: bool = False


# --- packing -------------------------------------------------------------------------------------------------------


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _u8(kind: int, value: int) -> bytes:
    return attribute(kind, bytes([value]))


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _mac(kind: int, value: str) -> bytes:
    return attribute(kind, bytes.fromhex(value.replace(":", "")))


def _ifinfo(index: int = 0, up: bool = False) -> bytes:
    return _IFINFO.pack(0, 0, index, _UP if up else 0, _UP if up else 0)


# --- links ---------------------------------------------------------------------------------------------------------


def bridge(name: str, mac: str, mtu: int) -> Message:
    """A new bridge, up: no spanning tree, no delay, no snooping, and packets pass the rules of the IP layer."""
    data = (
        _u32(_BR_FORWARD_DELAY, 0),
        _u32(_BR_STP_STATE, 0),
        _u8(_BR_MCAST_SNOOPING, 0),
        _u8(_BR_NF_CALL_IPTABLES, 1),
    )
    info = nested(_IFLA_LINKINFO, _text(_INFO_KIND, "bridge"), nested(_INFO_DATA, *data))
    body = (_ifinfo(up=True), _text(_IFLA_IFNAME, name), _u32(_IFLA_MTU, mtu), _mac(_IFLA_ADDRESS, mac), info)
    return Message(NEWLINK, CREATE | EXCLUSIVE, b"".join(body))


def vxlan(name: str, vni: int, port: int, mtu: int, namespace: int) -> Message:
    """A new VXLAN for another namespace (a file descriptor). Its UDP socket stays where the message is sent from."""
    data = (
        _u32(_VXLAN_ID, vni),
        attribute(_VXLAN_PORT, struct.pack(">H", port)),
        _u8(_VXLAN_LEARNING, 0),
        _u8(_VXLAN_PROXY, 1),
    )
    info = nested(_IFLA_LINKINFO, _text(_INFO_KIND, "vxlan"), nested(_INFO_DATA, *data))
    body = (_ifinfo(), _text(_IFLA_IFNAME, name), _u32(_IFLA_MTU, mtu), _u32(_IFLA_NET_NS_FD, namespace), info)
    return Message(NEWLINK, CREATE | EXCLUSIVE, b"".join(body))


def veth(name: str, peer: str, peer_namespace: int, mtu: int, peer_mac: str = "", master: int = 0) -> Message:
    """A new pair: one end here, up, in a bridge; the other, down, in another namespace (a file descriptor).

    A peer that is created up is refused by kernel 6.1 (ENOTCONN).
    """
    queues = _u32(_IFLA_NUM_TX_QUEUES, 1) + _u32(_IFLA_NUM_RX_QUEUES, 1)
    other = [_ifinfo(), _text(_IFLA_IFNAME, peer), queues, _u32(_IFLA_MTU, mtu)]
    if peer_mac:
        other.append(_mac(_IFLA_ADDRESS, peer_mac))
    other.append(_u32(_IFLA_NET_NS_FD, peer_namespace))
    data = nested(_INFO_DATA, attribute(_VETH_PEER, b"".join(other)))
    body = [_ifinfo(up=True), _text(_IFLA_IFNAME, name), _u32(_IFLA_MTU, mtu), queues]
    if master:
        body.append(_u32(_IFLA_MASTER, master))
    body.append(nested(_IFLA_LINKINFO, _text(_INFO_KIND, "veth"), data))
    return Message(NEWLINK, CREATE | EXCLUSIVE, b"".join(body))


def change(
    index: int, *, up: bool = False, mtu: int = 0, mac: str = "", master: int = 0, filters: bool = False
) -> Message:
    """Set what is given of an existing interface. filters: of a bridge."""
    body = [_ifinfo(index, up)]
    if mtu:
        body.append(_u32(_IFLA_MTU, mtu))
    if mac:
        body.append(_mac(_IFLA_ADDRESS, mac))
    if master:
        body.append(_u32(_IFLA_MASTER, master))
    if filters:
        data = nested(_INFO_DATA, _u8(_BR_NF_CALL_IPTABLES, 1))
        body.append(nested(_IFLA_LINKINFO, _text(_INFO_KIND, "bridge"), data))
    return Message(NEWLINK, 0, b"".join(body))


def hairpin(index: int) -> Message:
    """A port of a bridge sends packets back where they came from, as a container that calls itself needs it."""
    slave = nested(_INFO_SLAVE_DATA, _u8(_BRPORT_HAIRPIN, 1))
    return Message(NEWLINK, 0, _ifinfo(index) + nested(_IFLA_LINKINFO, _text(_INFO_SLAVE_KIND, "bridge"), slave))


def remove_link(name: str) -> Message:
    """The interface of this name goes."""
    return Message(DELLINK, 0, _ifinfo() + _text(_IFLA_IFNAME, name))


def all_links() -> Message:
    """A dump of the interfaces."""
    return Message(GETLINK, DUMP, _ifinfo())


# --- addresses and routes ------------------------------------------------------------------------------------------


def address(index: int, value: IPv4Interface, remove: bool = False) -> Message:
    """An address of an interface, with its prefix."""
    packed = value.ip.packed
    body = _IFADDR.pack(_INET, value.network.prefixlen, 0, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    return Message(DELADDR, 0, body) if remove else Message(NEWADDR, CREATE | REPLACE, body)


def all_addresses() -> Message:
    """A dump of the IPv4 addresses."""
    return Message(GETADDR, DUMP, _IFADDR.pack(_INET, 0, 0, 0, 0))


def default_route(gateway: IPv4Address, index: int) -> Message:
    """The default route, by a gateway behind an interface."""
    body = _RTMSG.pack(_INET, 0, 0, 0, _TABLE_MAIN, _PROTO_STATIC, 0, _UNICAST, 0)
    body += attribute(_RTA_GATEWAY, gateway.packed) + _u32(_RTA_OIF, index)
    return Message(NEWROUTE, CREATE | REPLACE, body)


# --- neighbours ----------------------------------------------------------------------------------------------------


def neighbour(index: int, value: IPv4Address, mac: str = "", remove: bool = False) -> Message:
    """A permanent neighbour: address to hardware address. A VXLAN answers ARP from these (proxy)."""
    body = _NDMSG.pack(_INET, index, _NUD_PERMANENT, 0, 0) + attribute(_NDA_DST, value.packed)
    if remove:
        return Message(DELNEIGH, 0, body)
    return Message(NEWNEIGH, CREATE | REPLACE, body + _mac(_NDA_LLADDR, mac))


def forwarding(index: int, mac: str, node: IPv4Address, remove: bool = False) -> Message:
    """Frames to a hardware address go to a node: an entry of a VXLAN's forwarding database (FDB)."""
    body = _NDMSG.pack(_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0)
    body += _mac(_NDA_LLADDR, mac) + attribute(_NDA_DST, node.packed)
    return Message(DELNEIGH, 0, body) if remove else Message(NEWNEIGH, CREATE | REPLACE, body)


def all_neighbours() -> Message:
    """A dump of the IPv4 neighbours."""
    return Message(GETNEIGH, DUMP, _NDMSG.pack(_INET, 0, 0, 0, 0))


def all_forwarding() -> Message:
    """A dump of the forwarding databases."""
    return Message(GETNEIGH, DUMP, _NDMSG.pack(_BRIDGE, 0, 0, 0, 0))


# --- reading -------------------------------------------------------------------------------------------------------


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in a message, without their flags."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def devices(bodies: Sequence[bytes]) -> list[Device]:
    """What all_links() brought."""
    return [_device(body) for body in bodies]


def _device(body: bytes) -> Device:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = dict(attributes(body[_IFINFO.size :]))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    kind = info.get(_INFO_KIND, b"").rstrip(b"\0").decode()
    data = dict(attributes(info.get(_INFO_DATA, b"")))
    vxlan_port = data.get(_VXLAN_PORT, b"\0\0")
    return Device(
        index=index,
        name=found[_IFLA_IFNAME].rstrip(b"\0").decode(),
        kind=kind,
        up=bool(flags & _UP),
        mtu=int.from_bytes(found.get(_IFLA_MTU, b""), sys.byteorder),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        master=int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder),
        loopback=bool(flags & _LOOPBACK),
        vni=int.from_bytes(data.get(_VXLAN_ID, b""), sys.byteorder) if kind == "vxlan" else 0,
        port=int.from_bytes(vxlan_port, "big") if kind == "vxlan" else 0,
        filters=kind == "bridge" and data.get(_BR_NF_CALL_IPTABLES, b"\0") == b"\1",
    )


def interfaces_of(bodies: Sequence[bytes], index: int) -> frozenset[IPv4Interface]:
    """What all_addresses() brought, of one interface."""
    out = []
    for body in bodies:
        family, prefix, _, _, at = _IFADDR.unpack_from(body)
        found = dict(attributes(body[_IFADDR.size :]))
        local = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if family == _INET and at == index and local:
            out.append(IPv4Interface((local, prefix)))
    return frozenset(out)


def neighbours_of(bodies: Sequence[bytes]) -> list[tuple[int, IPv4Address, str]]:
    """What all_neighbours() brought: interface, address, hardware address; the permanent ones."""
    out = []
    for body in bodies:
        family, index, state, _, _ = _NDMSG.unpack_from(body)
        found = dict(attributes(body[_NDMSG.size :]))
        if family == _INET and state & _NUD_PERMANENT and _NDA_DST in found and _NDA_LLADDR in found:
            out.append((index, IPv4Address(found[_NDA_DST]), found[_NDA_LLADDR].hex(":")))
    return out


def forwarding_of(bodies: Sequence[bytes]) -> list[tuple[int, str, IPv4Address]]:
    """What all_forwarding() brought: interface, hardware address, node; those of VXLANs."""
    out = []
    for body in bodies:
        family, index, _, flags, _ = _NDMSG.unpack_from(body)
        found = dict(attributes(body[_NDMSG.size :]))
        if family == _BRIDGE and flags & _NTF_SELF and len(found.get(_NDA_DST, b"")) == 4 and _NDA_LLADDR in found:
            out.append((index, found[_NDA_LLADDR].hex(":"), IPv4Address(found[_NDA_DST])))
    return out
