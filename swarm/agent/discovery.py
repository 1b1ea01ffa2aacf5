"""What this node knows of its networks: kept from the managers' records, journaled, and told to the executor.

Theory of operation. The records of a new stream are collected beside what is known, until ``complete`` says that they
are all; so nothing is withdrawn because a manager has not come to it yet. After that, every message changes what is
known at once. What a stock manager does not tell stays as it was. The journal follows about once a second: after a
restart the node has its names and peers before it reaches any manager.

Records that cannot be read are left out, with a log line: a manager cannot make an agent fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

import structlog
from google.protobuf.message import DecodeError

from overlay import model
from overlay.model import LocalNode, NetworkState, Readiness
from swarm import api, defaults
from swarm.agent.events import Journal, Networks

log = structlog.get_logger()

JOURNAL_PREFIX = "network/"
_LOCAL = "local"
_Records = dict[tuple[str, str], api.NetworkChange]
_READINESS = {
    api.EndpointRecord.STARTING: Readiness.STARTING,
    api.EndpointRecord.READY: Readiness.READY,
    api.EndpointRecord.DRAINING: Readiness.DRAINING,
}
_PROTOCOLS = ("tcp", "udp", "sctp")


class Discovery:
    """See the module. journal: all records of the agent's journal; those of others are ignored."""

    def __init__(self, journal: Mapping[str, bytes], now: float) -> None:
        self._known: dict[str, _Records] = {}
        self._fresh: dict[str, _Records] | None = None
        self._local: api.LocalNodeRecord | None = None
        self._complete = False
        self._unwritten: dict[str, None] = {}
        self._write_at: float | None = None
        self._untold: Networks | None = self._from_journal(journal)
        self._begun_at = now

    def begin(self) -> None:
        """A stream was opened: what comes first is everything."""
        self._fresh = {}

    def data(self, message: api.WatchNetworksResponse, now: float) -> list[Networks]:
        """One message of the stream."""
        if message.HasField("local"):
            self._local = message.local
            self._mark(_LOCAL, now)
        if self._fresh is not None:
            _apply(self._fresh, message.changes)
            if not message.complete:
                return []
            fresh, self._fresh = self._fresh, None
            changed = {key for key in {*fresh, *self._known} if fresh.get(key) != self._known.get(key)}
            if not self._complete:
                changed |= set(fresh)
            self._known, self._complete = fresh, True
        else:
            changed = _apply(self._known, message.changes)
        for network_id in changed:
            self._mark(network_id, now)
        return [self._told(sorted(changed))]

    def work(self, now: float) -> list[Networks | Journal]:
        """What the executor and the journal have to be told by now."""
        effects: list[Networks | Journal] = []
        if self._untold is not None:
            effects.append(self._untold)
            self._untold = None
        if self._write_at is not None and now >= self._write_at:
            effects.append(self._journal())
        return effects

    def deadline(self) -> float | None:
        """When work() is due."""
        return self._begun_at if self._untold is not None else self._write_at

    def _told(self, changed: Iterable[str]) -> Networks:
        states = {network_id: _state_of(network_id, self._known.get(network_id)) for network_id in changed}
        return Networks(_local_node(self._local), states, self._complete)

    # --- the journal -----------------------------------------------------------------------------------------------

    def _mark(self, name: str, now: float) -> None:
        self._unwritten[name] = None
        if self._write_at is None:
            self._write_at = now + defaults.NETWORK_JOURNAL_S

    def _journal(self) -> Journal:
        puts, drops = {}, []
        for name in self._unwritten:
            records = self._known.get(name)
            if name == _LOCAL and self._local is not None:
                puts[JOURNAL_PREFIX + name] = api.WatchNetworksResponse(local=self._local).SerializeToString()
            elif records:
                saved = api.WatchNetworksResponse(changes=records.values())
                puts[JOURNAL_PREFIX + name] = saved.SerializeToString()
            elif name != _LOCAL:
                drops.append(JOURNAL_PREFIX + name)
        self._unwritten, self._write_at = {}, None
        return Journal(puts, tuple(drops))

    def _from_journal(self, journal: Mapping[str, bytes]) -> Networks | None:
        for name, saved in journal.items():
            if not name.startswith(JOURNAL_PREFIX):
                continue
            try:
                message = api.WatchNetworksResponse.FromString(saved)
            except DecodeError:
                log.warning("networks.journal_damaged", record=name)
                continue
            _apply(self._known, message.changes)
            if message.HasField("local"):
                self._local = message.local
        return self._told(sorted(self._known)) if self._known or self._local is not None else None


