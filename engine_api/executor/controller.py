"""The steps of a task: from an image to a running container, to its removal.

Each step checks what exists before it acts, so it can be repeated after a crash at any point: it finds the container by
its name and recognises it by its labels. An unreachable engine is a temporary error; a refusal by the engine is final.

(moby: daemon/cluster/executor/container/controller.go, adapter.go)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.executor import container as convert
from engine_api.executor import status, templates
from engine_api.executor.errors import TaskError, TemporaryTaskError
from engine_api.executor.images import ImagePuller
from engine_api.executor.networks import TaskNetworks
from engine_api.executor.payloads import PayloadStore
from engine_api.executor.watch import ContainerWatch, Subscription
from swarm import api, defaults
from swarm.agent.events import Execute, Step

log = structlog.get_logger(__name__)

UNHEALTHY = "dockerexec: unhealthy container"
DESTROYED = "dockerexec: container destroyed"
NEVER_STARTED = "dockerexec: container was never started"  # its engine died before it recorded the start

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """A step succeeded. container and ports: facts about the container, if the step concerns it."""

    container: api.ContainerStatus | None = None
    ports: api.PortStatus | None = None


Report = Callable[[Result], None]


class Controller:
    """Performs the steps of all tasks of this node. Steps raise TaskError or EngineUnavailable."""

    def __init__(
        self,
        engine: EngineClient,
        watch: ContainerWatch,
        images: ImagePuller,
        payloads: PayloadStore,
        networks: TaskNetworks,
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._images = images
        self._payloads = payloads
        self._networks = networks
        self._creates = asyncio.Semaphore(defaults.EXECUTOR_CREATES_MAX)
        self._expansions = asyncio.Semaphore(1)
        self._steps: dict[Step, Callable[[Execute, api.NodeDescription, Report], Awaitable[Result]]] = {
            Step.PREPARE: self._prepare,
            Step.START: self._start,
            Step.WAIT: self._wait,
            Step.SHUTDOWN: self._shutdown,
            Step.REMOVE: self._remove,
            Step.UPDATE: self._update,
        }

    async def perform(self, execute: Execute, node: api.NodeDescription, report: Report) -> Result:
        """Perform one step. node: for templates. report: called with facts that are known before the step ends."""
        try:
            if execute.task.spec.HasField("attachment"):
                return await self._attach(execute)
            return await self._steps[execute.step](execute, node, report)
        except EngineError as error:
            raise TaskError(error.message) from None

    # --- prepare ---------------------------------------------------------------------------------------------------

    async def _prepare(self, execute: Execute, node: api.NodeDescription, _: Report) -> Result:
        task = execute.task
        convert.check_runtime(task)
        convert.check_mounts(task.spec.container.mounts)
        name = convert.container_name(task)
        spec = templates.container_spec(task, node)
        attachment = await self._networks.prepare(task)
        existing = await self._inspect(name)
        if existing is None:
            await self._create(execute, node, spec, attachment.endpoints, attachment.dns)
        else:
            self._must_be_ours(existing, task)
        for endpoint in attachment.endpoints[1:]:
            await self._connect(endpoint, name)
        return Result()

    async def _create(
        self,
        execute: Execute,
        node: api.NodeDescription,
        spec: api.ContainerSpec,
        endpoints: Sequence[convert.Endpoint],
        dns: Sequence[str],
    ) -> None:
        task = execute.task
        for request in convert.volume_requests(spec):
            await self._engine.create_volume(request)
        pull_error = await self._images.ensure(spec.image, spec.pull_options.registry_auth)
        files = await self._write_payloads(execute, node, spec)
        body = convert.create_body(task, spec, files, endpoints[:1], dns)
        name = convert.container_name(task)
        try:
            async with self._creates:
                container_id = await self._engine.create_container(name, body)
            log.info("container.created", task=task.id, container=container_id)
        except EngineError as error:
            existing = await self._inspect(name) if error.status == 409 else None
            if existing is not None:
                self._must_be_ours(existing, task)
                return
            self._payloads.remove(task.id)
            missing = error.status == 404 and pull_error
            raise TaskError(f"{error.message}: {pull_error}" if missing else error.message) from None

    async def _write_payloads(
        self, execute: Execute, node: api.NodeDescription, spec: api.ContainerSpec
    ) -> list[convert.PayloadFile]:
        payloads = templates.Payloads(execute.task, node, execute.secrets, execute.configs)
        directory = str(self._payloads.directory(execute.task_id))
        if payloads.templated:
            async with self._expansions:
                # In a thread, because a large template may take a second; the files are written here, so that a step
                # that is cancelled leaves none behind.
                files = await asyncio.to_thread(
                    convert.payload_files, spec, directory, payloads.secret, payloads.config
                )
        else:
            files = convert.payload_files(spec, directory, payloads.secret, payloads.config)
        self._payloads.write(execute.task_id, files)
        return files

    def _must_be_ours(self, container: Json, task: api.Task) -> None:
        labels = (container.get("Config") or {}).get("Labels") or {}
        if labels.get(convert.LABEL_TASK_ID) != task.id:
            name = convert.container_name(task)
            raise TaskError(f'the container name "/{name}" is already in use by container "{container.get("Id")}"')

    async def _connect(self, endpoint: convert.Endpoint, name: str) -> None:
        try:
            await self._engine.connect_network(
                endpoint.network, {"Container": name, "EndpointConfig": endpoint.settings}
            )
        except EngineError as error:
            if "already exists in network" not in error.message:
                raise

    # --- start -----------------------------------------------------------------------------------------------------

    async def _start(self, execute: Execute, node: api.NodeDescription, report: Report) -> Result:
        try:
            return await self._start_and_settle(execute, node, report)
        except (TaskError, EngineError) as error:
            if not isinstance(error, TemporaryTaskError):
                self._payloads.remove(execute.task_id)
            raise

    async def _start_and_settle(self, execute: Execute, node: api.NodeDescription, report: Report) -> Result:
        task = execute.task
        name = convert.container_name(task)
        with self._watch.subscribe(task.id) as changes:
            container = await self._must_inspect(name)
            if status.is_created(container):
                spec = templates.container_spec(task, node)
                await self._write_payloads(execute, node, spec)  # there may have been a reboot
                await self._networks.prepare(task)  # or a prune
                await self._start_container(name, spec)
                container = await self._must_inspect(name)
                log.info("container.started", task=task.id, container=container.get("Id"))
            if status.health(container) == "starting":
                report(_result(container))
                container = await self._healthy(task, name, changes)
        if status.is_running(container):
            await self._networks.activate(task)
        return _result(container)

    async def _start_container(self, name: str, spec: api.ContainerSpec) -> None:
        binds = [mount.source for mount in spec.mounts if mount.type == api.Mount.BIND]
        if binds and self._engine.local and (missing := await asyncio.to_thread(_missing, binds)):
            problem = f"invalid bind mount source, source path not found: {missing}"
            raise TaskError(f"starting container failed: {problem}", *await self._facts(name))
        try:
            async with self._creates:
                await self._engine.start_container(name)
        except EngineError as error:
            raise TaskError(f"starting container failed: {error.message}", *await self._facts(name)) from None

    async def _healthy(self, task: api.Task, name: str, changes: Subscription) -> Json:
        """Wait for the first result of the health check, or for the end of the container."""
        while True:
            changes.clear()
            container = await self._must_inspect(name)
            if not status.is_running(container) or status.health(container) in ("healthy", ""):
                return container
            if status.health(container) == "unhealthy":
                log.info("container.unhealthy", task=task.id)
                await self._stop(task)
                container = await self._must_inspect(name)
                if code := status.exit_code(container):
                    result = _result(container)
                    raise TaskError(_exit_error(code, UNHEALTHY), result.container, result.ports)
                return container
            await changes.wait(defaults.EXECUTOR_RECHECK_S)

    # --- wait ------------------------------------------------------------------------------------------------------

    async def _wait(self, execute: Execute, _node: api.NodeDescription, _report: Report) -> Result:
        task = execute.task
        name = convert.container_name(task)
        cause = ""
        with self._watch.subscribe(task.id) as changes:
            while True:
                changes.clear()
                try:
                    container = await self._inspect(name)
                except EngineUnavailable:  # the container may continue to run without its engine
                    await changes.wait(defaults.EXECUTOR_RECONCILE_PERIOD_S)
                    continue
                if container is None or not status.is_running(container):
                    break
                if status.health(container) == "unhealthy" and not cause:
                    log.info("container.unhealthy", task=task.id)
                    cause = UNHEALTHY
                    await self._stop(task)
                    continue
                await changes.wait()
            code = changes.exit_code
        self._payloads.remove(task.id)
        if container is None:
            gone = api.ContainerStatus(container_id=task.status.container.container_id, exit_code=code or 0)
            raise TaskError(_exit_error(code, cause) if code else DESTROYED, gone, api.PortStatus())
        result = _result(container)
        if status.is_created(container):
            raise TaskError(NEVER_STARTED, result.container, result.ports)
        log.info("container.ended", task=task.id, exit_code=status.exit_code(container))
        if code := status.exit_code(container):
            cause = cause or str(status.state(container).get("Error") or "")
            raise TaskError(_exit_error(code, cause), result.container, result.ports)
        return result

    # --- shutdown and remove ---------------------------------------------------------------------------------------

    async def _shutdown(self, execute: Execute, _node: api.NodeDescription, _report: Report) -> Result:
        task = execute.task
        await self._stop(task)
        self._payloads.remove(task.id)
        await self._networks.release(task)
        return Result(*await self._facts(convert.container_name(task)))

    async def _remove(self, execute: Execute, _node: api.NodeDescription, _report: Report) -> Result:
        task = execute.task
        await self._stop(task)
        await remove_container(self._engine, self._watch, task.id, convert.container_name(task))
        self._payloads.remove(task.id)
        await self._networks.release(task)
        return Result()

    async def _stop(self, task: api.Task) -> None:
        """Stop the container if it runs, after its services had time to withdraw it. Succeeds if it is gone."""
        name = convert.container_name(task)
        with self._watch.subscribe(task.id) as changes:
            container = await self._inspect(name)
            if container is None or not status.is_running(container):
                return
            if convert.service_networks(task):
                await self._networks.deactivate(task)
                await changes.wait_for_exit(defaults.SERVICE_WITHDRAWAL_S)
        grace = task.spec.container.stop_grace_period
        given = task.spec.container.HasField("stop_grace_period")
        try:
            await self._engine.stop_container(name, grace.seconds if given else None)
        except EngineError as error:
            if error.status != 404:
                raise

    async def _update(self, execute: Execute, _node: api.NodeDescription, _report: Report) -> Result:
        """Do nothing: a task cannot change while its container runs. Stock nodes do nothing here either."""
        return Result()

    # --- attachments of plain containers ---------------------------------------------------------------------------

    async def _attach(self, execute: Execute) -> Result:
        """One step of a task that is an address and no container: it runs for as long as this node has it."""
        match execute.step:
            case Step.PREPARE:
                await self._networks.prepare(execute.task)
            case Step.START | Step.WAIT:
                await self._networks.attached(execute.task)
                if execute.step is Step.WAIT:
                    await asyncio.Event().wait()
            case Step.SHUTDOWN | Step.REMOVE:
                await self._networks.detached(execute.task)
        return Result()

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _inspect(self, name: str) -> Json | None:
        try:
            return await self._engine.inspect_container(name)
        except EngineError as error:
            if error.status == 404:
                return None
            raise

    async def _must_inspect(self, name: str) -> Json:
        container = await self._inspect(name)
        if container is None:
            raise TaskError(f"No such container: {name}")
        return container

    async def _facts(self, name: str) -> tuple[api.ContainerStatus | None, api.PortStatus | None]:
        container = await self._inspect(name)
        if container is None:
            return None, None
        return status.container_status(container), status.port_status(container)


async def remove_container(engine: EngineClient, watch: ContainerWatch, task_id: str, container: str) -> None:
    """Delete a container with its anonymous volumes. Succeeds if it is gone. Raises TemporaryTaskError."""
    with watch.subscribe(task_id) as changes:
        try:
            await engine.remove_container(container, force=True, volumes=True)
        except EngineError as error:
            if error.status == 404:
                return
            if error.status != 409:
                raise
            await changes.wait(defaults.EXECUTOR_RECHECK_S)  # another caller is removing it
            raise TemporaryTaskError(error.message) from None


def _missing(paths: list[str]) -> str:
    return next((path for path in paths if not os.path.exists(path)), "")


def _result(container: Json) -> Result:
    return Result(status.container_status(container), status.port_status(container))


def _exit_error(code: int, cause: str) -> str:
    text = f"task: non-zero exit ({code})"
    return f"{text}: {cause}" if cause else text
