"""Logs for readers that do not read: what waits is counted in bytes, and the nodes are held back."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from certs.tls import server_context
from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import ResourceExhausted
from swarm.io.grpc import client
from swarm.io.node.agent_process import Link, LocalLink, LogSink, RemoteLink
from swarm.io.node.local_calls import LocalCalls
from swarm.io.node.manager_process import ManagerProcess
from swarm.io.node.member_log import ManagerSettings
from swarm.io.process import Clock
from swarm.rpc import WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.tx import Tx

if TYPE_CHECKING:
    from tests.conftest import Authority

MIB = 1 << 20
LINE = b"x" * 40_000
HELD_BYTES_MAX = 4 * MIB
"""What may be on its way to a reader that reads nothing, from one node: at the manager, in windows, at the node."""


@dataclass
class Node:
    """A node that publishes ``lines`` lines to every subscription, as fast as it may. sent: by subscription."""

    node_id: str
    link: Link
    lines: int
    sent: dict[str, int] = field(default_factory=dict)
    jobs: list[asyncio.Task[object]] = field(default_factory=list)
    listening: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> None:
        self.link.open(Call(7, rpc.LISTEN_SUBSCRIPTIONS.name, api.ListenSubscriptionsRequest()), self._hear)

    def _hear(self, answer: Reply | StreamData | StreamEnd) -> None:
        message = answer.message if isinstance(answer, StreamData) else None
        if isinstance(message, api.SubscriptionMessage) and not message.close:
            self.jobs.append(asyncio.create_task(self._publish(message.id)))

    async def _publish(self, subscription: str) -> None:
        sink = LogSink(self.link)
        line = api.LogMessage(context=api.LogContext(node_id=self.node_id, task_id="t"), data=LINE)
        line.timestamp.seconds = 1
        self.sent[subscription] = 0
        for number in range(self.lines):
            line.timestamp.nanos = number
            await sink.send(api.PublishLogsMessage(subscription_id=subscription, messages=[line]))
            self.sent[subscription] += 1
        await sink.send(api.PublishLogsMessage(subscription_id=subscription, close=True))
        await sink.close()

    async def come_to_rest(self) -> None:
        """Until it has not sent anything for a while."""
        before: dict[str, int] = {}
        while before != self.sent or not self.sent:
            before = dict(self.sent)
            await asyncio.sleep(0.3)

    async def close(self) -> None:
        self.link.close()
        for job in self.jobs:
            job.cancel()
        await asyncio.gather(*self.jobs, return_exceptions=True)


def _subscribe(manager: ManagerProcess, node_id: str, follow: bool = True) -> AsyncIterator[api.SubscribeLogsMessage]:
    request = api.SubscribeLogsRequest(selector=api.LogSelector(node_ids=[node_id]))
    request.options.follow = follow
    return manager.stream(rpc.SUBSCRIBE_LOGS, request)


async def _read(reader: AsyncIterator[api.SubscribeLogsMessage], lines: int) -> int:
    """Read so many lines; the bytes of their texts."""
    size = 0
    while lines:
        batch = await anext(reader)
        lines -= len(batch.messages)
        size += sum(len(message.data) for message in batch.messages)
    return size


def add_managers(tx: Tx) -> None:
    """The nodes of both managers."""
    for node_id in ("manager1", "manager2"):
        tx.create(api.Node(id=node_id, role=api.MANAGER)).spec.desired_role = api.MANAGER


@pytest.fixture
async def managers(tmp_path: Path, authority: Authority) -> AsyncIterator[list[ManagerProcess]]:
    """A leader and a follower."""
    found: list[ManagerProcess] = []
    for number in (1, 2):
        own = authority.issue(f"manager{number}")
        context = server_context(own, authority.pem)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        settings = ManagerSettings(f"manager{number}", "cluster1", f"127.0.0.1:{port}", "127.0.0.1", port)
        (tmp_path / str(number)).mkdir()
        manager = ManagerProcess(
            tmp_path / str(number),
            settings,
            lambda context=context: context,  # type: ignore[misc]
            lambda own=own: authority.client(own),  # type: ignore[misc]
            Clock(),
            Random(number),
        )
        await manager.start(create=not found, join=[other.settings.address for other in found])
        found.append(manager)
        if number == 1:
            await manager.wait_leader(5.0)
            await manager.write(add_managers, 5.0)
    yield found
    for manager in reversed(found):
        await manager.close()


async def _node(kind: str, managers: list[ManagerProcess], authority: Authority, lines: int) -> Node:
    """A publisher: in the leader's process, or elsewhere with a session at the leader or at the follower."""
    if kind == "local":
        node = Node("manager1", LocalLink(managers[0].local, Peer("manager1", local=True)), lines)
    else:
        manager = managers[kind == "at the follower"]
        own = authority.client(authority.issue("worker1", role=WORKER_ROLE))
        node = Node("worker1", RemoteLink(await client.connect(manager.settings.address, own)), lines)
    node.listen()
    return node


