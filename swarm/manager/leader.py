"""A leadership: client writes and stages become passes, each pass one log entry.

Made when this manager's first entry of a term is applied, dropped when the term is lost; there is nothing to stop.
One pass is in flight at a time: the next reads the store as the last one left it, so every stage sees every change,
and all writes that arrive meanwhile share one entry and one fsync (group commit).

(swarmkit: manager/manager.go becomeLeader, and every Update/Batch call of its components)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import structlog
from google.protobuf.message import Message

from swarm import api, defaults
from swarm.errors import Internal, NotLeader, NotTaken, ResourceExhausted, SwarmError
from swarm.manager.service import Effect, RemoveMember, Write
from swarm.manager.stage import DUE_NOW, Stage
from swarm.rpc import Reply, StreamEnd
from swarm.store.store import Store
from swarm.store.tx import Tx

log = structlog.get_logger()

STAGE_PARK_S = 5.0


@dataclass(slots=True)
class _Answer:
    """What a write returned, kept back until its entry is committed."""

    write: Write
    message: Message | None = None
    error: SwarmError | None = None


class _Feed:
    """One stage, what was touched since it last ran, and until when it is parked after an exception."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self.stage = stage
        self.pending: dict[tuple[str, str], None] = {}
        self.parked_until: float | None = None

    def due(self) -> float | None:
        if self.parked_until is not None:
            return self.parked_until
        return DUE_NOW if self.pending else self.stage.deadline()


