"""Network addresses as text: "host:port", with brackets around an IPv6 host.

(go: net.SplitHostPort, net.JoinHostPort)
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

PORT_MAX = 65535


def join_host_port(host: str, port: int | str) -> str:
    """ "host:port"; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(addr: str) -> tuple[str, str] | None:
    """Host without brackets and the text of the port; None when there is no port or the brackets are wrong."""
    if addr.startswith("["):
        host, bracket, port = addr[1:].partition("]")
        return (host, port[1:]) if bracket and port.startswith(":") and ":" not in port[1:] else None
    host, colon, port = addr.rpartition(":")
    return (host, port) if colon and ":" not in host else None


def parse_host_port(addr: str) -> tuple[str, int]:
    """Host without brackets and the number of the port, as sockets take them. Raises ValueError."""
    host, colon, port = addr.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= PORT_MAX):
        raise ValueError(f"{addr!r} is not an address with a port")
    return host.strip("[]"), int(port)


def host_of(addr: str) -> str:
    """The host of "host:port", without brackets; empty when there is no port."""
    return addr.rpartition(":")[0].strip("[]")


def at_host(host: str, addr: str) -> str:
    """``addr`` ("host:port") with ``host`` in the place of its own host."""
    return join_host_port(host, addr.rpartition(":")[2])


def ip_of(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that ``host`` is, an IPv4 address mapped into IPv6 as IPv4; None for a name."""
    try:
        ip = ip_address(host)
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def is_unspecified(host: str) -> bool:
    """Whether ``host`` stands for all addresses of this machine: 0.0.0.0, :: or nothing."""
    ip = ip_of(host)
    return not host or (ip is not None and ip.is_unspecified)
