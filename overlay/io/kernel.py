"""The kernel's side of the networks of this node: what overlay/plan.py wants is done here, by rtnetlink.

Each network has a namespace of its own, bound to a file ``<directory>/<network ID>``, so that it and its traffic
outlive this process. Functions block for milliseconds; they may be called from any thread, one at a time.

(libnetwork: drivers/overlay/ov_network.go, osl/namespace_linux.go)
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from overlay import defaults, plan, rtnetlink
from overlay.errors import OverlayError
from overlay.io import namespaces
from overlay.io.netlink import Netlink
from overlay.plan import BRIDGE, CONTAINER_PREFIX, PORT_PREFIX, Actual, Bridge, Operation, Overlay, Vxlan

_GONE = (errno.ENODEV, errno.ENOENT, errno.EADDRNOTAVAIL)
_BRIDGE_FILTER = Path("/proc/sys/net/bridge")
_SHORT_ID = 10
_RETRY_S = 0.02


@dataclass(slots=True)
class _Namespace:
    """One network's namespace, open."""

    fd: int
    netlink: Netlink

    def close(self) -> None:
        self.netlink.close()
        os.close(self.fd)


class Kernel:
    """See the module. host_namespace: where nodes reach each other (a file descriptor); None: this process's."""

    def __init__(self, directory: Path, host_namespace: int | None = None) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._host_fd = os.open("/proc/self/ns/net", os.O_RDONLY) if host_namespace is None else os.dup(host_namespace)
        self._host = Netlink(host_namespace)
        self._open: dict[str, _Namespace] = {}

    def close(self) -> None:
        """Let go of everything; it stays in the kernel."""
        for namespace in self._open.values():
            namespace.close()
        self._open.clear()
        self._host.close()
        os.close(self._host_fd)

    # --- networks --------------------------------------------------------------------------------------------------

    def networks(self) -> list[str]:
        """The IDs of the networks that have a namespace here, or the file of one."""
        return sorted(path.name for path in self._directory.iterdir())

    def exists(self, network_id: str) -> bool:
        """Whether a network has a namespace here, and not only the file of one from before a reboot."""
        return namespaces.is_bound(self._directory / network_id)

    def reconcile(self, overlay: Overlay) -> None:
        """Make the namespace of a network what it should be. Raises OverlayError with the kernel's words."""
        with _explained(f"network {overlay.network_id}"):
            operations = plan.plan(overlay, self._actual(self._namespace(overlay.network_id)))
        self.perform(overlay, operations)

    def perform(self, overlay: Overlay, operations: Sequence[Operation]) -> None:
        """Perform operations of a plan for this network, in their order. Raises OverlayError."""
        with _explained(f"network {overlay.network_id}"):
            namespace = self._namespace(overlay.network_id)
            for operation in operations:
                if isinstance(operation, _STRUCTURE):
                    self._build(overlay.network_id, namespace, operation)
            self._apply(namespace, operations)

    def differences(self, overlay: Overlay) -> list[str]:
        """What is not as it should be, as sentences. Raises OverlayError."""
        path = self._directory / overlay.network_id
        if not namespaces.is_bound(path):
            return [f"the namespace of network {overlay.network_id} is missing"]
        with _explained(f"network {overlay.network_id}"):
            operations = plan.plan(overlay, self._actual(self._namespace(overlay.network_id)))
        return [f"missing: {operation}" for operation in operations]

    def remove(self, network_id: str) -> None:
        """Take a network's namespace away, with all that is in it."""
        namespace = self._open.pop(network_id, None)
        path = self._directory / network_id
        with _explained(f"network {network_id}"):
            if namespace is None and namespaces.is_bound(path):
                namespace = self._enter(path)
            if namespace is not None:
                for device in self._devices(namespace).values():
                    if device.kind in ("vxlan", "veth"):  # at once: the namespace itself ends when nobody holds it
                        namespace.netlink.change([rtnetlink.remove_link(device.name)], ignore=_GONE)
                namespace.close()
            namespaces.drop(path)

    def namespace(self, network_id: str) -> int:
        """A file descriptor of a network's namespace, open until remove() or close(). Raises OverlayError."""
        with _explained(f"network {network_id}"):
            return self._namespace(network_id).fd

    # --- endpoints -------------------------------------------------------------------------------------------------

    def join(self, network_id: str, endpoint_id: str, mac: str) -> str:
        """The interface for a container, by its name in the host's namespace; the engine moves it from there.

        One that is left from an earlier attempt is replaced. Raises OverlayError.
        """
        port, inner = PORT_PREFIX + endpoint_id[:_SHORT_ID], CONTAINER_PREFIX + endpoint_id[:_SHORT_ID]
        with _explained(f"endpoint {endpoint_id} of network {network_id}"):
            self.leave(network_id, endpoint_id)
            namespace = self._namespace(network_id)
            bridge = self._devices(namespace)[BRIDGE]
            pair = rtnetlink.veth(port, inner, self._host_fd, bridge.mtu, mac, bridge.index)
            namespace.netlink.change([pair])
            namespace.netlink.change([rtnetlink.hairpin(self._devices(namespace)[port].index)])
        return inner

    def leave(self, network_id: str, endpoint_id: str) -> None:
        """Take a container's interface away, wherever it is. Raises OverlayError."""
        with _explained(f"endpoint {endpoint_id} of network {network_id}"):
            self._host.change([rtnetlink.remove_link(CONTAINER_PREFIX + endpoint_id[:_SHORT_ID])], ignore=_GONE)
            if namespaces.is_bound(self._directory / network_id):
                port = rtnetlink.remove_link(PORT_PREFIX + endpoint_id[:_SHORT_ID])
                self._namespace(network_id).netlink.change([port], ignore=_GONE)

    def endpoints(self, network_id: str) -> set[str]:
        """The short IDs of the endpoints that have an interface in a network."""
        if not namespaces.is_bound(self._directory / network_id):
            return set()
        with _explained(f"network {network_id}"):
            found = self._devices(self._namespace(network_id))
        return {name.removeprefix(PORT_PREFIX) for name, one in found.items() if _is_port(one)}

    # --- the host --------------------------------------------------------------------------------------------------

    def underlay_mtu(self, address: IPv4Address) -> int:
        """The MTU of the device with this address, in bytes; 1500 if no device has it."""
        bodies = self._host.dump(rtnetlink.all_addresses())
        for device in rtnetlink.devices(self._host.dump(rtnetlink.all_links())):
            if any(one.ip == address for one in rtnetlink.interfaces_of(bodies, device.index)):
                return device.mtu
        return defaults.UNDERLAY_MTU_BYTES

    # --- inside ----------------------------------------------------------------------------------------------------

    def _namespace(self, network_id: str) -> _Namespace:
        """The open namespace of a network; made if it is missing or only its file is left."""
        path = self._directory / network_id
        known = self._open.get(network_id)
        if known is not None and namespaces.is_bound(path):
            return known
        if known is not None:
            self._open.pop(network_id).close()
        if not namespaces.is_bound(path):
            path.unlink(missing_ok=True)
            namespaces.make(path)
        namespace = self._open[network_id] = self._enter(path)
        namespaces.in_namespace(namespace.fd, _set_up)
        return namespace

    def _enter(self, path: Path) -> _Namespace:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _Namespace(fd, Netlink(fd))
        except OSError:
            os.close(fd)
            raise

    def _devices(self, namespace: _Namespace) -> dict[str, rtnetlink.Device]:
        return {one.name: one for one in rtnetlink.devices(namespace.netlink.dump(rtnetlink.all_links()))}

    def _actual(self, namespace: _Namespace) -> Actual:
        devices = self._devices(namespace)
        bridge = devices.get(BRIDGE)
        index = bridge.index if bridge else -1
        tunnels = {one.index: one for one in devices.values() if one.kind == "vxlan"}
        neighbours: dict[int, dict[IPv4Address, str]] = {one.vni: {} for one in tunnels.values()}
        forwarding: dict[int, dict[str, IPv4Address]] = {one.vni: {} for one in tunnels.values()}
        for at, address, mac in rtnetlink.neighbours_of(namespace.netlink.dump(rtnetlink.all_neighbours())):
            if at in tunnels:
                neighbours[tunnels[at].vni][address] = mac
        for at, mac, node in rtnetlink.forwarding_of(namespace.netlink.dump(rtnetlink.all_forwarding())):
            if at in tunnels:
                forwarding[tunnels[at].vni][mac] = node
        return Actual(
            bridge=Bridge(bridge.mac, bridge.mtu, bridge.up, bridge.filters) if bridge else None,
            vxlans={
                one.vni: Vxlan(one.vni, one.port, one.mtu, one.up, joined=one.master == index)
                for one in tunnels.values()
            },
            addresses=rtnetlink.interfaces_of(namespace.netlink.dump(rtnetlink.all_addresses()), index),
            neighbours=neighbours,
            forwarding=forwarding,
        )

    def _build(self, network_id: str, namespace: _Namespace, operation: Operation) -> None:
        """Operations that make or change interfaces: one at a time, because later ones need the index."""
        own, devices = namespace.netlink, self._devices(namespace)
        match operation:
            case plan.MakeBridge(mac, mtu):
                own.change([rtnetlink.bridge(BRIDGE, mac, mtu)])
            case plan.SetBridge(mac, mtu):
                own.change([rtnetlink.change(devices[BRIDGE].index, up=True, mtu=mtu, mac=mac, filters=True)])
            case plan.RemoveVxlan(vni):
                names = [one.name for one in devices.values() if one.vni == vni]
                own.change([rtnetlink.remove_link(name) for name in names], ignore=_GONE)
            case plan.MakeVxlan(vni, port, mtu):
                self._make_vxlan(network_id, namespace, rtnetlink.vxlan(_name(vni), vni, port, mtu, namespace.fd))
            case plan.JoinVxlan(vni, mtu):
                index = devices[_name(vni)].index
                own.change([rtnetlink.change(index, up=True, mtu=mtu, master=devices[BRIDGE].index)])

    def _make_vxlan(self, network_id: str, namespace: _Namespace, message: rtnetlink.Message) -> None:
        """The kernel lets go of a network identifier a while after its last user: wait for it."""
        deadline = time.monotonic() + defaults.VNI_WAITS_S
        while True:
            try:
                self._host.change([message])
                return
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
                if time.monotonic() > deadline:
                    raise OverlayError(
                        f"network {network_id}: its VXLAN network identifier and port are in use on this host"
                    ) from error
            time.sleep(_RETRY_S)

    def _apply(self, namespace: _Namespace, operations: Sequence[Operation]) -> None:
        if all(isinstance(one, _STRUCTURE) for one in operations):
            return
        devices = self._devices(namespace)
        indexes = {one.vni: one.index for one in devices.values() if one.kind == "vxlan"}
        added = [_addition(one, devices[BRIDGE].index, indexes) for one in operations]
        namespace.netlink.change([one for one in added if one is not None])
        removed = [_removal(one, devices[BRIDGE].index, indexes) for one in operations]
        namespace.netlink.change([one for one in removed if one is not None], ignore=_GONE)


