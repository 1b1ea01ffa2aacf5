"""Keeps the host's side of the routing mesh as overlay/mesh.py wants it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Collection
from ipaddress import IPv4Interface
from pathlib import Path

from overlay import mesh, rtnetlink
from overlay.errors import OverlayError
from overlay.io.namespaces import in_namespace
from overlay.io.netlink import Netlink
from overlay.io.nfnetlink import Generations
from overlay.io.packet_rules import run_nft
from overlay.rules import HOST_SIDE, INGRESS_SIDE, UPLINK

_TIMEOUT_S = 20.0
_MTU_BYTES = 1500  # of the pair; the overlay behind it has less, and says so to senders


class Mesh:
    """See the module. host_namespace: a file descriptor; None: this process's. Functions block for milliseconds."""

    def __init__(self, host_namespace: int | None = None) -> None:
        self._host_fd = os.open("/proc/self/ns/net", os.O_RDONLY) if host_namespace is None else os.dup(host_namespace)
        self._host = Netlink(self._host_fd)
        self._generations = Generations(self._host_fd)
        self._generation = -1
        self._ports: frozenset[tuple[str, int]] = frozenset()

    def close(self) -> None:
        """Let go of everything; the mesh stays."""
        self._host.close()
        self._generations.close()
        os.close(self._host_fd)

    def reconcile(self, namespace: int | None, ports: Collection[tuple[str, int]]) -> None:
        """Publish these ports, ("tcp", 80) and so on, and no others. Raises OverlayError.

        namespace: of the ingress network; None: there is none here.
        """
        ports = frozenset(ports) if namespace is not None else frozenset()
        try:
            if namespace is not None:
                self._join(namespace)
                in_namespace(self._host_fd, _forward)
            self._write(ports)
            if namespace is None:
                self._host.change([rtnetlink.remove_link(mesh.HOST_LINK)], ignore=[errno.ENODEV])
                in_namespace(self._host_fd, _forward_no_more)
        except OSError as error:
            raise OverlayError(f"routing mesh: {error.strerror or error}") from error

    def check(self) -> bool:
        """Whether all is as it was left. Any change of the host's rules counts as one of ours."""
        try:
            unchanged = self._generations.current() == self._generation
            return unchanged and (not self._ports or in_namespace(self._host_fd, _is_forwarded))
        except OSError:
            return False

    def _write(self, ports: frozenset[tuple[str, int]]) -> None:
        if ports == self._ports and self._generations.current() == self._generation:
            return
        before = self._generations.current()
        run_nft(self._host_fd, mesh.host_script(ports))
        after = self._generations.current()
        self._ports = ports
        self._generation = after if after <= before + 1 else before

    def _join(self, namespace: int) -> None:
        """The pair of interfaces between the host and the ingress network's namespace."""
        inside = Netlink(namespace)
        try:
            if not (_has(inside, UPLINK) and _has(self._host, mesh.HOST_LINK)):
                self._host.change([rtnetlink.remove_link(mesh.HOST_LINK)], ignore=[errno.ENODEV])
                inside.change([rtnetlink.remove_link(UPLINK)], ignore=[errno.ENODEV])
                self._host.change([rtnetlink.veth(mesh.HOST_LINK, UPLINK, namespace, _MTU_BYTES)])
            _set_up(self._host, mesh.HOST_LINK, IPv4Interface(f"{HOST_SIDE}/{mesh.PREFIX_BITS}"))
            index = _set_up(inside, UPLINK, IPv4Interface(f"{INGRESS_SIDE}/{mesh.PREFIX_BITS}"))
            inside.change([rtnetlink.default_route(HOST_SIDE, index)])
        finally:
            inside.close()


def _has(netlink: Netlink, name: str) -> bool:
    return any(one.name == name for one in rtnetlink.devices(netlink.dump(rtnetlink.all_links())))


def _set_up(netlink: Netlink, name: str, address: IPv4Interface) -> int:
    devices = rtnetlink.devices(netlink.dump(rtnetlink.all_links()))
    index = next(one.index for one in devices if one.name == name)
    netlink.change([rtnetlink.address(index, address), rtnetlink.change(index, up=True)])
    return index


# --- in the host's namespace ---------------------------------------------------------------------------------------


def _forward() -> None:
    """Let the kernel forward, and iptables, where it is used, accept what is forwarded."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path(f"/proc/sys/net/ipv4/conf/{mesh.HOST_LINK}/route_localnet").write_text("1")
    if shutil.which("iptables") is None or _is_forwarded():
        return
    _iptables("-N", mesh.FORWARD_CHAIN)
    for rule in mesh.forward_rules():
        if not _iptables("-C", mesh.FORWARD_CHAIN, *rule):
            _iptables("-A", mesh.FORWARD_CHAIN, *rule)
    jump = ("FORWARD", "-j", mesh.FORWARD_CHAIN)
    if not _iptables("-C", *jump):
        _iptables("-I", *jump)


def _forward_no_more() -> None:
    if shutil.which("iptables") is not None and _is_forwarded():
        _iptables("-D", "FORWARD", "-j", mesh.FORWARD_CHAIN)
        _iptables("-F", mesh.FORWARD_CHAIN)
        _iptables("-X", mesh.FORWARD_CHAIN)


def _is_forwarded() -> bool:
    return shutil.which("iptables") is None or _iptables("-C", "FORWARD", "-j", mesh.FORWARD_CHAIN)


def _iptables(*words: str) -> bool:
    done = subprocess.run(
        ["iptables", "-w", "5", *words], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    return done.returncode == 0
