"""The commands of operators on one node, as the docker CLI sends them. Drives the Node machine through its process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm import api
from swarm.manager import cluster
from swarm.node import events
from swarm.node.state import Addresses, NodeState
from tests.sim.kernel import Future
from tests.sim.network import PORT

if TYPE_CHECKING:
    from tests.sim.process import Process


class Docker:
    """Futures end with the command. What was acknowledged by one must not be lost any more."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def create(self, spec: api.ClusterSpec) -> Future:
        """docker swarm init."""
        state = NodeState.new(self._addresses(), "node-one", "cluster").with_self()
        details = cluster.NewCluster(address=self._process.host)
        return self._acknowledging(self._process.ask(lambda ticket: events.Init(ticket, state, spec, details)))

    def join(self, managers: list[str], token: str) -> Future:
        """docker swarm join."""
        state = NodeState.new(self._addresses(), managers=tuple(("", addr) for addr in managers))
        return self._acknowledging(
            self._process.ask(lambda ticket: events.Join(ticket, state, token, api.NodeSpec.ACTIVE))
        )

    def _acknowledging(self, future: Future) -> Future:
        """Once it is answered, this node must not be lost any more."""

        def answered() -> None:
            if future.error is None:
                self._process.node.acknowledged_id, self._process.node.leaving = self._process.node_id, False

        future.then(answered)
        return future

    def leave(self, force: bool = False) -> Future:
        """docker swarm leave."""
        self._process.node.leaving = True
        future = self._process.ask(lambda ticket: events.Leave(ticket, force))

        def answered() -> None:
            final = (events.Refusal.MANAGER, events.Refusal.LOCKED)  # with others, an earlier leave may be under way
            if isinstance(future.error, events.Refused) and future.error.refusal in final:
                self._process.node.leaving = False

        future.then(answered)
        return future

    def force_new_cluster(self) -> Future:
        """docker swarm init --force-new-cluster."""
        return self._process.ask(lambda ticket: events.ForceNewCluster(ticket, self._addresses()))

    def unlock(self, key: bytes) -> Future:
        """docker swarm unlock."""
        return self._process.ask(lambda ticket: events.Unlock(ticket, key))

    def _addresses(self) -> Addresses:
        host = self._process.host
        return Addresses(host, PORT, host, PORT, host)
