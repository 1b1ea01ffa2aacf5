"""All records of all networks, kept as the store changes, and which node takes part in which network.

Theory of operation. A committed change marks the records that it may have changed; ``settle`` makes those anew and says
which are different. What it costs depends on what changed, not on how many nodes there are. The book has no state of
its own: ``state`` of a new one, made from the same store, is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from swarm import api
from swarm.manager.discovery.records import KINDS, NETWORK, Key, endpoint_keys, networks_of_service, record_of
from swarm.manager.networks import is_ingress
from swarm.manager.node_networks import NodeNetworks
from swarm.store.store import Change, View

M = TypeVar("M", bound=Message)


class NetworkBook:
    """See the module."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._nodes = NodeNetworks()
        self._records: dict[str, dict[Key, api.NetworkChange]] = {}
        self._marked: dict[str, dict[Key, None]] = {}
        self._ports: dict[str, None] = {}  # services with published ports
        for task in view.all(api.Task):
            self._note_task(None, task)
        for service in view.all(api.Service):
            self._note_service(None, service)
        for node in view.all(api.Node):
            self._note_node(None, node)
        for network in view.all(api.Network):
            self._mark(network.id, NETWORK)
        self.settle()

    # --- reading ---------------------------------------------------------------------------------------------------

    def networks_of(self, node_id: str) -> set[str]:
        """The networks of which a node is told: those of its tasks, and that of the routing mesh while it is used."""
        found = {network_id for network_id in self._nodes.networks(node_id) if network_id in self._records}
        node = self._view.get(api.Node, node_id)
        if node is not None and self._ports:
            attached = {one.network.id for one in node.attachments}
            found.update(one for one in self._ingress_ids() if one in attached and one in self._records)
        return found

    @property
    def has_ports(self) -> bool:
        """Whether any service publishes a port through the routing mesh."""
        return bool(self._ports)

    def nodes_of(self, network_id: str) -> list[str]:
        """The nodes that take part in a network, and those that did until now."""
        return [
            *self._nodes.nodes(network_id),
            *(key[1] for key in self._records.get(network_id, ()) if key[0] == "peer"),
        ]

    def keys(self, network_id: str) -> list[Key]:
        """The keys of a network's records, in the order in which they are told."""
        return sorted(self._records.get(network_id, ()), key=lambda key: (KINDS.index(key[0]), key[1]))

    def record(self, network_id: str, key: Key) -> api.NetworkChange | None:
        """One record; None: there is none."""
        return self._records.get(network_id, {}).get(key)

    def state(self) -> dict[str, dict[Key, bytes]]:
        """For the audit."""
        return {
            network_id: {key: self._records[network_id][key].SerializeToString() for key in self.keys(network_id)}
            for network_id in sorted(self._records)
        }

    # --- changes ---------------------------------------------------------------------------------------------------

    def note(self, change: Change) -> None:
        """An object was committed."""
        before, after = change.before, change.after
        match change.kind:
            case "task":
                self._note_task(_as(api.Task, before), _as(api.Task, after))
            case "service":
                self._note_service(_as(api.Service, before), _as(api.Service, after))
            case "node":
                self._note_node(_as(api.Node, before), _as(api.Node, after))
            case "network":
                self._mark(change.object_id, NETWORK)
                if change.object_id not in self._records:  # its other records could not be made before
                    self._mark_all(change.object_id)

    def settle(self) -> Iterable[tuple[str, Key]]:
        """Make the marked records anew; which of them are different now."""
        marked, self._marked = self._marked, {}
        changed: list[tuple[str, Key]] = []
        for network_id, keys in marked.items():
            known = self._records.setdefault(network_id, {})
            for key in keys:
                record = record_of(self._view, network_id, key, self._nodes)
                if record is None and known.pop(key, None) is not None:
                    changed.append((network_id, key))
                elif record is not None and known.get(key) != record:
                    known[key] = record
                    changed.append((network_id, key))
            if NETWORK not in known:  # records of a network that is gone, or is no network yet
                changed += [(network_id, key) for key in known]
                del self._records[network_id]
        return changed

    def _note_task(self, before: api.Task | None, after: api.Task | None) -> None:
        task = after if after is not None else before
        assert task is not None
        for one in (before, after):
            for network_id, key in endpoint_keys(one) if one is not None else ():
                self._mark(network_id, key)
        networks = dict.fromkeys(
            network_id for one in (before, after) if one is not None for network_id, _ in endpoint_keys(one)
        )
        for node_id in self._nodes.account(task.id, after):
            for network_id in networks:
                self._mark(network_id, ("peer", node_id))

    def _note_service(self, before: api.Service | None, after: api.Service | None) -> None:
        for service in (before, after):
            if service is not None:
                for network_id in networks_of_service(self._view, service):
                    self._mark(network_id, ("service", service.id))
        service = after if after is not None else before
        assert service is not None
        if after is not None and any(port.publish_mode == api.PortConfig.INGRESS for port in after.endpoint.ports):
            self._ports[service.id] = None
        else:
            self._ports.pop(service.id, None)

    def _note_node(self, before: api.Node | None, after: api.Node | None) -> None:
        node = after if after is not None else before
        assert node is not None
        networks = dict.fromkeys(self._nodes.networks(node.id))
        for one in (before, after):
            networks.update(dict.fromkeys(a.network.id for a in one.attachments) if one is not None else {})
        for network_id in networks:
            self._mark(network_id, ("peer", node.id))

    def _mark(self, network_id: str, key: Key) -> None:
        self._marked.setdefault(network_id, {})[key] = None

    def _mark_all(self, network_id: str) -> None:
        for task in self._view.find(api.Task, "network", network_id):
            for found, key in endpoint_keys(task):
                if found == network_id:
                    self._mark(network_id, key)
        for service in self._view.all(api.Service):
            if network_id in networks_of_service(self._view, service):
                self._mark(network_id, ("service", service.id))
        for node in self._view.all(api.Node):
            self._mark(network_id, ("peer", node.id))

    def _ingress_ids(self) -> Iterator[str]:
        return (network.id for network in self._view.all(api.Network) if is_ingress(network))


def _as(cls: type[M], message: Message | None) -> M | None:
    assert message is None or isinstance(message, cls)
    return message