_STRUCTURE = (plan.MakeBridge, plan.SetBridge, plan.RemoveVxlan, plan.MakeVxlan, plan.JoinVxlan)


def bridge_filter_available() -> bool:
    """Whether packets of a bridge can pass the rules of the IP layer (br_netfilter)."""
    return _BRIDGE_FILTER.exists()


def _addition(operation: Operation, bridge: int, vxlans: dict[int, int]) -> rtnetlink.Message | None:
    """The message of an operation that adds an address or an entry; None for the others."""
    match operation:
        case plan.SetAddress(address):
            return rtnetlink.address(bridge, address)
        case plan.SetForwarding(vni, mac, node):
            return rtnetlink.forwarding(vxlans[vni], mac, node)
        case plan.SetNeighbour(vni, address, mac):
            return rtnetlink.neighbour(vxlans[vni], address, mac)
    return None


def _removal(operation: Operation, bridge: int, vxlans: dict[int, int]) -> rtnetlink.Message | None:
    """The message of an operation that takes an address or an entry away; None for the others."""
    match operation:
        case plan.RemoveAddress(address):
            return rtnetlink.address(bridge, address, remove=True)
        case plan.RemoveForwarding(vni, mac, node):
            return rtnetlink.forwarding(vxlans[vni], mac, node, remove=True)
        case plan.RemoveNeighbour(vni, address):
            return rtnetlink.neighbour(vxlans[vni], address, remove=True)
    return None


def _set_up() -> None:
    """In a new namespace: forwarding, which the translation of virtual addresses needs, no IPv6 yet, and lo."""
    for name, value in (("ipv4/ip_forward", "1"), ("ipv6/conf/all/disable_ipv6", "1")):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            Path("/proc/sys/net", name).write_text(value)
    netlink = Netlink()
    try:
        netlink.change([rtnetlink.change(1, up=True)])
    finally:
        netlink.close()


def _name(vni: int) -> str:
    return f"vxlan{vni}"


def _is_port(device: rtnetlink.Device) -> bool:
    return device.kind == "veth" and device.name.startswith(PORT_PREFIX) and len(device.name) == _SHORT_ID + 1


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """An error of the kernel becomes an OverlayError that says what it was about."""
    try:
        yield
    except OSError as error:
        raise OverlayError(f"{what}: {error.strerror or error}") from error
