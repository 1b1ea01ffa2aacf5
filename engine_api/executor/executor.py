"""Performs the agent's effects: steps of tasks on this node's engine, and the publication of their logs.

Each step is an asyncio task; steps of the same task run one after another. close() cancels all of them, but does not
touch containers: after a restart the agent requests its steps again, and they find what exists.

(moby: daemon/cluster/executor/container/executor.go)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import structlog

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.executor.container import LABEL_NODE_ID, LABEL_TASK_ID
from engine_api.executor.controller import Controller, Result, remove_container
from engine_api.executor.describe import node_description, remapped_root
from engine_api.executor.errors import TaskError
from engine_api.executor.images import ImagePuller
from engine_api.executor.logs import LogPublisher, OpenSink
from engine_api.executor.networks import NoNetworks, TaskNetworks
from engine_api.executor.payloads import PayloadStore
from engine_api.executor.watch import ContainerWatch
from swarm import api, defaults
from swarm.agent.events import (
    CancelStep,
    Execute,
    Executed,
    LogsEnded,
    Networks,
    Observed,
    PublishLogs,
    Step,
    StopLogs,
    Sweep,
)

log = structlog.get_logger(__name__)

Effect = Execute | CancelStep | PublishLogs | StopLogs | Sweep | Networks
Event = Executed | Observed | LogsEnded


class Executor:
    """The executor of one node.

    engine: owned and closed by the caller. node_id: as in the labels of containers. emit: takes events for the agent;
    it is called in the event loop and must not block. directory: for secrets and configs (a tmpfs is mounted there).
    prefer_offline: never pull images. open_sink: opens a call that publishes logs to a manager.
    """

    def __init__(
        self,
        engine: EngineClient,
        node_id: str,
        emit: Callable[[Event], None],
        *,
        directory: Path,
        open_sink: OpenSink,
        prefer_offline: bool = False,
        networks: TaskNetworks | None = None,
    ) -> None:
        self._engine = engine
        self._node_id = node_id
        self._emit = emit
        self._payloads = PayloadStore(directory)
        self._watch = ContainerWatch(engine)
        self._images = ImagePuller(engine, prefer_offline)
        self._logs = LogPublisher(engine, self._watch, open_sink, self._tell)
        self._networks = networks or NoNetworks()
        self._controller = Controller(engine, self._watch, self._images, self._payloads, self._networks)
        self._description: api.NodeDescription | None = None
        self._watching: asyncio.Task[None] | None = None
        self._steps: dict[str, asyncio.Task[Executed]] = {}
        self._jobs: set[asyncio.Task[Executed]] = set()
        self._present: dict[str, None] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """Cancel everything that runs here; containers continue to run."""
        self._closed = True
        jobs: list[asyncio.Task[Executed] | asyncio.Task[None]] = [*self._jobs]
        jobs += [job for job in (self._watching, self._sweeping) if job is not None]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await self._logs.close()
        await self._images.close()

    # --- effects ---------------------------------------------------------------------------------------------------

    def perform(self, effect: Effect) -> None:
        """Start to perform an effect; events report the outcome."""
        if self._closed:
            return
        self._watch_containers()
        match effect:
            case Execute():
                self._execute(effect)
            case CancelStep():
                if (step := self._steps.get(effect.task_id)) is not None:
                    step.cancel()
            case PublishLogs():
                self._logs.publish(effect)
            case StopLogs():
                self._logs.stop(effect.subscription_id)
            case Sweep(task_ids=task_ids):
                self._sweeping = asyncio.create_task(self._sweep(task_ids))
            case Networks():
                self._networks.known(effect)

    def _execute(self, execute: Execute) -> None:
        self._present[execute.task_id] = None
        job = asyncio.create_task(self._run(execute, self._steps.get(execute.task_id)))
        self._steps[execute.task_id] = job
        self._jobs.add(job)
        job.add_done_callback(lambda job: self._ended(execute, job))

    async def _run(self, execute: Execute, previous: asyncio.Task[Executed] | None) -> Executed:
        if previous is not None:
            await asyncio.wait({previous})

        def report(result: Result) -> None:
            self._tell(Observed(execute.task_id, result.container, result.ports))

        try:
            node = self._description or await self.describe()
            result = await self._controller.perform(execute, node, report)
        except TaskError as error:
            log.info("task.step_failed", task=execute.task_id, step=execute.step.value, error=error.message)
            return Executed(
                execute.task_id,
                execute.step,
                error=error.message,
                temporary=error.temporary,
                container=error.container,
                ports=error.ports,
            )
        except (EngineUnavailable, EngineError) as error:
            return Executed(execute.task_id, execute.step, error=str(error), temporary=True)
        return Executed(execute.task_id, execute.step, container=result.container, ports=result.ports)

    def _ended(self, execute: Execute, job: asyncio.Task[Executed]) -> None:
        self._jobs.discard(job)
        if self._steps.get(execute.task_id) is job:
            del self._steps[execute.task_id]
            if execute.step is Step.REMOVE and not job.cancelled() and not job.exception():
                self._present.pop(execute.task_id, None)
        if job.cancelled():
            self._tell(Executed(execute.task_id, execute.step, cancelled=True))
        elif (error := job.exception()) is not None:
            log.error("task.step_crashed", task=execute.task_id, step=execute.step.value, exc_info=error)
            self._tell(Executed(execute.task_id, execute.step, error=f"internal error: {type(error).__name__}"))
        else:
            self._tell(job.result())

    def _tell(self, event: Event) -> None:
        if not self._closed:
            self._emit(event)

    def _watch_containers(self) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch.run())
            self._watching.add_done_callback(self._watch_ended)

    def _watch_ended(self, job: asyncio.Task[None]) -> None:
        """Start the watch again: only a bug ends it, and without it no exit would be noticed."""
        if job.cancelled() or self._closed:
            return
        log.error("executor.watch_crashed", exc_info=job.exception())
        self._watching = None
        asyncio.get_running_loop().call_later(defaults.EXECUTOR_RECONNECT_MAX_S, self._watch_containers)

    # --- the node --------------------------------------------------------------------------------------------------

    async def describe(self) -> api.NodeDescription:
        """The description of this node; the caller adds the TLS information. Raises EngineError, EngineUnavailable."""
        info = await self._engine.info()
        try:
            plugins = await self._engine.plugins()
        except EngineError:
            plugins = []
        self._payloads.root = remapped_root(info)
        self._description = node_description(info, plugins)
        return self._description

    async def sweep(self, known: Collection[str]) -> None:
        """Remove what is left of tasks that are neither known nor present. Raises EngineError, EngineUnavailable."""
        containers = await self._containers(self._node_id)
        kept = {*known, *self._present}  # includes tasks that came meanwhile and whose steps have begun
        await self._discard_all([row for row in containers if row["Labels"].get(LABEL_TASK_ID) not in kept])
        self._payloads.sweep({*known, *self._present})

    async def _sweep(self, known: Collection[str]) -> None:
        """Call sweep() as soon as the engine answers."""
        while True:
            try:
                await self.sweep(known)
                return
            except (EngineUnavailable, EngineError, OSError) as error:
                log.warning("containers.not_swept", error=str(error), retry_s=defaults.EXECUTOR_RECHECK_S)
            await asyncio.sleep(defaults.EXECUTOR_RECHECK_S)

    async def remove_all(self, node_id: str) -> None:
        """Remove the containers of all tasks of this node ID (empty: any), their networks, and all secrets and configs.

        Raises EngineUnavailable, EngineError.
        """
        await self._discard_all(await self._containers(node_id))
        await self._networks.remove_all()
        try:
            self._payloads.close()
        except OSError as error:
            log.warning("payloads.unmount_failed", error=str(error))

    async def _containers(self, node_id: str) -> list[dict[str, Any]]:
        return await self._engine.list_containers(
            {"label": [f"{LABEL_NODE_ID}={node_id}" if node_id else LABEL_NODE_ID]}
        )

    async def _discard_all(self, containers: list[dict[str, Any]]) -> None:
        slots = asyncio.Semaphore(defaults.EXECUTOR_CREATES_MAX)

        async def discard(row: dict[str, Any]) -> None:
            task_id = row["Labels"].get(LABEL_TASK_ID, "")
            try:
                async with slots:
                    await remove_container(self._engine, self._watch, task_id, row["Id"])
                log.info("container.discarded", task=task_id, container=row["Id"])
            except (EngineError, TaskError) as error:
                log.warning("container.remove_failed", container=row["Id"], error=str(error))

        for outcome in await asyncio.gather(*map(discard, containers), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
