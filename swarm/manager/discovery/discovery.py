"""Tells each node what it has to know of the networks that its tasks use, and of no others.

Theory of operation. A node opens WatchNetworks. It gets all records of its networks, then ``complete``, then changes.
A stream remembers only which records must still be told; messages are made from the book when they are sent, so ten
changes of a record within a batch become one. Which networks the node takes part in is looked at then, too: a node that
leaves a network and is back before the next message is told what changed meanwhile, as if it had stayed. When it begins
to take part in a network, all of that network is to be told; when it ceases, that the network is gone. Much to tell
goes in several messages, so that no stream has more than a bounded number of bytes to carry at a time.

Between our own nodes this takes the place of libnetwork's gossip (docs/adr/0029-discovery-by-the-managers.md).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import Aborted, NotFound, PermissionDenied, SwarmError
from swarm.manager.discovery.book import NetworkBook
from swarm.manager.discovery.records import KINDS, NETWORK, Key, local_record, removal
from swarm.manager.node_keys import KeyGuard, Superseded, is_superseded
from swarm.manager.service import Effect, Event
from swarm.rpc import Call, Peer, StreamData, StreamEnd
from swarm.store.store import Change, Store


@dataclass(slots=True)
class _Watch:
    """An open stream. networks: those that the node was told of. pending: records to tell, by network.

    local: what the node was told of itself.
    """

    node_id: str
    peer: Peer
    networks: set[str] = field(default_factory=set)
    pending: dict[str, dict[Key, None]] = field(default_factory=dict)
    local: api.LocalNodeRecord | None = None
    complete: bool = False
    next_send: float = 0.0
    queued: bool = False


class Discovery:
    """Service of a leader (swarm/manager/service.py)."""

    methods = frozenset({rpc.WATCH_NETWORKS.name})

    def __init__(self, store: Store, now: float, own_node_id: str) -> None:
        self._store = store
        self._now = now
        self._own_node_id = own_node_id
        self._book = NetworkBook(store)
        self._key_guard = KeyGuard()
        self._watches: dict[int, _Watch] = {}
        self._of_node: dict[str, dict[int, None]] = {}
        self._of_network: dict[str, dict[int, None]] = {}
        self._due: list[tuple[float, int]] = []
        self._stopped = False

    # --- Service ---------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        if isinstance(event, StreamEnd):
            self._close(event.stream)
            return []
        if not isinstance(event, Call):
            return []
        node_id = self._own_node_id if event.peer.local else event.peer.node_id
        try:
            if self._stopped:
                raise Aborted("discovery is stopped")
            if not node_id:
                raise PermissionDenied("no client certificates in request")
            node = self._store.get(api.Node, node_id)
            if node is None:
                raise NotFound(f"node {node_id} not found")
            if not event.peer.local:
                self._key_guard.check(node, event.peer, now)
        except SwarmError as error:
            return [StreamEnd(event.stream, error)]
        return [*self._open(event.stream, node_id, event.peer), *self.wake(now)]

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        effects: list[Effect] = []
        nodes: dict[str, None] = {}
        ports_before = self._book.has_ports
        for change in changes:
            self._book.note(change)
            if change.kind == "node" and change.after is None:
                effects += self._end(change.object_id, Aborted("node must disconnect"))
            if change.kind in ("node", "task"):
                nodes.update(dict.fromkeys(_nodes_of(change)))
        for network_id, key in self._book.settle():
            if key == NETWORK:
                nodes.update(dict.fromkeys(self._book.nodes_of(network_id)))
            for stream in self._of_network.get(network_id, ()):
                self._mark(stream, network_id, key)
        if ports_before != self._book.has_ports:
            nodes.update(dict.fromkeys(self._of_node))
        for node_id in nodes:
            for stream in self._of_node.get(node_id, ()):
                self._look_at(stream)
        return [*effects, *self.wake(now)]

    def wake(self, now: float) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._now = now
        effects: list[Effect] = []
        while self._due and self._due[0][0] <= now:
            _, stream = heapq.heappop(self._due)
            watch = self._watches.get(stream)
            if watch is not None:
                watch.queued = False
                watch.next_send = now + defaults.DISCOVERY_BATCH_S
                effects += [StreamData(stream, message) for message in self._messages(stream, watch)]
        return effects

    def deadline(self) -> float | None:
        """See swarm.manager.service.Service."""
        return self._due[0][0] if self._due else None

    def stalled(self, missed_s: float, now: float) -> None:
        """See Service.stalled: it judges nobody by time."""

    def stop(self) -> Sequence[Effect]:
        """See swarm.manager.service.Service."""
        self._stopped = True
        streams = list(self._watches)
        for stream in streams:
            self._close(stream)
        return [StreamEnd(stream, Aborted("discovery is stopped")) for stream in streams]

    # --- streams ---------------------------------------------------------------------------------------------------

    def _open(self, stream: int, node_id: str, peer: Peer) -> list[Effect]:
        effects: list[Effect] = []
        for older in list(self._of_node.get(node_id, ())):
            if is_superseded(self._store, self._watches[older].peer):
                self._close(older)
                effects.append(StreamEnd(older, Superseded(node_id)))
        while len(self._of_node.get(node_id, ())) >= defaults.DISCOVERY_STREAMS_PER_NODE_MAX:
            oldest = next(iter(self._of_node[node_id]))
            self._close(oldest)
            effects.append(StreamEnd(oldest, Aborted("node must disconnect")))
        self._watches[stream] = _Watch(node_id, peer)
        self._of_node.setdefault(node_id, {})[stream] = None
        self._look_at(stream)
        return effects

    def _look_at(self, stream: int) -> None:
        """Queue a stream if its node has to be told anything."""
        watch = self._watches[stream]
        others = self._book.networks_of(watch.node_id) != watch.networks
        if others or watch.pending or not watch.complete or watch.local != self._local(watch.node_id):
            self._queue(stream, watch)

    def _settle_networks(self, stream: int, watch: _Watch) -> list[api.NetworkChange]:
        """From now on the node is told of the networks in which it takes part. Returns that others are gone."""
        wanted = self._book.networks_of(watch.node_id)
        left, joined = sorted(watch.networks - wanted), sorted(wanted - watch.networks)
        for network_id in left:
            self._unwatch(stream, network_id)
            watch.pending.pop(network_id, None)
        for network_id in joined:
            self._of_network.setdefault(network_id, {})[stream] = None
            watch.pending[network_id] = dict.fromkeys(self._book.keys(network_id))
        watch.networks = wanted
        return [removal(network_id, NETWORK) for network_id in left]

    def _mark(self, stream: int, network_id: str, key: Key) -> None:
        watch = self._watches[stream]
        watch.pending.setdefault(network_id, {})[key] = None
        self._queue(stream, watch)

    def _queue(self, stream: int, watch: _Watch) -> None:
        if not watch.queued:
            watch.queued = True
            heapq.heappush(self._due, (max(watch.next_send, self._now), stream))

    def _messages(self, stream: int, watch: _Watch) -> list[api.WatchNetworksResponse]:
        changes = [*self._settle_networks(stream, watch), *self._take(watch)]
        size = defaults.DISCOVERY_CHANGES_MAX
        out = [api.WatchNetworksResponse(changes=changes[i : i + size]) for i in range(0, len(changes), size)]
        local = self._local(watch.node_id)
        if not out and (local != watch.local or not watch.complete):
            out = [api.WatchNetworksResponse()]
        if local is not None and local != watch.local:
            out[0].local.CopyFrom(local)
        watch.local = local
        if watch.pending:
            self._queue(stream, watch)
        elif not watch.complete:
            watch.complete = True
            out[-1].complete = True
        for message in out:
            message.version = self._store.index
        return out

    def _take(self, watch: _Watch) -> list[api.NetworkChange]:
        """What is told next of the pending records, as they are now."""
        changes: list[api.NetworkChange] = []
        room = defaults.DISCOVERY_BATCH_BYTES
        while watch.pending and room > 0:
            network_id, keys = next(iter(watch.pending.items()))
            for key in sorted(keys, key=lambda key: KINDS.index(key[0])):
                record = self._book.record(network_id, key)
                told = record if record is not None else removal(network_id, key)
                changes.append(told)
                del keys[key]
                room -= told.ByteSize()
                if room <= 0:
                    break
            if not keys:
                del watch.pending[network_id]
        return changes

    def _local(self, node_id: str) -> api.LocalNodeRecord | None:
        node = self._store.get(api.Node, node_id)
        return local_record(node, next(self._store.all(api.Cluster), None)) if node is not None else None

    def _end(self, node_id: str, error: SwarmError) -> list[Effect]:
        streams = list(self._of_node.get(node_id, ()))
        for stream in streams:
            self._close(stream)
        return [StreamEnd(stream, error) for stream in streams]

    def _close(self, stream: int) -> None:
        watch = self._watches.pop(stream, None)
        if watch is None:
            return
        for network_id in watch.networks:
            self._unwatch(stream, network_id)
        del self._of_node[watch.node_id][stream]
        if not self._of_node[watch.node_id]:
            del self._of_node[watch.node_id]

    def _unwatch(self, stream: int, network_id: str) -> None:
        streams = self._of_network[network_id]
        del streams[stream]
        if not streams:
            del self._of_network[network_id]

    # --- audit -----------------------------------------------------------------------------------------------------

    def audit(self) -> bool:
        """Whether the book equals one that is made anew from the store; for tests."""
        return self._book.state() == NetworkBook(self._store).state()


def _nodes_of(change: Change) -> list[str]:
    """The nodes that may take part in other networks because of a change."""
    if change.kind == "node":
        return [change.object_id]
    tasks = [task for task in (change.before, change.after) if isinstance(task, api.Task)]
    return [task.node_id for task in tasks if task.node_id]
