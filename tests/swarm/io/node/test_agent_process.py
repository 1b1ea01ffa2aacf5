"""An agent that fails is replaced, and the new one gets the facts about the node again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest_asyncio

from swarm import api
from swarm.agent import events
from swarm.agent.agent import AgentEffect, AgentEvent
from swarm.io.disk.raft_disk import TaskJournal
from swarm.io.node.agent_process import AgentHooks, AgentProcess, Link
from swarm.io.process import Clock


class Fragile:
    """Takes the place of Agent: it keeps the events that it gets, and raises when an engine comes back."""

    def __init__(self, journal: Mapping[str, bytes], heard: asyncio.Queue[AgentEvent]) -> None:
        self.journal = journal
        self._heard = heard

    def handle(self, event: AgentEvent | None, now: float) -> list[AgentEffect]:
        if event is None:
            return []
        self._heard.put_nowait(event)
        if isinstance(event, events.EngineBack):
            raise RuntimeError("a bug")
        if isinstance(event, events.Described):
            return [events.Journal({"task1": event.description.hostname.encode()})]
        return []

    def deadline(self) -> float | None:
        return None


class Process:
    """Drives an AgentProcess around agents of that kind."""

    def __init__(self, directory: Path) -> None:
        self.heard: asyncio.Queue[AgentEvent] = asyncio.Queue()
        self.sessions: asyncio.Queue[events.SessionState] = asyncio.Queue()
        self.made: list[Fragile] = []
        self.journal = TaskJournal(directory / "tasks.db")
        hooks = AgentHooks(self._connect, self.sessions.put_nowait, lambda _: None, lambda: None)
        self.process = AgentProcess(self._make, self.journal, hooks, Clock())  # type: ignore[arg-type]

    def _make(self, now: float, journal: Mapping[str, bytes]) -> Fragile:
        self.made.append(Fragile(journal, self.heard))
        return self.made[-1]

    async def _connect(self, effect: events.Connect) -> Link:
        raise AssertionError("nobody asked for a connection")

    async def next(self, count: int) -> list[AgentEvent]:
        return [await self.heard.get() for _ in range(count)]


@pytest_asyncio.fixture
async def around(tmp_path: Path) -> AsyncIterator[Process]:
    made = Process(tmp_path)
    await made.process.start()
    yield made
    await made.process.close()
    await asyncio.to_thread(made.journal.close)


async def test_an_agent_that_fails_is_made_anew_from_its_journal_and_told_what_the_node_said(around: Process) -> None:
    first = events.Described(api.NodeDescription(hostname="old"))
    second = events.Described(api.NodeDescription(hostname="new"))
    local = events.LocalManager(running=True)
    gone = events.EngineGone("away", certain=False)
    for event in (first, local, second, events.EngineBack()):
        around.process.put(event)
    assert await around.next(4) == [first, local, second, events.EngineBack()]
    told = await around.sessions.get()
    assert told.error == "the agent of this node failed, its log says why: RuntimeError"
    around.process.put(gone)  # while there is no agent
    assert await around.next(3) == [second, local, gone]
    assert [dict(agent.journal) for agent in around.made] == [{}, {"task1": b"new"}]


async def test_an_agent_that_fails_again_is_made_again(around: Process) -> None:
    around.process.put(events.EngineBack())
    for _ in range(2):
        assert await around.next(1) == [events.EngineBack()]
        assert (await around.sessions.get()).error
