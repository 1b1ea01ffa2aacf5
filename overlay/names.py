"""What the names of the overlay networks mean for a client. The node answers from what the managers told it.

The index follows the states of the networks: only what changed is looked at again, and what a name means is computed
when somebody asks. All of it is replaced in one step, so that no client sees a half of a change.

(libnetwork: network.go ResolveName and ResolveIP, sandbox.go ResolveName, service_common.go; docs/adr/0033)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import TypeVar

from overlay.model import Endpoint, NetworkState, Readiness, Service

_REVERSE = ".in-addr.arpa"
_TASKS = "tasks."
_FIRST, _SECOND, _LAST = 0, 1, 2  # choices: ready, ready on a suspected node, nothing ready

K = TypeVar("K")
V = TypeVar("V")


class Names:
    """The names of all networks that this node takes part in."""

    def __init__(self) -> None:
        self._networks: dict[str, NetworkNames] = {}
        self._seen: dict[tuple[str, IPv4Address], tuple[NetworkNames, ...]] = {}

    def replace(self, states: Mapping[str, NetworkState]) -> None:
        """From now on names mean what follows from these states, keyed by the network's ID."""
        for network_id in self._networks.keys() - states.keys():
            del self._networks[network_id]
        for network_id, state in states.items():
            if network_id not in self._networks:
                self._networks[network_id] = NetworkNames(state)
            self._networks[network_id].replace(state)
        self._seen.clear()

    def knows(self, network_id: str) -> bool:
        """Whether the managers have told of this network. Until then nothing is known about its names."""
        return network_id in self._networks

    def is_shut_in(self, network_id: str, client: IPv4Address) -> bool:
        """Whether the client is only on internal networks. Then a foreign name would be a way out for its data."""
        return all(network.internal for network in self._of(network_id, client))

    def addresses(self, network_id: str, client: IPv4Address, name: str) -> tuple[bytes, ...] | None:
        """The addresses (packed, 4 bytes) of a name for a client that asks on a network; None: not a name of ours.

        name: lower case, without a dot at the end. Empty: the name is ours, but nothing of it is ready. A whole name
        goes before a name that ends with a network's name; among these the shortest network's name goes first.
        """
        networks = self._of(network_id, client)
        for network in networks:
            if (found := network.addresses(name)) is not None:
                return found
        endings = [network for network in networks if name.endswith(network.ending)]
        for network in sorted(endings, key=lambda one: len(one.ending)):
            if (found := network.addresses(name[: -len(network.ending)])) is not None:
                return found
        return None

    def pointer(self, network_id: str, client: IPv4Address, name: str) -> str | None:
        """The name of an address, with the network's name behind. name: "4.3.2.10.in-addr.arpa", lower case."""
        address = _reversed(name)
        if address is None:
            return None
        for network in self._of(network_id, client):
            if found := network.name_of(address):
                return f"{found}.{network.name}"
        return None

    def _of(self, network_id: str, client: IPv4Address) -> tuple[NetworkNames, ...]:
        """The networks whose names the client sees: first the one where it asks, then its others by name."""
        if (seen := self._seen.get((network_id, client))) is not None:
            return seen
        asked = self._networks.get(network_id)
        if asked is None:
            return ()
        owner = asked.owner(client)
        if owner is None:
            return (asked,)
        others = [one for one in self._networks.values() if one is not asked and one.has(owner)]
        networks = (asked, *sorted(others, key=lambda one: (one.name, one.id)))
        self._seen[network_id, client] = networks
        return networks


