"""Whether one order of all calls explains every answer: linearizability of one object, a register with versions.

An operation takes effect at one moment between its call and its answer. One that was not answered takes effect at any
moment after its call, or never. The search goes through the orders that real time allows and remembers where it was
(Wing and Gong, 1993; Lowe, 2017). Objects are independent, so each is checked by itself. The cluster changes some
objects itself, services for example: these *drift* from version to version at any time, but never back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

NEVER = float("inf")
STEPS_MAX = 20_000
ABSENT = 0
"""The version of an object that is not there."""


class Kind(Enum):
    """What a client asked for."""

    CREATE = "create"
    READ = "read"
    UPDATE = "update"
    REMOVE = "remove"


@dataclass(frozen=True)
class Operation:
    """called, answered: virtual seconds; NEVER: the client does not know what became of it.

    base: of an update, the version that it starts from. version: what was answered; ABSENT: the object is not there.
    refused: an update or removal that says the version, or the object, was another.
    """

    kind: Kind
    called: float
    answered: float = NEVER
    version: int = ABSENT
    base: int = ABSENT
    refused: bool = False

    @property
    def open(self) -> bool:
        """Whether nobody knows if it happened."""
        return self.answered == NEVER


@dataclass(frozen=True)
class State:
    """version: ABSENT, or the object's. later: it is not known exactly, but greater than this one."""

    version: int = ABSENT
    later: bool = False
    drifts: bool = False

    def may_be(self, version: int) -> bool:
        """Whether the object may have this version."""
        if self.later:
            return version > self.version
        return version == self.version or (self.drifts and 0 < self.version < version)

    @property
    def absent(self) -> bool:
        """Whether there is no such object."""
        return self.version == ABSENT


def after(state: State, operation: Operation) -> State | None:
    """The state when it takes effect now; None: its answer would have been another."""
    match operation.kind:
        case Kind.CREATE:
            return replace(state, version=operation.version) if state.absent else None
        case Kind.READ:
            return replace(state, version=operation.version, later=False) if state.may_be(operation.version) else None
        case Kind.UPDATE if operation.refused:
            unsure = state.later or (state.drifts and not state.absent)
            return state if unsure or state.version != operation.base else None
        case Kind.UPDATE:
            if not operation.base or not state.may_be(operation.base):
                return None
            if operation.open:
                return replace(state, version=operation.base, later=True)
            return replace(state, version=operation.version, later=False)
        case Kind.REMOVE if operation.refused:
            return state if state.absent else None
        case Kind.REMOVE:
            return None if state.absent else State(drifts=state.drifts)


def explain(operations: Sequence[Operation], drifts: bool = False) -> list[Operation] | None:
    """An order that explains all answers; None: there is none. The object is absent at first.

    Empty although there are operations: none was found in STEPS_MAX steps, and nothing is said.
    """
    todo = sorted(operations, key=lambda operation: operation.called)
    answered = sum(1 << i for i, operation in enumerate(todo) if not operation.open)
    seen = {(0, State(drifts=drifts))}
    stack: list[tuple[int, State, tuple[int, ...]]] = [(0, State(drifts=drifts), ())]
    while stack:
        if len(seen) > STEPS_MAX:
            return []
        done, state, order = stack.pop()
        if done & answered == answered:
            return [todo[i] for i in order]
        left = [i for i in range(len(todo)) if not done >> i & 1]
        first_answer = min(todo[i].answered for i in left)
        for i in left:
            if todo[i].called > first_answer:
                break
            following = after(state, todo[i])
            if following is not None and (done | 1 << i, following) not in seen:
                seen.add((done | 1 << i, following))
                stack.append((done | 1 << i, following, (*order, i)))
    return None