class Leader:
    """The single writer of a term.

    stages: (name, stage) in the order of a pass. strict: an exception inside a stage or a write is a bug that should
    end a test; without it the stage is parked for a while, rebuilt and tried again, and the others go on.
    """

    def __init__(
        self, store: Store, stages: Sequence[tuple[str, Stage]], rng: Random, now: float, strict: bool = False
    ) -> None:
        self._store = store
        self._rng = rng
        self._strict = strict
        self._inbox: deque[Write] = deque()
        self._answers: list[_Answer] | None = None
        self._after_commit: list[Effect] = []
        self._changes_nothing = False
        self._now = now
        self._feeds = [_Feed(name, stage) for name, stage in stages]
        for feed in self._feeds:
            feed.stage.rebuild(store, now)
        self._fresh = True

    @property
    def in_flight(self) -> bool:
        """Whether a pass waits for its commit."""
        return self._answers is not None

    def submit(self, write: Write) -> list[Effect]:
        """Queue a write for the next pass; refused with RESOURCE_EXHAUSTED when the queue is full."""
        if len(self._inbox) >= defaults.INBOX_CALLS_MAX:
            return self._answer(_Answer(write, error=ResourceExhausted("too many writes are waiting for the leader")))
        self._inbox.append(write)
        return []

    def deadline(self) -> float | None:
        """When next_pass has something to do at the latest; None while a pass is in flight or all is quiet."""
        if self._answers is not None:
            return None
        if self._inbox or self._fresh:
            return DUE_NOW
        return min((due for feed in self._feeds if (due := feed.due()) is not None), default=None)

    def next_pass(self, now: float) -> tuple[bytes | None, list[Effect]]:
        """Run one pass if anything is due: the entry to propose, and effects that need none.

        None: nothing is to be done. Empty: nothing changes, but writes are to be answered, with what this store says,
        so the group has to confirm first who leads. Another leader may have decided otherwise since.
        """
        due = self.deadline()
        if due is None or due > now:
            return None, []
        self._fresh = False
        self._now = now
        tx = Tx(self._store, now, self._rng)
        answers = self._run_writes(tx)
        told = 0
        for feed in self._feeds:
            told = self._tell(tx, told)
            self._run_stage(feed, tx)
        self._tell(tx, told)
        actions = tx.actions()
        self._forget_unchanged(tx, actions)
        if not actions and not answers:
            return None, _effects(tx)
        self._answers, self._after_commit, self._changes_nothing = answers, _effects(tx), not actions
        if not actions:
            return b"", []
        request = api.InternalRaftRequest(id=self._rng.getrandbits(63) | 1)
        request.action.extend(actions)
        return request.SerializeToString(), []

    def committed(self) -> list[Effect]:
        """The pass in flight is applied, or confirmed if it changes nothing: answer its writes, do what comes after."""
        answers, self._answers = self._answers or [], None
        effects, self._after_commit = self._after_commit, []
        return [*self._answer_all(answers), *effects]

    def wake(self) -> None:
        """Something outside the store changed (the Raft group): run a pass."""
        self._fresh = True

    def refused(self, error: SwarmError) -> list[Effect]:
        """The log did not take the pass in flight: its writes fail, and every stage starts over."""
        answers, self._answers, self._after_commit = self._answers or [], None, []
        for feed in self._feeds:
            feed.stage.rebuild(self._store, self._now)
        self._fresh = True
        return self._answer_all([_Answer(answer.write, error=error) for answer in answers])

    def stop(self) -> list[Effect]:
        """Leadership is lost: nobody can say what becomes of what was proposed; the rest was not taken."""
        undecided = NotTaken if self._changes_nothing else NotLeader
        ended = [_Answer(answer.write, error=undecided()) for answer in self._answers or ()]
        ended += [_Answer(write, error=NotTaken()) for write in self._inbox]
        self._answers, self._after_commit = None, []
        self._inbox.clear()
        return self._answer_all(ended)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _run_writes(self, tx: Tx) -> list[_Answer]:
        answers = []
        while self._inbox and (tx.room() or tx.empty()):
            write = self._inbox.popleft()
            answer = _Answer(write)
            try:
                with tx.savepoint():
                    answer.message = write.run(tx)
            except SwarmError as error:
                answer.error = error
            except Exception:
                if self._strict:
                    raise
                log.exception("write.failed")
                answer.error = Internal("the manager could not carry out this request; its log says why")
            answers.append(answer)
        return answers

    def _run_stage(self, feed: _Feed, tx: Tx) -> None:
        pending, feed.pending = feed.pending, {}
        if feed.parked_until is not None:
            if feed.parked_until > tx.now:
                return
            feed.parked_until = None
            feed.stage.rebuild(self._store, tx.now)
        for kind, object_id in pending:
            feed.stage.note(kind, object_id)
        try:
            with tx.savepoint():
                feed.stage.run(tx)
        except Exception:
            if self._strict:
                raise
            log.exception("stage.failed", stage=feed.name, retry_s=STAGE_PARK_S)
            feed.parked_until = tx.now + STAGE_PARK_S

    def _answer_all(self, answers: Sequence[_Answer]) -> list[Effect]:
        return [effect for answer in answers for effect in self._answer(answer)]

    def _answer(self, answer: _Answer) -> list[Effect]:
        write = answer.write
        if write.done is not None:
            return list(write.done(answer.message, answer.error))
        if write.stream is None:
            if answer.error is not None:
                log.warning("write.refused", error=str(answer.error))
            return []
        if answer.error is not None:
            return [StreamEnd(write.stream, answer.error)]
        assert answer.message is not None, "a write that somebody waits for must return an answer"
        return [Reply(write.stream, answer.message)]

    def _tell(self, tx: Tx, told: int) -> int:
        """Mark what was touched since position ``told`` of the log for every stage; returns the new position."""
        touched = dict.fromkeys(tx.log[told:])
        for feed in self._feeds:
            feed.pending.update(touched)
        return len(tx.log)

    def _forget_unchanged(self, tx: Tx, actions: Sequence[api.StoreAction]) -> None:
        """Drop marks of objects that were touched but are as before: a stage that touches in vain would never rest."""
        changed = set()
        for action in actions:
            target = action.WhichOneof("target")
            assert target is not None
            changed.add((target, getattr(action, target).id))
        for key in dict.fromkeys(tx.log):
            if key not in changed:
                for feed in self._feeds:
                    feed.pending.pop(key, None)


def _effects(tx: Tx) -> list[Effect]:
    """What the writes and stages of a pass want done outside the store."""
    assert all(isinstance(effect, RemoveMember) for effect in tx.effects), tx.effects
    return [effect for effect in tx.effects if isinstance(effect, RemoveMember)]