class NetworkNames:
    """The names of one network. The ingress network has none: it only routes."""

    def __init__(self, state: NetworkState) -> None:
        self.id = state.network.id
        self.internal = state.network.internal
        self._ingress = state.network.ingress
        self._state = NetworkState(state.network)
        self.name = self.ending = ""
        self._services: dict[str, set[str]] = {}  # by name or alias
        self._endpoints: dict[str, set[str]] = {}  # by name or alias
        self._backends: dict[str, set[str]] = {}  # endpoints of a service
        self._owners: dict[IPv4Address, set[str]] = {}  # endpoints with an address
        self._virtual: dict[IPv4Address, set[str]] = {}  # services with a virtual address
        self._present: dict[str, set[str]] = {}  # endpoints of a task
        self._meanings: dict[str, tuple[bytes, ...]] = {}  # of names that somebody asked for

    def replace(self, state: NetworkState) -> None:
        """Follow the state. What is equal to the one before costs a comparison."""
        before, self._state = self._state, state
        self.name = state.network.name
        self.ending = f".{self.name.lower()}"
        if state is before:
            return
        if state.nodes is not before.nodes and _suspected(state) != _suspected(before):
            self._meanings.clear()
        for old, new in _changes(before.services, state.services):
            self._service_changed(old, new)
        for was, now in _changes(before.endpoints, state.endpoints):
            self._endpoint_changed(was, now)

    def addresses(self, name: str) -> tuple[bytes, ...] | None:
        """As of Names, for a whole name of this network."""
        found = self._meanings.get(name)
        if found is None and not self._ingress and self._exists(name):
            found = self._meanings[name] = self._mean(name)
        return found

    def name_of(self, address: IPv4Address) -> str:
        """The name of the container that has this address, or of the service; empty: nobody has it."""
        if self._ingress:
            return ""
        owner = self.owner(address)
        if owner is not None and (name := self._state.endpoints[owner].name):
            return name
        services = self._virtual.get(address)
        return self._state.services[min(services)].name if services else ""

    def owner(self, address: IPv4Address) -> str | None:
        """The endpoint that has this address."""
        owners = self._owners.get(address)
        return min(owners, key=self._order) if owners else None

    def has(self, endpoint_id: str) -> bool:
        """Whether the same container is here too, whichever its number among the task's addresses."""
        return _task(endpoint_id) in self._present

    def _order(self, endpoint_id: str) -> tuple[int, str]:
        return self._choice(self._state.endpoints[endpoint_id]), endpoint_id

    def _exists(self, name: str) -> bool:
        tasks = name.startswith(_TASKS) and name[len(_TASKS) :] in self._services
        return tasks or name in self._services or name in self._endpoints

    def _mean(self, name: str) -> tuple[bytes, ...]:
        """The best choice of all that share the name. The name of a service leads only to what is ready."""
        choices: tuple[dict[IPv4Address, None], ...] = ({}, {}, {})  # dicts keep an order
        services = self._services.get(name, set())
        for endpoint_id in sorted(self._endpoints.get(name, ())):
            endpoint = self._state.endpoints[endpoint_id]
            choice = self._choice(endpoint)
            if endpoint.service_id not in services and (choice != _LAST or not services):
                choices[choice][endpoint.address] = None
        for service_id in sorted(services):
            virtual_ip = self._state.services[service_id].virtual_ip
            ready = self._ready(service_id)
            if virtual_ip is not None:
                choices[min((choice for choice, _ in ready), default=_LAST)][virtual_ip] = None
            else:
                _add(choices, ready)
        if name.startswith(_TASKS):
            for service_id in sorted(self._services.get(name[len(_TASKS) :], ())):
                _add(choices, self._ready(service_id))
        best = next((choice for choice in choices if choice), {})
        return tuple(address.packed for address in best)

    def _ready(self, service_id: str) -> list[tuple[int, IPv4Address]]:
        """Choices and addresses of the service's tasks that are ready."""
        endpoints = [self._state.endpoints[endpoint_id] for endpoint_id in sorted(self._backends.get(service_id, ()))]
        return [(self._choice(one), one.address) for one in endpoints if one.readiness is Readiness.READY]

    def _choice(self, endpoint: Endpoint) -> int:
        if endpoint.readiness is not Readiness.READY:
            return _LAST
        node = self._state.nodes.get(endpoint.node_id)
        return _SECOND if node is not None and node.suspected else _FIRST

    def _service_changed(self, old: Service | None, new: Service | None) -> None:
        for service, change in ((old, _take), (new, _put)):
            if service is None:
                continue
            names = _names_of(service)
            change(self._services, names, service.id)
            change(self._virtual, [service.virtual_ip] if service.virtual_ip else [], service.id)
            self._forget(names, with_tasks=True)

    def _endpoint_changed(self, old: Endpoint | None, new: Endpoint | None) -> None:
        for endpoint, change in ((old, _take), (new, _put)):
            if endpoint is None:
                continue
            change(self._endpoints, _names_of(endpoint), endpoint.id)
            change(self._owners, [endpoint.address], endpoint.id)
            change(self._present, [_task(endpoint.id)], endpoint.id)
            change(self._backends, [endpoint.service_id] if endpoint.service_id else [], endpoint.id)
            if not self._meanings:
                continue
            self._forget(_names_of(endpoint), with_tasks=False)
            if (service := self._state.services.get(endpoint.service_id)) is not None:
                self._forget(_names_of(service), with_tasks=True)

    def _forget(self, names: Iterable[str], *, with_tasks: bool) -> None:
        for name in names:
            self._meanings.pop(name, None)
            if with_tasks:
                self._meanings.pop(_TASKS + name, None)


def _add(choices: tuple[dict[IPv4Address, None], ...], ready: Iterable[tuple[int, IPv4Address]]) -> None:
    for choice, address in ready:
        choices[choice][address] = None


def _names_of(named: Service | Endpoint) -> set[str]:
    return {name.lower() for name in (named.name, *named.aliases) if name}


def _task(endpoint_id: str) -> str:
    return endpoint_id.partition("/")[0]


def _suspected(state: NetworkState) -> set[str]:
    return {node.id for node in state.nodes.values() if node.suspected}


def _changes(before: Mapping[str, V], now: Mapping[str, V]) -> list[tuple[V | None, V | None]]:
    """What is gone, then what is new or different."""
    if before is now:
        return []
    gone: list[tuple[V | None, V | None]] = [(old, None) for key, old in before.items() if key not in now]
    for key, new in now.items():
        old = before.get(key)
        if old is not new and old != new:
            gone.append((old, new))
    return gone


def _put(index: dict[K, set[str]], keys: Iterable[K], value: str) -> None:
    for key in keys:
        if (values := index.get(key)) is None:
            index[key] = {value}
        else:
            values.add(value)


def _take(index: dict[K, set[str]], keys: Iterable[K], value: str) -> None:
    for key in keys:
        values = index.get(key, set())
        values.discard(value)
        if not values:
            index.pop(key, None)


def _reversed(name: str) -> IPv4Address | None:
    if not name.endswith(_REVERSE):
        return None
    try:
        return IPv4Address(".".join(reversed(name[: -len(_REVERSE)].split("."))))
    except ValueError:
        return None
