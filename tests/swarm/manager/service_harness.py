"""Drives one swarm.manager.service.Service on a store: its writes are applied at once, or when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from google.protobuf.message import Message

from swarm.errors import NotLeader, SwarmError
from swarm.manager.service import Effect, Service, Write
from swarm.rpc import WORKER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx

M = TypeVar("M", bound=Message)


class ServiceHarness:
    """Drives one Service.

    It owns the store and the clock. ``out`` collects what goes to clients; ``held`` what waits for its commit.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.now = 1000.0
        self.service: Service | None = None
        self.out: list[Reply | StreamData | StreamEnd] = []
        self.hold = False
        self.held: list[Write] = []
        self.entries: list[int] = []
        self._streams = 0

    # --- the cluster -----------------------------------------------------------------------------------------------

    def write(self, change: Callable[[Tx], object]) -> None:
        """Change the cluster, as other components would."""
        self._commit(change, None)

    def edit(self, cls: type[M], object_id: str, change: Callable[[M], object]) -> None:
        """Change one object."""
        self.write(lambda tx: change(tx.edit(cls, object_id)))

    def remove(self, cls: type[Message], object_id: str) -> None:
        """Remove one object."""
        self.write(lambda tx: tx.remove(cls, object_id))

    def create(self, *objects: Message) -> None:
        """Create objects, in one entry."""
        self.write(lambda tx: [tx.create(obj) for obj in objects])

    def need(self, cls: type[M], object_id: str) -> M:
        """An object of the store."""
        found = self.store.get(cls, object_id)
        assert found is not None
        return found

    # --- the service -----------------------------------------------------------------------------------------------

    def call(self, method: str, request: Message | None, node_id: str, addr: str = "10.0.0.5:999") -> int:
        """A call of a node; returns its stream."""
        return self.call_as(method, request, Peer(node_id, WORKER_ROLE, "org", addr))

    def call_as(self, method: str, request: Message | None, peer: Peer) -> int:
        """A call of anybody; returns its stream."""
        self._streams += 1
        assert self.service is not None
        call = Call(self._streams, method, request, peer)
        self.perform(self.service.handle(call, self.now))
        return self._streams

    def send(self, event: StreamData | StreamEnd) -> None:
        """More from a client."""
        assert self.service is not None
        self.perform(self.service.handle(event, self.now))

    def settle(self) -> None:
        """Wake the service for as long as it is due now."""
        assert self.service is not None
        while (due := self.service.deadline()) is not None and due <= self.now:
            self.perform(self.service.wake(self.now))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, deadline by deadline."""
        assert self.service is not None
        end = self.now + seconds
        while (due := self.service.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.settle()
        self.now = end

    def perform(self, effects: Sequence[Effect]) -> None:
        """Do what the service wants."""
        for effect in effects:
            if not isinstance(effect, Write):
                assert isinstance(effect, Reply | StreamData | StreamEnd), "nothing else is performed here"
                self.out.append(effect)
            elif self.hold:
                self.held.append(effect)
            else:
                self._commit(effect.run, effect)

    def release(self) -> None:
        """Commit what was held back."""
        self.hold = False
        held, self.held = self.held, []
        for write in held:
            self._commit(write.run, write)

    def lose(self) -> None:
        """Leadership is lost: what was held back fails."""
        held, self.held = self.held, []
        for write in held:
            assert write.done is not None
            self.perform(write.done(None, NotLeader()))

    def _commit(self, change: Callable[[Tx], object], write: Write | None) -> None:
        tx = Tx(self.store, self.now, Random(1))
        try:
            answer = change(tx)
        except SwarmError as error:
            if write is None or write.stream is None:
                raise
            self.out.append(StreamEnd(write.stream, error))
            return
        actions = tx.actions()
        if actions:
            self.entries.append(len(actions))
        changes = self.store.apply(actions, self.store.index + bool(actions))
        if write is not None and write.done is not None:
            self.perform(write.done(None, None))
        elif write is not None and write.stream is not None:
            assert isinstance(answer, Message)
            self.out.append(Reply(write.stream, answer))
        if self.service is not None and changes:
            self.perform(self.service.committed(changes, self.now))

    # --- what clients saw ------------------------------------------------------------------------------------------

    def take(self, stream: int) -> list[Reply | StreamData | StreamEnd]:
        """What came on one stream since the last take."""
        mine = [e for e in self.out if e.stream == stream]
        self.out = [e for e in self.out if e.stream != stream]
        return mine

    def data(self, stream: int, cls: type[M]) -> list[M]:
        """Messages that came on one stream; nothing else may have come."""
        out = []
        for effect in self.take(stream):
            assert isinstance(effect, StreamData | Reply), effect
            assert isinstance(effect.message, cls)
            out.append(effect.message)
        return out

    def error(self, stream: int) -> SwarmError:
        """The error that ended a stream; the last thing that came on it."""
        effect = self.take(stream)[-1]
        assert isinstance(effect, StreamEnd)
        assert effect.error is not None
        return effect.error
