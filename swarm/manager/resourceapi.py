"""Attachments of plain containers to networks of the swarm: a node asks for one, and gives it back.

An attachment is a task without a container of ours: the allocator gives it an address, the node that asked has it
assigned, and it is the node's until the node gives it back or leaves.

(swarmkit: manager/resourceapi/allocator.go)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api import rpc
from swarm.api.timestamps import stamp
from swarm.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, SwarmError
from swarm.ids import new_id
from swarm.manager.service import Effect, Event, Write
from swarm.rpc import Call, StreamEnd
from swarm.store.store import Change
from swarm.store.tx import Tx

CREATED_MESSAGE = "created"


class ResourceAllocator:
    """A Service: ResourceAllocator/AttachNetwork and DetachNetwork. own_node_id: whose calls in this process are."""

    methods = frozenset({rpc.ATTACH_NETWORK.name, rpc.DETACH_NETWORK.name})

    def __init__(self, rng: Random, own_node_id: str) -> None:
        self._rng = rng
        self._own_node_id = own_node_id
        self._calls: dict[str, Callable[[str, Call], Callable[[Tx], Message]]] = {
            rpc.ATTACH_NETWORK.name: self._attach,
            rpc.DETACH_NETWORK.name: self._detach,
        }

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """See Service.handle."""
        if not isinstance(event, Call):
            return ()
        node_id = self._own_node_id if event.peer.local else event.peer.node_id
        try:
            return (Write(self._calls[event.method](node_id, event), event.stream),)
        except SwarmError as error:
            return (StreamEnd(event.stream, error),)

    def _attach(self, node_id: str, call: Call) -> Callable[[Tx], Message]:
        request = rpc.ATTACH_NETWORK.checked_request(call.request)
        if not request.config.target:
            raise InvalidArgument("invalid argument")
        attachment_id = new_id(self._rng)

        def attach(tx: Tx) -> api.AttachNetworkResponse:
            network = _network(tx, request.config.target)
            if tx.get(api.Node, node_id) is None:
                raise NotFound(f"node {node_id} not found")
            held = sum(1 for task in tx.find(api.Task, "node", node_id) if task.spec.HasField("attachment"))
            if held >= defaults.ATTACHMENTS_PER_NODE_MAX:
                text = f"node {node_id} has {held} attachments of containers to networks: no node may have more"
                raise ResourceExhausted(text)
            task = api.Task(id=attachment_id, node_id=node_id, desired_state=api.RUNNING)
            task.spec.attachment.container_id = request.container_id
            task.spec.networks.add(target=network.id, addresses=request.config.addresses)
            task.status.state = api.NEW
            task.status.message = CREATED_MESSAGE
            stamp(task.status.timestamp, tx.now)
            tx.create(task)
            return api.AttachNetworkResponse(attachment_id=attachment_id)

        return attach

    def _detach(self, node_id: str, call: Call) -> Callable[[Tx], Message]:
        request = rpc.DETACH_NETWORK.checked_request(call.request)
        if not request.attachment_id:
            raise InvalidArgument("invalid argument")

        def detach(tx: Tx) -> api.DetachNetworkResponse:
            task = tx.get(api.Task, request.attachment_id)
            if task is None or not task.spec.HasField("attachment"):
                raise NotFound(f"attachment {request.attachment_id} not found")
            if task.node_id != node_id:
                raise PermissionDenied(f"attachment {request.attachment_id} doesn't belong to this node")
            tx.remove(api.Task, task.id)
            return api.DetachNetworkResponse()

        return detach

    def committed(self, changes: Sequence[Change], now: float) -> Sequence[Effect]:
        """Does nothing: an attachment is a task, and stages look after tasks."""
        return ()

    def wake(self, now: float) -> Sequence[Effect]:
        """Never called: there is no deadline."""
        return ()

    def deadline(self) -> float | None:
        """See Service.deadline."""
        return None

    def stalled(self, missed_s: float, now: float) -> None:
        """See Service.stalled."""

    def stop(self) -> Sequence[Effect]:
        """See Service.stop. Writes under way are answered by their pass."""
        return ()


def _network(tx: Tx, target: str) -> api.Network:
    """The attachable network with this ID, or the only one with this name."""
    network = tx.get(api.Network, target)
    if network is None:
        named = list(tx.find(api.Network, "name", target.lower()))
        network = named[0] if len(named) == 1 else None
    if network is None:
        raise NotFound(f"network {target} not found")
    if not network.spec.attachable:
        raise PermissionDenied(f"network {target} not manually attachable")
    return network
