"""Watches the containers of all tasks through one stream of engine events.

An event only means *check again*: the waiter inspects the container itself, so a repeated or stale event does no harm.
A lost event does no harm either: after every (re)connection all waiters check again, and a periodic list of the
containers wakes those whose container no longer runs normally.

(moby: daemon/cluster/executor/container/adapter.go has one subscription and one blocking wait per container)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError, EngineUnavailable
from engine_api.executor.container import LABEL_TASK, LABEL_TASK_ID
from swarm import defaults

log = structlog.get_logger(__name__)

_FILTERS = {
    "type": ["container"],
    "label": [LABEL_TASK],
    "event": ["start", "die", "destroy", "health_status", "stop", "unpause"],
}
_NANOSECONDS = 1_000_000_000


class Subscription:
    """One waiter for changes of one task's container. exit_code: that of the last exit seen, if any."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._changed = asyncio.Event()

    def clear(self) -> None:
        """Forget earlier events; call it before inspecting the container."""
        self._changed.clear()

    def notify(self) -> None:
        """Look again."""
        self._changed.set()

    @property
    def notified(self) -> bool:
        """Whether anything may have happened since clear()."""
        return self._changed.is_set()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait until something may have happened since clear(), or until the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def wait_for_exit(self, timeout_s: float) -> None:
        """Wait until the end of the container was seen, or until the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.exit_code is None:
                    self.clear()
                    await self._changed.wait()
        except TimeoutError:
            return


class ContainerWatch:
    """Follows the engine's events while ``run`` runs, and notifies the subscriptions."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._seen_ns = 0

    @contextmanager
    def subscribe(self, task_id: str) -> Iterator[Subscription]:
        """A subscription to the container of a task; the container need not exist yet."""
        subscription = Subscription()
        self._subscriptions.setdefault(task_id, []).append(subscription)
        try:
            yield subscription
        finally:
            remaining = self._subscriptions[task_id]
            remaining.remove(subscription)
            if not remaining:
                del self._subscriptions[task_id]

    async def run(self) -> None:
        """Follow events until cancelled. While the engine is unreachable, keep trying to connect."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reconcile_periodically())
            await self._follow()

    async def _follow(self) -> None:
        delay_s = defaults.EXECUTOR_RECONNECT_BASE_S
        while True:
            # the engine accepts the call before it subscribes; "since" adds the events in between
            since_ns = self._seen_ns or time.time_ns() - _NANOSECONDS
            since = f"{since_ns // _NANOSECONDS}.{since_ns % _NANOSECONDS:09d}"
            try:
                async with self._engine.events(_FILTERS, since) as events:
                    self.notify_all()
                    delay_s = defaults.EXECUTOR_RECONNECT_BASE_S
                    async for event in events:
                        self._dispatch(event)
            except (EngineUnavailable, EngineError) as error:
                log.info("engine.events_lost", error=str(error), retry_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, defaults.EXECUTOR_RECONNECT_MAX_S)

    def _dispatch(self, event: dict[str, Any]) -> None:
        self._seen_ns = max(self._seen_ns, int(event.get("timeNano") or 0))
        attributes = (event.get("Actor") or {}).get("Attributes") or {}
        for subscription in self._subscriptions.get(attributes.get(LABEL_TASK_ID, ""), ()):
            code = attributes.get("exitCode", "")
            if event.get("Action") == "die" and code.isdigit():
                subscription.exit_code = int(code)
            subscription.notify()

    def notify_all(self) -> None:
        """Wake all waiters, so that they check again."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.notify()

    async def _reconcile_periodically(self) -> None:
        while True:
            await asyncio.sleep(defaults.EXECUTOR_RECONCILE_PERIOD_S)
            try:
                await self.reconcile()
            except (EngineUnavailable, EngineError) as error:
                log.info("engine.list_failed", error=str(error))

    async def reconcile(self) -> None:
        """List the containers, and wake the waiters whose container does not run normally."""
        if not self._subscriptions:
            return
        plain = set()
        for row in await self._engine.list_containers({"label": [LABEL_TASK]}):
            if row.get("State") == "running" and "(" not in str(row.get("Status")):
                plain.add((row.get("Labels") or {}).get(LABEL_TASK_ID))
        for task_id, subscriptions in self._subscriptions.items():
            if task_id not in plain:
                for subscription in subscriptions:
                    subscription.notify()
