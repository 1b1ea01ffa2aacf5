"""What clients were told, and whether that can be true: each object as a register with versions.

A write that was acknowledged was applied before; one that was refused for good never is. A version that somebody was
told never goes back for whoever asks later. No two acknowledged updates start from one version. For objects that only
clients change, one order of all calls must explain every answer (linearizability.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from swarm.errors import AlreadyExists, Code, InvalidArgument, NotFound, OutOfSequence, SwarmError
from tests.sim.checkers import Checkers
from tests.sim.linearizability import ABSENT, NEVER, Kind, Operation, explain
from tests.sim.lists import Life, Look, as_reads, contradiction

_OF_THE_FUTURE = "ahead of this node's clock"
_TAKEN_OR_NOT = (
    Code.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED,
    Code.UNKNOWN,
    Code.ABORTED,
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
)


@dataclass
class Known:
    """One object as clients know it."""

    kind: str
    object_id: str
    name: str
    version: int = 0
    removal_asked: bool = False
    removed: bool = False
    bases: dict[int, str] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    created: tuple[float, float] = (0.0, 0.0)
    removal_called: float = NEVER

    @property
    def drifts(self) -> bool:
        """Whether the cluster changes it by itself."""
        return self.kind == "service"

    def note(self, kind: Kind, called: float, answered: float, **what: Any) -> None:
        """A call that was answered, or at NEVER was not."""
        if kind is Kind.CREATE:
            self.created = (called, answered)
        if kind is Kind.REMOVE:
            self.removal_called = min(self.removal_called, called)
        self.operations.append(Operation(kind, called, answered, **what))

    def note_error(self, kind: Kind, called: float, answered: float, error: SwarmError, base: int = ABSENT) -> None:
        """A call that failed: for a reason that tells of the object, for another one that is final, or for unknown."""
        gone = isinstance(error, NotFound) and self.object_id in str(error)
        if gone and kind is Kind.UPDATE:
            self.note(Kind.READ, called, answered)
        elif gone or isinstance(error, OutOfSequence):
            self.note(kind, called, answered, base=base, refused=True)
        elif error.code in _TAKEN_OR_NOT and not isinstance(error, OutOfSequence):
            self.note(kind, called, NEVER, base=base)


class History:
    """All calls of all clients."""

    def __init__(self, checkers: Checkers, clocks_went_back: Callable[[], bool] = lambda: False) -> None:
        """clocks_went_back: whether a node's clock did, so that it may take a certificate for one of the future."""
        self._checkers = checkers
        self._clocks_went_back = clocks_went_back
        self._ops = 0
        self.objects: dict[str, Known] = {}
        self.acknowledged = 0
        self.refused = 0
        self.unknown = 0
        self.reads = 0
        self._never: dict[str, str] = {}
        self._looks: dict[str, list[Look]] = {}

    def new_op(self) -> str:
        """A label for one write."""
        self._ops += 1
        return f"op{self._ops}"

    def of_kind(self, kind: str) -> list[Known]:
        """Objects that nobody asked to remove."""
        return [known for known in self.objects.values() if known.kind == kind and not known.removal_asked]

    # --- answers ---------------------------------------------------------------------------------------------------

    def created(self, kind: str, object_id: str, name: str, version: int, op: str) -> Known:
        """A create was acknowledged."""
        self._applied(op, object_id)
        assert object_id not in self.objects, f"{kind} {object_id} was created twice"
        known = self.objects[object_id] = Known(kind, object_id, name, version)
        return known

    def updated(self, known: Known, base: int, version: int, op: str) -> None:
        """An update from version ``base`` was acknowledged."""
        self._applied(op, known.object_id)
        assert version > base, f"{known.name} did not move on from version {base}"
        holder = known.bases.setdefault(base, op)
        assert holder == op, f"{holder} and {op} both updated {known.name} from version {base}"
        known.version = max(known.version, version)

    def removed(self, known: Known) -> None:
        """A removal was acknowledged."""
        assert known.object_id in self._checkers.removed_ids, f"{known.name}: removal acknowledged, not applied"
        known.removed = True
        self.acknowledged += 1

    def read(self, known: Known, version: int, floor: int, was_removed: bool) -> None:
        """A read that began when ``floor`` was the newest version known to anybody."""
        assert not was_removed, f"{known.name} was read after its removal"
        assert version >= floor, f"{known.name}: read version {version} after {floor}"
        known.version = max(known.version, version)
        self.reads += 1

    def not_there(self, known: Known) -> None:
        """A read said that there is no such object."""
        assert known.removal_asked, f"{known.name} is lost"
        self.reads += 1

    def looked(self, kind: str, look: Look) -> None:
        """A list of all objects of this kind was answered."""
        self._looks.setdefault(kind, []).append(look)
        self.reads += 1

    def failed(self, error: SwarmError, op: str) -> None:
        """A write was not acknowledged; if the reason is final it must never happen."""
        of_the_future = error.code is Code.PERMISSION_DENIED and _OF_THE_FUTURE in str(error)
        if isinstance(error, InvalidArgument | NotFound | AlreadyExists | OutOfSequence) or (
            of_the_future and self._clocks_went_back()
        ):
            self.refused += 1
            self._never[op] = str(error)
        else:
            assert error.code in _TAKEN_OR_NOT, f"{op}: {error.code} {error}"
            self.unknown += 1

    def _applied(self, op: str, object_id: str) -> None:
        """A write and the removal of its object may share an entry; then only the removal is to be seen."""
        seen = op in self._checkers.applied_ops or object_id in self._checkers.removed_ids
        assert seen, f"{op} was acknowledged but not applied"
        self.acknowledged += 1

    # --- the end ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After everything: what was refused for good did not happen."""
        for op, reason in self._never.items():
            assert op not in self._checkers.applied_ops, f"{op} was refused ({reason}) and applied"
        for kind, looks in self._looks.items():
            of_kind = [known for known in self.objects.values() if known.kind == kind]
            lives = {known.object_id: Life(known.created, known.removal_called) for known in of_kind}
            assert not (found := contradiction(looks, lives)), f"no order explains the lists of {kind}s: {found}"
            for known in of_kind:
                for look in looks:
                    as_reads(look, known)
        for known in self.objects.values():
            told = "\n".join(map(str, known.operations))
            assert explain(known.operations, known.drifts) is not None, (
                f"no order explains what clients saw of {known.name}:\n{told}"
            )
