"""Decides which images to pull, and pulls each of them once, however many tasks wait for it.

A pull refreshes mutable tags, so every new task tries one, unless the image is pinned by digest and present. If the
pull fails, an earlier version may still be present; only creating the container shows that.

(moby: daemon/cluster/executor/container/adapter.go, pullImage)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from engine_api.engine.client import EngineClient
from engine_api.engine.errors import EngineError
from engine_api.executor import references
from swarm import defaults

log = structlog.get_logger(__name__)


@dataclass
class _Pull:
    job: asyncio.Task[None]
    waiting: int = 0


class ImagePuller:
    """Pulls images for all tasks of this node, a few at a time. prefer_offline: never pull, use present images."""

    def __init__(self, engine: EngineClient, prefer_offline: bool = False) -> None:
        self._engine = engine
        self._prefer_offline = prefer_offline
        self._slots = asyncio.Semaphore(defaults.EXECUTOR_PULLS_MAX)
        self._pulls: dict[tuple[str, str], _Pull] = {}

    async def close(self) -> None:
        """Cancel all pulls."""
        jobs = [pull.job for pull in self._pulls.values()]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def ensure(self, image: str, registry_auth: str) -> str:
        """Try to pull the newest version of an image. Returns why the pull failed; empty when it did not.

        Cancelling the last task that waits for a pull cancels the pull. Raises EngineUnavailable.
        """
        if self._prefer_offline or references.is_image_id(image):
            return ""
        if references.is_pinned(image) and await self._present(image):
            return ""
        try:
            await self._pull(references.familiar(image), registry_auth)
        except EngineError as error:
            log.warning("image.pull_failed", image=image, error=error.message)
            return error.message
        return ""

    async def _present(self, image: str) -> bool:
        try:
            await self._engine.inspect_image(image)
        except EngineError:
            return False
        return True

    async def _pull(self, image: str, registry_auth: str) -> None:
        key = (image, registry_auth)
        pull = self._pulls.get(key)
        if pull is None or pull.job.cancelling():
            pull = self._pulls[key] = _Pull(asyncio.create_task(self._pull_one(image, registry_auth)))
            pull.job.add_done_callback(lambda job: self._ended(key, job))
        pull.waiting += 1
        try:
            await asyncio.shield(pull.job)
        finally:
            pull.waiting -= 1
            if not pull.waiting:
                pull.job.cancel()

    def _ended(self, key: tuple[str, str], job: asyncio.Task[None]) -> None:
        if (pull := self._pulls.get(key)) is not None and pull.job is job:
            del self._pulls[key]
        if not job.cancelled():
            job.exception()  # the waiting tasks receive it

    async def _pull_one(self, image: str, registry_auth: str) -> None:
        async with self._slots:
            log.info("image.pull", image=image)
            await self._engine.pull_image(image, registry_auth)
