"""Hosts and containers made of network namespaces, joined by a switch; the root namespace is not touched."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import TypeVar

from overlay import rtnetlink
from overlay.io import namespaces
from overlay.io.kernel import Kernel
from overlay.io.netlink import Netlink
from overlay.model import mac_of

T = TypeVar("T")
TIMEOUT_S = 15.0


class Place:
    """One namespace: a host, a container or the switch between hosts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        namespaces.make(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.netlink = Netlink(self.fd)
        self.netlink.change([rtnetlink.change(1, up=True)])

    def run(self, function: Callable[[], T]) -> T:
        """Call a function inside."""
        return namespaces.in_namespace(self.fd, function)

    def index(self, name: str) -> int:
        """The index of an interface."""
        devices = rtnetlink.devices(self.netlink.dump(rtnetlink.all_links()))
        return next(one.index for one in devices if one.name == name)

    def set_up(self, name: str, address: str, gateway: str = "") -> None:
        """Give an interface its address, set it up, and route by a gateway."""
        index = self.index(name)
        self.netlink.change([rtnetlink.change(index, up=True), rtnetlink.address(index, IPv4Interface(address))])
        if gateway:
            self.netlink.change([rtnetlink.default_route(IPv4Address(gateway), index)])

    def sysctl(self, name: str, value: str) -> None:
        """Set a kernel setting inside."""
        self.run(lambda: Path("/proc/sys", name).write_text(value))

    def close(self) -> None:
        """Take the namespace away."""
        self.netlink.close()
        os.close(self.fd)
        namespaces.drop(self._path)


class Host:
    """A host with the address 10.99.0.<number> on the switch, and the overlay's kernel side."""

    def __init__(self, directory: Path, number: int, switch: Place) -> None:
        self.place = Place(directory / f"host{number}")
        self.number = number
        self.address = IPv4Address(f"10.99.0.{number}")
        port = rtnetlink.veth(f"p{number}", "eth0", self.place.fd, 1500, master=switch.index("br0"))
        switch.netlink.change([port])
        self.place.set_up("eth0", f"{self.address}/24")
        self.kernel = Kernel(directory / f"netns{number}", self.place.fd)

    def close(self) -> None:
        """Take all of it away."""
        for network_id in self.kernel.networks():
            self.kernel.remove(network_id)
        self.kernel.close()
        self.place.close()


class Lan:
    """Hosts, and whatever else is on their switch."""

    def __init__(self, directory: Path, hosts: int) -> None:
        self._directory = directory
        self._places: list[Place] = []
        self._names = 0
        self._switch = Place(directory / "switch")
        self._switch.netlink.change([rtnetlink.bridge("br0", "02:00:00:00:00:01", 1500)])
        self._switch.netlink.change([rtnetlink.change(self._switch.index("br0"), up=True)])
        self.hosts = [Host(directory, number, self._switch) for number in range(1, hosts + 1)]

    def container(self, host: Host, network_id: str, address: str, gateway: str = "") -> Place:
        """A container of a host, attached as the engine does it."""
        self._names += 1
        inside = self._place(f"container{self._names}")
        name = host.kernel.join(network_id, f"{self._names:010x}rest", mac_of(IPv4Interface(address).ip))
        move_link(host.place, name, inside)
        inside.set_up(name, address, gateway)
        return inside

    def client(self, number: int) -> Place:
        """Somebody with the address 10.99.0.<number> on the switch who is no host of ours."""
        self._names += 1
        inside = self._place(f"client{self._names}")
        port = rtnetlink.veth(f"c{number}", "eth0", inside.fd, 1500, master=self._switch.index("br0"))
        self._switch.netlink.change([port])
        inside.set_up("eth0", f"10.99.0.{number}/24")
        return inside

    def close(self) -> None:
        """Take everything away."""
        for place in self._places:
            place.close()
        for host in self.hosts:
            host.close()
        self._switch.close()

    def _place(self, name: str) -> Place:
        place = Place(self._directory / name)
        self._places.append(place)
        return place


class Server:
    """An echo server: it answers each packet with its name and the address it saw."""

    def __init__(self, place: Place, name: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self._name = name
        self._socket = place.run(lambda: _listen(port, kind))
        serve = self._accept if kind == socket.SOCK_STREAM else self._datagrams
        threading.Thread(target=serve, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                link, peer = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(link, peer[0]), daemon=True).start()

    def _echo(self, link: socket.socket, peer: str) -> None:
        with link:
            try:
                while link.recv(16):
                    link.send(f"{self._name} {peer}".encode())
            except OSError:
                return

    def _datagrams(self) -> None:
        while True:
            try:
                _, peer = self._socket.recvfrom(16)
                self._socket.sendto(f"{self._name} {peer[0]}".encode(), peer)
            except OSError:
                return


def connect(place: Place, address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A connected socket of a place. Raises OSError."""

    def make() -> socket.socket:
        link = socket.socket(socket.AF_INET, kind)
        link.settimeout(TIMEOUT_S)
        try:
            link.connect((address, port))
        except OSError:
            link.close()
            raise
        return link

    return place.run(make)


def say(link: socket.socket) -> str:
    """One packet to an echo server; its answer."""
    link.send(b"x")
    return link.recv(64).decode()


def ask(place: Place, address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> str:
    """One question over a connection of its own; the answer, or the error."""
    try:
        with connect(place, address, port, kind) as link:
            return say(link)
    except OSError as error:
        return type(error).__name__


def move_link(host: Place, name: str, target: Place) -> None:
    """Move an interface to another namespace, as the engine does."""
    body = rtnetlink.change(host.index(name)).body + rtnetlink.attribute(28, target.fd.to_bytes(4, "little"))
    host.netlink.change([rtnetlink.Message(rtnetlink.NEWLINK, 0, body)])


def _listen(port: int, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("0.0.0.0", port))
    if kind == socket.SOCK_STREAM:
        made.listen(64)
    return made
