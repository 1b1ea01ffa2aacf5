"""Operators of a simulated cluster: availability, roles, machines that come and go, and what is left of lost ones."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from swarm import api
from swarm.errors import NotFound, SwarmError
from swarm.node.events import Refusal, Refused
from tests.sim.kernel import Script
from tests.sim.world import Node, World

NODES_MAX = 8
KINDS = ("availability", "role", "join", "remove", "lock")

Calls = Callable[[Node, str, Message], Script]


class Operators:
    """call: one call of the control API through the manager on a node; raises SwarmError."""

    def __init__(self, world: World, call: Calls) -> None:
        self._world = world
        self._rng = world.rng
        self._kernel = world.kernel
        self._call = call
        self._cared_for: dict[str, None] = {}

    def act(self, node: Node) -> Script:
        """One random act, through the manager on this node."""
        weights = (10, 30, 10, 10, 40) if self._world.ailments.many else (35, 35, 10, 12, 8)
        return self.do(self._rng.choices(KINDS, weights)[0], node)

    def do(self, kind: str, node: Node) -> Script:
        """An act of this kind; a worker is removed instead of a ninth node joining."""
        if kind == "availability":
            return self._set_availability(node)
        if kind == "role":
            return self._set_role(node)
        if kind == "lock":
            return self._lock(node)
        if kind == "join" and len([n for n in self._world.nodes if not n.gone]) < NODES_MAX:
            return self._join()
        return self._remove_node(node)

    def _some_node(self, node: Node) -> Script:
        answer = yield from self._call(node, "ListNodes", api.ListNodesRequest())
        return self._rng.choice(list(answer.nodes)) if answer.nodes else None

    def _update_node(self, node: Node, target: api.Node) -> Script:
        request = api.UpdateNodeRequest(node_id=target.id, node_version=target.meta.version, spec=target.spec)
        return (yield from self._call(node, "UpdateNode", request))

    def _set_availability(self, node: Node) -> Script:
        try:
            target = yield from self._some_node(node)
            if target is not None:
                values = (api.NodeSpec.ACTIVE, api.NodeSpec.PAUSE, api.NodeSpec.DRAIN)
                target.spec.availability = self._rng.choice(values)
                yield from self._update_node(node, target)
        except SwarmError:
            return

    def _set_role(self, node: Node) -> Script:
        """Promote or demote somebody; where disks are lost every other manager is needed, and nobody is demoted."""
        try:
            target = yield from self._some_node(node)
            kept = [n.node_id for n in self._world.nodes if n.gone or n.stock]  # stock managers may always be needed
            if target is not None and target.id not in kept:
                demote = target.spec.desired_role == api.MANAGER
                if demote and self._world.nature.loses_disks:
                    return
                target.spec.desired_role = api.WORKER if demote else api.MANAGER
                self._kernel.say("demote" if demote else "promote", target.description.hostname)
                yield from self._update_node(node, target)
        except SwarmError as error:
            self._kernel.say("role not changed:", error)

    def _lock(self, node: Node) -> Script:
        """Lock the managers' disks, unlock them for good, or change the key."""
        try:
            answer = yield from self._call(node, "ListClusters", api.ListClustersRequest())
            cluster = answer.clusters[0]
            version = cluster.meta.version
            request = api.UpdateClusterRequest(cluster_id=cluster.id, cluster_version=version, spec=cluster.spec)
            locked = cluster.spec.encryption_config.auto_lock_managers
            if locked and self._rng.random() < 0.5:
                request.rotation.manager_unlock_key = True
            else:
                request.spec.encryption_config.auto_lock_managers = not locked
            self._kernel.say("rotate unlock key" if request.HasField("rotation") else "unlock" if locked else "lock")
            yield from self._call(node, "UpdateCluster", request)
        except SwarmError as error:
            self._kernel.say("not locked:", error)

    def _join(self) -> Script:
        self._world.join(self._rng.choice(self._world.tokens))
        yield self._kernel.sleep(0.0)

    def _remove_node(self, node: Node) -> Script:
        """A worker leaves, and is removed from the list."""
        alive = [n for n in self._world.alive() if not n.gone]
        workers = [n for n in alive if n.process is not None and n.process.identity.role == "swarm-worker"]
        if not workers:
            return
        leaving = self._rng.choice(workers)
        assert leaving.process is not None
        node_id = leaving.node_id
        try:
            answer = yield from self._call(node, "GetNode", api.GetNodeRequest(node_id=node_id))
            if leaving.gone:
                return
            if answer.node.spec.desired_role == api.MANAGER:
                return
            leaving.gone = True  # from here on nobody promotes it, and what was asked before is overtaken by this
            answer.node.spec.availability = api.NodeSpec.DRAIN
            yield from self._update_node(node, answer.node)
            self._kernel.say("leave", leaving.name)
            yield from self._leave(leaving)
            yield from self._call(node, "RemoveNode", api.RemoveNodeRequest(node_id=node_id, force=True))
        except SwarmError as error:
            self._kernel.say("node not removed:", error)
            if leaving.process.alive:
                leaving.gone = False

    def _leave(self, node: Node) -> Script:
        """Until it is out, whoever kills it, stops it or hangs up meanwhile. Raises SwarmError if it may not leave."""
        process = node.process
        assert process is not None
        self._world.ailments.perhaps_interrupt(process)
        while True:
            try:
                yield process.docker.leave()
            except Refused as error:
                if error.refusal in (Refusal.MANAGER, Refusal.LOCKED):
                    raise
            except (SwarmError, OSError) as error:
                self._kernel.say(node.name, "does not leave:", error)
            if process.alive and not process.in_swarm:
                break
            yield self._kernel.sleep(self._rng.uniform(0.1, 2.0))
            if not process.alive:
                process = self._world.start(node)
                yield self._kernel.sleep(0.5)
        assert not node.disk.files.paths(), f"{node.name} has left, and keeps {node.disk.files.paths()}"
        process.die(torn=False, silent=False)

    # --- what must be done -----------------------------------------------------------------------------------------

    def cares(self) -> list[Script]:
        """What is to be done about nodes that were lost since the last look; each ends when it is done."""
        lost = [node.buried_id for node in self._world.nodes if node.buried_id not in ("", *self._cared_for)]
        self._cared_for.update(dict.fromkeys(lost))
        return [self._forget(node_id) for node_id in lost]

    def _forget(self, node_id: str) -> Script:
        """Demote and remove a node whose disk is lost; as often as it takes."""
        while True:
            yield self._kernel.sleep(self._rng.uniform(0.5, 3.0))
            leader = self._world.leader()
            if leader is None:
                continue
            try:
                answer = yield from self._call(leader, "GetNode", api.GetNodeRequest(node_id=node_id))
                if answer.node.spec.desired_role == api.MANAGER and answer.node.HasField("manager_status"):
                    answer.node.spec.desired_role = api.WORKER
                    yield from self._update_node(leader, answer.node)
                else:
                    yield from self._call(leader, "RemoveNode", api.RemoveNodeRequest(node_id=node_id, force=True))
                    self._kernel.say("forgotten", node_id)
                    return
            except SwarmError as error:
                if isinstance(error, NotFound) and error.message == f"node {node_id} not found":
                    return
                self._kernel.say("not forgotten yet:", node_id, error)

    def activate_all(self) -> Script:
        """Every node may run tasks again; as often as it takes."""
        while True:
            try:
                leader = self._world.leader()
                if leader is not None:
                    answer = yield from self._call(leader, "ListNodes", api.ListNodesRequest())
                    drained = [n for n in answer.nodes if n.spec.availability != api.NodeSpec.ACTIVE]
                    if not drained:
                        return
                    for target in drained:
                        target.spec.availability = api.NodeSpec.ACTIVE
                        yield from self._update_node(leader, target)
            except SwarmError as error:
                self._kernel.say("not activated:", error)
            yield self._kernel.sleep(1.0)
