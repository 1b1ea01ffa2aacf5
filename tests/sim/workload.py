"""Clients: random calls of the control API through random managers, and operators beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from swarm import api
from swarm.errors import NotFound, SwarmError
from tests.sim.checkers import OP_LABEL
from tests.sim.clear_text import PAYLOAD
from tests.sim.history import History, Known
from tests.sim.kernel import Script
from tests.sim.linearizability import Kind
from tests.sim.lists import Lister
from tests.sim.logs import Readers
from tests.sim.operators import Operators
from tests.sim.world import Node, World

CALL_LIMIT_S = 15.0
FINISH_S = 120.0
SERVICES_MAX = 7


class Workload:
    """Runs while ``world.faulty``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.kernel = world.kernel
        self.history = History(world.checkers, lambda: any(node.clock_offset < -60.0 for node in world.nodes))
        self.operators = Operators(world, self.call)
        self.readers = Readers(world)
        self.lister = Lister(self)
        self.open = 0
        self._names = 0
        self._rate = self.rng.choice((1.0, 3.0, 6.0))
        self._operates = self.rng.choice((0.0, 0.03, 0.15)) if not world.ailments.many else 0.2

    def start(self) -> None:
        """From now on."""
        self.readers.start()
        self.lister.start()
        self.kernel.at(0.1, self._act)

    def _act(self) -> None:
        for care in self.operators.cares():
            self.spawn(care)
        if not self.world.faulty:
            return
        managing = self.world.managing()
        usurped = self.world.usurped if self.kernel.now < self.world.usurped_until else None
        if usurped in managing and usurped is not None:
            self.spawn(self._read_or_update(usurped, managing))
        elif managing:
            self.spawn(self._choose(self.rng.choice(managing)))
        self.kernel.at(self.rng.expovariate(20.0 if usurped is not None else self._rate), self._act)

    def _read_or_update(self, usurped: Node, managing: list[Node]) -> Script:
        """One object is changed through the others and read from who led before."""
        objects = [*self.history.of_kind("config"), *self.history.of_kind("secret")][:2]
        others = [node for node in managing if node is not usurped]
        if not objects or not others:
            return self._create_payload(self.rng.choice(managing), "config")
        known = self.rng.choice(objects)
        if self.rng.random() < 0.5:
            return self._read(usurped, known)
        return self._update(self.rng.choice(others), known, lambda obj: None)

    def spawn(self, script: Script) -> None:
        """Run something that must come to its end before the cluster is judged."""
        self.open += 1

        def ended() -> None:
            self.open -= 1

        self.world.scope.run(script).then(ended)

    def _choose(self, node: Node) -> Script:
        rng, history = self.rng, self.history
        services = history.of_kind("service")
        others = [*history.of_kind("config"), *history.of_kind("secret")]
        dice = rng.random()
        if rng.random() < self._operates:
            return self.operators.act(node)
        if dice < 0.12 and len(services) < SERVICES_MAX:
            return self._create_service(node)
        if dice < 0.22 and len(others) < 12:
            return self._create_payload(node, rng.choice(("config", "secret")))
        if dice < 0.55 and services:
            return self._update_service(node, rng.choice(services))
        if dice < 0.65 and others:
            return self._update(node, rng.choice(others), lambda obj: None)
        if dice < 0.70 and services:
            return self._remove(node, rng.choice(services))
        if dice < 0.74 and others:
            return self._remove(node, rng.choice(others))
        known = [k for k in history.objects.values() if not k.removal_asked or rng.random() < 0.2]
        if known:
            return self._read(node, rng.choice(known))
        return self._create_payload(node, "config")

    # --- calls -----------------------------------------------------------------------------------------------------

    def call(self, node: Node, method: str, request: Message) -> Script:
        """One call through the manager on this node. Raises SwarmError."""
        manager = node.manager
        if manager is None:
            raise NotFound("no manager here")
        future = node.process.run(manager.call(f"Control/{method}", request, CALL_LIMIT_S)) if node.process else None
        assert future is not None
        return (yield self.kernel.within(future, CALL_LIMIT_S + 1.0))

    def _word(self, kind: str) -> str:
        return kind.capitalize()

    def _get(self, node: Node, known: Known) -> Script:
        word = self._word(known.kind)
        request = getattr(api, f"Get{word}Request")(**{f"{known.kind}_id": known.object_id})
        floor, was_removed, called = known.version, known.removed, self.kernel.now
        try:
            answer = yield from self.call(node, f"Get{word}", request)
        except NotFound as error:
            if known.object_id in str(error):
                known.note(Kind.READ, called, self.kernel.now)
                self.history.not_there(known)
            raise
        obj = getattr(answer, known.kind)
        known.note(Kind.READ, called, self.kernel.now, version=obj.meta.version.index)
        self.history.read(known, obj.meta.version.index, floor, was_removed)
        return obj

    def _read(self, node: Node, known: Known) -> Script:
        try:
            yield from self._get(node, known)
        except SwarmError:
            return

    def _write(
        self, node: Node, method: str, request: Message, op: str, failed: Callable[[SwarmError], None] | None = None
    ) -> Script:
        """The answer, or None when there was none that counts."""
        try:
            return (yield from self.call(node, method, request))
        except SwarmError as error:
            self.history.failed(error, op)
            if failed is not None:
                failed(error)
            self.kernel.say("client", op, method, "fails:", error)
            return None

    def _create_payload(self, node: Node, kind: str) -> Script:
        self._names += 1
        op, name, word = self.history.new_op(), f"{kind}{self._names}", self._word(kind)
        request: Any = getattr(api, f"Create{word}Request")()
        request.spec.annotations.name = name
        request.spec.annotations.labels[OP_LABEL] = op
        request.spec.data = PAYLOAD + name.encode()
        called = self.kernel.now
        answer = yield from self._write(node, f"Create{word}", request, op)
        if answer is not None:
            obj = getattr(answer, kind)
            known = self.history.created(kind, obj.id, name, obj.meta.version.index, op)
            known.note(Kind.CREATE, called, self.kernel.now, version=known.version)

    def _create_service(self, node: Node) -> Script:
        self._names += 1
        op, name = self.history.new_op(), f"service{self._names}"
        request = api.CreateServiceRequest()
        spec = request.spec
        spec.annotations.name = name
        spec.annotations.labels[OP_LABEL] = op
        self._fill(spec)
        called = self.kernel.now
        answer = yield from self._write(node, "CreateService", request, op)
        if answer is not None:
            service = answer.service
            known = self.history.created("service", service.id, name, service.meta.version.index, op)
            known.note(Kind.CREATE, called, self.kernel.now, version=known.version)

    def _publish(self, spec: api.ServiceSpec) -> None:
        """Ports of the hosts, or of the whole cluster; the tasks of the latter wait for a network that nobody makes."""
        rng = self.rng
        ingress = rng.random() < 0.5
        for _ in range(rng.choice((1, 2))):
            protocol = rng.choice((api.PortConfig.TCP, api.PortConfig.UDP))
            port = spec.endpoint.ports.add(target_port=80, protocol=protocol)
            port.publish_mode = api.PortConfig.INGRESS if ingress else api.PortConfig.HOST
            port.published_port = rng.choice((0, *range(8000, 8004))) if ingress else rng.choice(range(8000, 8004))
        spec.replicated.replicas = 0 if ingress else rng.choice((1, 2))
        for config in (spec.update, spec.rollback):
            config.order = api.UpdateConfig.STOP_FIRST  # the new task needs the old one's port

    def _fill(self, spec: api.ServiceSpec) -> None:
        rng = self.rng
        dice = rng.random()
        spec.task.container.image = "app:1"
        spec.task.restart.condition = api.RestartPolicy.ANY
        spec.task.restart.delay.FromMilliseconds(rng.choice((0, 100, 2000)))
        if dice < 0.2:
            getattr(spec, "global").SetInParent()
        elif dice < 0.3:
            spec.replicated_job.max_concurrent, spec.replicated_job.total_completions = 2, 3
            spec.task.restart.condition = api.RestartPolicy.ON_FAILURE
        else:
            spec.replicated.replicas = rng.choice((1, 2, 4))
        spec.task.resources.reservations.nano_cpus = rng.choice((0, 250_000_000, 1_000_000_000))
        for config in (spec.update, spec.rollback):
            config.parallelism = rng.choice((0, 1, 2))
            config.delay.FromMilliseconds(rng.choice((0, 300)))
            config.monitor.FromMilliseconds(rng.choice((200, 1000)))
            if not spec.HasField("replicated_job"):
                config.order = rng.choice((api.UpdateConfig.STOP_FIRST, api.UpdateConfig.START_FIRST))
        spec.update.failure_action = rng.choice(
            (api.UpdateConfig.PAUSE, api.UpdateConfig.CONTINUE, api.UpdateConfig.ROLLBACK)
        )
        if spec.HasField("replicated") and rng.random() < 0.15:
            self._publish(spec)
        for known in self.history.of_kind("secret"):
            if rng.random() < 0.2:
                spec.task.container.secrets.add(secret_id=known.object_id, secret_name=known.name).file.name = "f"
        for known in self.history.of_kind("config"):
            if rng.random() < 0.2:
                spec.task.container.configs.add(config_id=known.object_id, config_name=known.name).file.name = "f"

    def _update_service(self, node: Node, known: Known) -> Script:
        def change(service: api.Service) -> None:
            spec, dice = service.spec, self.rng.random()
            ingress = any(port.publish_mode == api.PortConfig.INGRESS for port in spec.endpoint.ports)
            if spec.HasField("replicated") and dice < 0.5 and not ingress:
                spec.replicated.replicas = self.rng.choice((0, 1, 2, 3, 5))
            elif dice < 0.9:
                spec.task.container.image = f"app:{self.rng.randint(1, 9)}"
            else:
                spec.task.force_update += 1

        yield from self._update(node, known, change)

    def _update(self, node: Node, known: Known, change: Any) -> Script:
        """Read, change, write; now and then from a version that is too old, which must be refused."""
        rng, word = self.rng, self._word(known.kind)
        try:
            obj = yield from self._get(node, known)
        except SwarmError:
            return
        if rng.random() < 0.2:
            yield self.kernel.sleep(rng.expovariate(1.0))
        base = obj.meta.version.index
        stale = rng.random() < 0.1
        op = self.history.new_op()
        request: Any = getattr(api, f"Update{word}Request")(**{f"{known.kind}_id": known.object_id})
        getattr(request, f"{known.kind}_version").index = base - 1 if stale else base
        change(obj)
        obj.spec.annotations.labels[OP_LABEL] = op
        request.spec.CopyFrom(obj.spec)
        if known.kind == "secret":
            request.spec.ClearField("data")
        if known.kind == "service" and rng.random() < 0.08 and obj.HasField("previous_spec"):
            request.rollback = api.UpdateServiceRequest.PREVIOUS
            yield from self._rollback(node, request)
            return
        other = rng.choice(self.world.managing() or [node])
        called = self.kernel.now

        def failed(error: SwarmError) -> None:
            known.note_error(Kind.UPDATE, called, self.kernel.now, error, base - 1 if stale else base)

        answer = yield from self._write(other, f"Update{word}", request, op, failed)
        if answer is not None:
            version = getattr(answer, known.kind).meta.version.index
            known.note(Kind.UPDATE, called, self.kernel.now, version=version, base=base - 1 if stale else base)
            assert not stale, f"{op}: an update from an old version was taken"
            self.history.updated(known, base, getattr(answer, known.kind).meta.version.index, op)

    def _rollback(self, node: Node, request: api.UpdateServiceRequest) -> Script:
        try:
            yield from self.call(node, "UpdateService", request)
        except SwarmError:
            return

    def _remove(self, node: Node, known: Known) -> Script:
        if known.kind != "service" and self.rng.random() < 0.5:
            return
        word = self._word(known.kind)
        request = getattr(api, f"Remove{word}Request")(**{f"{known.kind}_id": known.object_id})
        known.removal_asked = True
        called = self.kernel.now
        try:
            yield from self.call(node, f"Remove{word}", request)
        except SwarmError as error:
            known.note_error(Kind.REMOVE, called, self.kernel.now, error)
            if error.code.name == "INVALID_ARGUMENT":  # still in use
                known.removal_asked = False
            return
        known.note(Kind.REMOVE, called, self.kernel.now)
        self.history.removed(known)

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Let what was begun come to its end; then nothing is drained or paused any more."""
        self.world.until(self._finished, "calls without an end", FINISH_S)
        self.world.scope.run(self.operators.activate_all())

    def _finished(self) -> bool:
        for care in self.operators.cares():
            self.spawn(care)
        return not self.open and not any(node.ailing and not node.gone for node in self.world.nodes)
