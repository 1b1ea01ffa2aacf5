"""A transaction: its reads see its own writes, and its actions become one log entry.

(swarmkit: manager/state/store/memory.go, tx; but here one transaction is a whole pass of the leader)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import TypeVar

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api.objects import KIND_OF
from swarm.api.timestamps import stamp
from swarm.errors import AlreadyExists, NotFound, OutOfSequence
from swarm.ids import new_id
from swarm.store.store import Store, copy_of, pack

M = TypeVar("M", bound=Message)
_Key = tuple[type[Message], str]


class Tx:
    """Staged writes over a store. ``now``: seconds since the epoch; ``rng``: the leader's source of randomness.

    get/find/all return objects that must not be mutated; edit() returns one that may be. Reads do not see removed
    objects. ``log`` lists every touched object as (kind name, ID) in order, with repetitions: stages are fed from it.
    """

    def __init__(self, store: Store, now: float, rng: Random) -> None:
        self.now = now
        self.rng = rng
        self.log: list[tuple[str, str]] = []
        self.effects: list[object] = []
        """What is to be done outside the store once this is committed; see after_commit."""
        self._store = store
        self._staged: dict[type[Message], dict[str, Message | None]] = {cls: {} for cls in KIND_OF}
        self._undo: list[dict[_Key, Message | bool | None]] = []
        self._bytes = 0
        self._count = 0

    # --- reads -----------------------------------------------------------------------------------------------------

    def get(self, cls: type[M], object_id: str) -> M | None:
        """See View.get."""
        staged = self._staged[cls]
        if object_id in staged:
            return staged[object_id]  # type: ignore[return-value]
        return self._store.get(cls, object_id)

    def need(self, cls: type[M], object_id: str) -> M:
        """Like get, but raises NotFound with SwarmKit's text ("<kind> <id> not found")."""
        obj = self.get(cls, object_id)
        if obj is None:
            raise NotFound(f"{KIND_OF[cls].name} {object_id} not found")
        return obj

    def find(self, cls: type[M], index: str, key: str) -> Iterator[M]:
        """See View.find. Staged objects keep their position in the store; new ones come last."""
        staged = self._staged[cls]
        keys = KIND_OF[cls].indexes[index]
        for obj in self._store.find(cls, index, key):
            if obj.id not in staged:  # type: ignore[attr-defined]
                yield obj
        for staged_obj in list(staged.values()):
            if staged_obj is not None and key in keys(staged_obj):
                yield staged_obj  # type: ignore[misc]

    def all(self, cls: type[M]) -> Iterator[M]:
        """See View.all."""
        staged = self._staged[cls]
        for obj in self._store.all(cls):
            if obj.id not in staged:  # type: ignore[attr-defined]
                yield obj
        for staged_obj in list(staged.values()):
            if staged_obj is not None:
                yield staged_obj  # type: ignore[misc]

    def count(self, cls: type[M]) -> int:
        """See View.count."""
        staged = self._staged[cls]
        total = self._store.count(cls)
        for object_id, obj in staged.items():
            total += (obj is not None) - (self._store.get(cls, object_id) is not None)
        return total

    # --- writes ----------------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """A new object ID."""
        return new_id(self.rng)

    def create(self, obj: M) -> M:
        """Stage a new object whose ``id`` is set, and return it, still mutable. Raises AlreadyExists (ID or name)."""
        cls, object_id = type(obj), obj.id  # type: ignore[attr-defined]
        if self.get(cls, object_id) is not None:
            raise AlreadyExists(f"{KIND_OF[cls].name} {object_id} already exists")
        self.check_name(cls, obj)
        self._stage(cls, object_id, obj)
        self._bytes += obj.ByteSize()
        return obj

    def edit(self, cls: type[M], object_id: str, version: int | None = None) -> M:
        """A mutable copy of an object, staged as its next state. Call it again inside each savepoint.

        Raises NotFound. With ``version``, raises OutOfSequence unless the object is still at that version. An earlier
        write of the same pass counts as a change too, although its version is only known when the pass is committed.
        """
        obj = self.need(cls, object_id)
        if version is not None:
            before = self._store.get(cls, object_id)
            if obj.meta.version.index != version or (obj is not before and obj != before):  # type: ignore[attr-defined]
                raise OutOfSequence
        if object_id in self._staged[cls]:
            self._stage(cls, object_id, obj)
            return obj
        copy = copy_of(obj)
        self._stage(cls, object_id, copy)
        self._bytes += copy.ByteSize()
        return copy

    def remove(self, cls: type[Message], object_id: str) -> None:
        """Stage the removal of an object. Raises NotFound."""
        self.need(cls, object_id)
        self._stage(cls, object_id, None)

    def after_commit(self, effect: object) -> None:
        """Have something done outside the store when this is committed, and not at all if it is not.

        Who runs the transaction says what effects there may be.
        """
        self.effects.append(effect)

    def check_name(self, cls: type[Message], obj: Message) -> None:
        """Raises AlreadyExists when another object of the same kind has the (unique) name of ``obj``."""
        kind = KIND_OF[cls]
        if kind.unique is None:
            return
        for key in kind.indexes[kind.unique](obj):
            for other in self.find(cls, kind.unique, key):
                if other.id != obj.id:  # type: ignore[attr-defined]
                    name = obj.spec.annotations.name  # type: ignore[attr-defined]
                    raise AlreadyExists(f"{kind.name} {name} already exists")

    def _stage(self, cls: type[Message], object_id: str, obj: Message | None) -> None:
        staged = self._staged[cls]
        if self._undo and (cls, object_id) not in self._undo[-1]:
            before = staged.get(object_id, False)
            self._undo[-1][cls, object_id] = copy_of(before) if isinstance(before, Message) else before
        if object_id not in staged:
            self._count += 1
        staged[object_id] = obj
        self.log.append((KIND_OF[cls].name, object_id))

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """When the block raises, undo what was staged inside it; the exception propagates."""
        undo: dict[_Key, Message | bool | None] = {}
        mark, size, effects = len(self.log), self._bytes, len(self.effects)
        self._undo.append(undo)
        try:
            yield
        except BaseException:
            self._undo.pop()
            for (cls, object_id), before in undo.items():
                if before is False:
                    del self._staged[cls][object_id]
                    self._count -= 1
                else:
                    self._staged[cls][object_id] = before  # type: ignore[assignment]
            del self.log[mark:]
            del self.effects[effects:]
            self._bytes = size
            raise
        self._undo.pop()
        if self._undo:
            for key, value in undo.items():
                self._undo[-1].setdefault(key, value)

    def stamped(self, obj: M) -> M:
        """A copy of a staged object as it will be when committed, with version and times set; for answers."""
        copy = copy_of(obj)
        before = self._store.get(type(obj), obj.id)  # type: ignore[attr-defined]
        if obj != before:
            self._stamp(copy, created=before is None)
        return copy

    # --- result ----------------------------------------------------------------------------------------------------

    def room(self) -> bool:
        """Whether one more object may be staged without exceeding a log entry. A pass asks before each unit."""
        return self._count < defaults.ENTRY_CHANGES_MAX - 1 and self._bytes < defaults.ENTRY_BYTES_MAX

    def staged(self, cls: type[Message], object_id: str) -> bool:
        """Whether the object is already staged: another edit of it takes no room."""
        return object_id in self._staged[cls]

    def empty(self) -> bool:
        """Whether nothing is staged."""
        return self._count == 0

    def actions(self) -> list[api.StoreAction]:
        """The staged writes as store actions, with versions and times set. Writes that change nothing are omitted."""
        out = []
        for cls, staged in self._staged.items():
            for object_id, obj in staged.items():
                before = self._store.get(cls, object_id)
                if obj is None:
                    if before is not None:
                        out.append(pack(api.STORE_ACTION_REMOVE, before))
                elif before is None:
                    self._stamp(obj, created=True)
                    out.append(pack(api.STORE_ACTION_CREATE, obj))
                elif obj != before:
                    self._stamp(obj, created=False)
                    out.append(pack(api.STORE_ACTION_UPDATE, obj))
        return out

    def _stamp(self, obj: Message, created: bool) -> None:
        meta: api.Meta = obj.meta  # type: ignore[attr-defined]
        meta.version.index = self._store.index
        stamp(meta.updated_at, self.now)
        if created:
            stamp(meta.created_at, self.now)