KINDS = ("local", "at the leader", "at the follower")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, 1], ids=["reader at the leader", "reader at the follower"])
async def test_a_reader_that_does_not_read_holds_its_node_back_and_loses_nothing(
    managers: list[ManagerProcess], authority: Authority, kind: str, at: int
) -> None:
    lines = 500  # 20 MB
    node = await _node(kind, managers, authority, lines)
    await asyncio.sleep(0.2)
    reader = _subscribe(managers[at], node.node_id)
    assert await _read(reader, 1) == len(LINE)
    await node.come_to_rest()
    held = (sum(node.sent.values()) - 1) * len(LINE)
    assert held <= HELD_BYTES_MAX, f"{held / MIB:.1f} MiB were sent to a reader that reads nothing"
    assert managers[at].local.waiting_bytes_of_all <= HELD_BYTES_MAX
    assert await _read(reader, lines - 1) == (lines - 1) * len(LINE)
    await reader.aclose()  # type: ignore[attr-defined]
    assert managers[at].local.waiting_bytes_of_all == 0
    await node.close()


async def test_a_follower_whose_reader_stops_for_an_hour_keeps_its_connection_to_the_leader(
    managers: list[ManagerProcess], authority: Authority
) -> None:
    node = await _node("at the leader", managers, authority, 200)
    await asyncio.sleep(0.2)
    reader = _subscribe(managers[1], node.node_id)
    await _read(reader, 1)
    await node.come_to_rest()
    now = asyncio.get_running_loop().time()
    for later_s in range(0, 3600, 50):
        managers[0]._server.sweep(now + later_s)
        await asyncio.sleep(0.05)  # for PINGs and their answers
    assert await _read(reader, 199) == 199 * len(LINE)
    await node.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stuck_reader_does_not_stop_another_one_of_the_same_node(
    managers: list[ManagerProcess], authority: Authority, kind: str
) -> None:
    lines = 300
    node = await _node(kind, managers, authority, lines)
    await asyncio.sleep(0.2)
    stuck = [_subscribe(managers[0], node.node_id) for _ in range(20)]
    for reader in stuck:
        await _read(reader, 1)
    await node.come_to_rest()
    assert await _read(_subscribe(managers[0], node.node_id), lines) == lines * len(LINE)
    for reader in stuck:
        await reader.aclose()  # type: ignore[attr-defined]
    await node.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_node_that_was_held_back_goes_on_when_its_reader_leaves(
    managers: list[ManagerProcess], authority: Authority, kind: str
) -> None:
    node = await _node(kind, managers, authority, 500)
    await asyncio.sleep(0.2)
    reader = _subscribe(managers[0], node.node_id)
    await _read(reader, 1)
    await node.come_to_rest()
    await reader.aclose()  # type: ignore[attr-defined]
    done, _ = await asyncio.wait(node.jobs, timeout=10)
    assert len(done) == len(node.jobs), "the publication has ended"
    await node.close()


# --- readers of all streams: so many bytes, then the end ---


class Manager:
    """LocalCalls with nobody behind them."""

    def __init__(self) -> None:
        self.words: list[Call | StreamData | StreamEnd] = []
        self.calls = LocalCalls(self.words.append, itertools.count(1))

    async def reader(self) -> tuple[AsyncIterator[api.SubscribeLogsMessage], asyncio.Task[api.SubscribeLogsMessage]]:
        """A stream whose reader has asked for the first message."""
        reader = self.calls.stream(rpc.SUBSCRIBE_LOGS, api.SubscribeLogsRequest())
        first = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        return reader, first

    def send(self, stream: int, size: int) -> bool:
        message = api.SubscribeLogsMessage(messages=[api.LogMessage(data=b"x" * size)])
        return self.calls.deliver(StreamData(stream, message))


async def test_a_stream_is_cut_by_bytes_after_what_waits_and_the_error_says_why() -> None:
    manager = Manager()
    reader, first = await manager.reader()
    sent = 0
    while manager.send(1, MIB):
        sent += 1
    assert (sent - 1) * MIB <= defaults.LOCAL_STREAM_BYTES_MAX
    assert manager.calls.waiting_bytes_of_all <= defaults.LOCAL_STREAM_BYTES_MAX
    read = [await first]
    read += [await anext(reader) for _ in range(sent - 2)]
    with pytest.raises(ResourceExhausted, match=r"the reader is too slow: \d+ MiB wait for it"):
        await anext(reader)
    assert any(isinstance(word, StreamEnd) and word.stream == 1 for word in manager.words), "the call is given up"
    assert manager.calls.waiting_bytes_of_all == 0


async def test_many_readers_share_what_may_wait_and_one_that_reads_is_not_cut() -> None:
    manager = Manager()
    readers = [await manager.reader() for _ in range(100)]
    await asyncio.sleep(0)
    for stream in range(2, 101):
        while manager.send(stream, MIB // 2):
            pass
    assert manager.calls.waiting_bytes_of_all <= defaults.LOCAL_STREAMS_BYTES_MAX
    reader, first = readers[0]
    for number in range(50):
        assert manager.send(1, MIB), number
        await (first if number == 0 else anext(reader))
    manager.calls.deliver(StreamEnd(1))
    assert [message async for message in reader] == []
    for stuck, _ in readers[1:]:
        await stuck.aclose()  # type: ignore[attr-defined]
    assert manager.calls.waiting_bytes_of_all == 0


async def test_small_messages_count_with_what_they_cost() -> None:
    manager = Manager()
    _, first = await manager.reader()
    sent = 0
    while manager.send(1, 1):
        sent += 1
    assert sent <= defaults.LOCAL_STREAM_BYTES_MAX // defaults.LOCAL_MESSAGE_OVERHEAD_BYTES
    await first