# --- records -------------------------------------------------------------------------------------------------------


def _apply(known: dict[str, _Records], changes: Iterable[api.NetworkChange]) -> set[str]:
    """Apply changes; the IDs of the networks that they concern."""
    touched = set()
    for change in changes:
        touched.add(change.network_id)
        records = known.setdefault(change.network_id, {})
        match change.WhichOneof("change"):
            case "network_removed":
                known.pop(change.network_id, None)
            case "network":
                records[("network", "")] = change
            case "peer":
                records[("peer", change.peer.node_id)] = change
            case "service":
                records[("service", change.service.service_id)] = change
            case "endpoint":
                records[("endpoint", change.endpoint.endpoint_id)] = change
            case "peer_removed":
                records.pop(("peer", change.peer_removed), None)
            case "service_removed":
                records.pop(("service", change.service_removed), None)
            case "endpoint_removed":
                records.pop(("endpoint", change.endpoint_removed), None)
        if change.network_id in known and not known[change.network_id]:
            del known[change.network_id]
    return touched


def _state_of(network_id: str, records: _Records | None) -> NetworkState | None:
    """The overlay's view of records; None if there is no such network, or nobody said what it is."""
    if not records or ("network", "") not in records:
        return None
    network = _network(network_id, records[("network", "")].network)
    if network is None:
        return None
    nodes: dict[str, model.Node] = {}
    services: dict[str, model.Service] = {}
    endpoints: dict[str, model.Endpoint] = {}
    for (kind, object_id), change in records.items():
        try:
            if kind == "peer":
                nodes[object_id] = _node(change.peer)
            elif kind == "service":
                services[object_id] = _service(change.service)
            elif kind == "endpoint":
                endpoints[object_id] = _endpoint(change.endpoint)
        except ValueError as error:
            log.warning("networks.record_not_read", network=network_id, kind=kind, id=object_id, error=str(error))
    return NetworkState(network, nodes, services, endpoints)


def _network(network_id: str, record: api.NetworkRecord) -> model.Network | None:
    try:
        subnets = tuple(
            model.Subnet(IPv4Network(one.pool, strict=False), IPv4Address(one.gateway), one.vni)
            for one in record.subnets
        )
        if not subnets:
            raise ValueError("it has no subnet")
    except ValueError as error:
        log.warning("networks.record_not_read", network=network_id, kind="network", error=str(error))
        return None
    return model.Network(
        network_id, record.name, subnets, record.underlay_mtu, record.ingress, record.internal, record.encrypted
    )


def _node(record: api.PeerRecord) -> model.Node:
    balancer = IPv4Address(record.load_balancer) if record.load_balancer else None
    address = IPv4Address(record.address)
    return model.Node(record.node_id, record.hostname, address, balancer, record.suspected, record.stock)


def _service(record: api.ServiceRecord) -> model.Service:
    return model.Service(
        record.service_id,
        record.name,
        IPv4Address(record.virtual_ip) if record.virtual_ip else None,
        tuple(record.aliases),
        tuple(_port(one) for one in record.ports),
        record.sticky,
        record.local_first,
    )


def _port(record: api.PublishedPort) -> model.Port:
    if record.protocol not in _PROTOCOLS or not (0 < record.published < 1 << 16 and 0 < record.target < 1 << 16):
        raise ValueError(f"port {record.published}/{record.protocol} is none")
    return model.Port(record.protocol, record.published, record.target)


def _endpoint(record: api.EndpointRecord) -> model.Endpoint:
    return model.Endpoint(
        record.endpoint_id,
        record.node_id,
        IPv4Address(record.address),
        _READINESS.get(record.readiness, Readiness.STARTING),
        record.service_id,
        record.name,
        tuple(record.aliases),
    )


def _local_node(record: api.LocalNodeRecord | None) -> LocalNode | None:
    if record is None:
        return None
    try:
        return LocalNode(record.node_id, IPv4Address(record.address), record.vxlan_port)
    except ValueError as error:
        log.warning("networks.record_not_read", kind="local", error=str(error))
        return None
