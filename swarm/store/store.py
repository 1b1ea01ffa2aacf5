"""The store: tables and indexes of objects. Only apply() changes it, and objects in it are never mutated.

(swarmkit: manager/state/store/memory.go)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from swarm import api
from swarm.api import encoding
from swarm.api.objects import KIND_OF, KINDS, Kind
from swarm.errors import AlreadyExists, Internal, NotFound

M = TypeVar("M", bound=Message)
Action = api.StoreAction


class View(Protocol):
    """Read access, the same for the store and for a transaction in progress. Never mutate the returned objects."""

    def get(self, cls: type[M], object_id: str) -> M | None:
        """The object with this ID, or None."""
        ...

    def find(self, cls: type[M], index: str, key: str) -> Iterator[M]:
        """Objects with this key in an index of swarm.api.objects, in order of creation."""
        ...

    def all(self, cls: type[M]) -> Iterator[M]:
        """All objects of a kind, in order of creation."""
        ...

    def count(self, cls: type[M]) -> int:
        """The number of objects of a kind."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """One object before and after an entry. before is None for a new object, after is None for a removed one."""

    kind: str
    object_id: str
    before: Message | None
    after: Message | None


class Table:
    """Objects of one kind and their indexes. Dicts keep the order of creation, so reads are deterministic."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.objects: dict[str, Message] = {}
        self.indexes: dict[str, dict[str, dict[str, None]]] = {name: {} for name in kind.indexes}

    def put(self, object_id: str, obj: Message) -> None:
        """Insert or replace one object."""
        before = self.objects.get(object_id)
        if before is not None:
            self._unindex(object_id, before)
        self.objects[object_id] = obj
        for name, keys in self.kind.indexes.items():
            index = self.indexes[name]
            for key in keys(obj):
                index.setdefault(key, {})[object_id] = None

    def drop(self, object_id: str) -> None:
        """Remove one object, which must exist."""
        self._unindex(object_id, self.objects.pop(object_id))

    def _unindex(self, object_id: str, obj: Message) -> None:
        for name, keys in self.kind.indexes.items():
            index = self.indexes[name]
            for key in keys(obj):
                bucket = index.get(key)
                if bucket is not None:
                    bucket.pop(object_id, None)
                    if not bucket:
                        del index[key]


class Store:
    """The state after ``index`` log entries. apply() is atomic: an entry that breaks a rule changes nothing."""

    def __init__(self) -> None:
        self.index = 0
        self._tables = {kind.message: Table(kind) for kind in KINDS.values()}

    def get(self, cls: type[M], object_id: str) -> M | None:
        """See View.get."""
        return self._tables[cls].objects.get(object_id)  # type: ignore[return-value]

    def find(self, cls: type[M], index: str, key: str) -> Iterator[M]:
        """See View.find."""
        table = self._tables[cls]
        for object_id in list(table.indexes[index].get(key, ())):
            yield table.objects[object_id]  # type: ignore[misc]

    def all(self, cls: type[M]) -> Iterator[M]:
        """See View.all."""
        return iter(list(self._tables[cls].objects.values()))  # type: ignore[arg-type]

    def count(self, cls: type[M]) -> int:
        """See View.count."""
        return len(self._tables[cls].objects)

    def apply(self, actions: Sequence[Action], index: int) -> list[Change]:
        """Apply the actions of the log entry at ``index``.

        Raises AlreadyExists or NotFound when an action does not fit; then nothing is changed. ``index`` advances in any
        case, as in SwarmKit's followers, which skip such an entry.
        """
        self.index = index
        writes = [_unpack(action) for action in actions]
        self._check(writes)
        changes = []
        for verb, kind, obj in writes:
            table = self._tables[kind.message]
            object_id: str = obj.id  # type: ignore[attr-defined]
            before = table.objects.get(object_id)
            if verb == api.STORE_ACTION_REMOVE:
                table.drop(object_id)
                changes.append(Change(kind.name, object_id, before, None))
            else:
                table.put(object_id, obj)
                changes.append(Change(kind.name, object_id, before, obj))
        return changes

    def _check(self, writes: Sequence[tuple[int, Kind, Message]]) -> None:
        """Check the invariants that SwarmKit's followers check as well."""
        present: dict[tuple[str, str], bool] = {}
        names: dict[tuple[str, str], str | None] = {}
        for verb, kind, obj in writes:
            object_id: str = obj.id  # type: ignore[attr-defined]
            key = (kind.name, object_id)
            table = self._tables[kind.message]
            exists = present.get(key, object_id in table.objects)
            if verb == api.STORE_ACTION_CREATE and exists:
                raise AlreadyExists(f"{kind.name} {object_id} already exists")
            if verb != api.STORE_ACTION_CREATE and not exists:
                raise NotFound(f"{kind.name} {object_id} not found")
            present[key] = verb != api.STORE_ACTION_REMOVE
            if kind.unique is None:
                continue
            before = table.objects.get(object_id)
            for name in kind.indexes[kind.unique](before) if before is not None else ():
                if names.get((kind.name, name), object_id) == object_id:
                    names[kind.name, name] = None
            if verb == api.STORE_ACTION_REMOVE:
                continue
            for name in kind.indexes[kind.unique](obj):
                holder = names.get((kind.name, name), next(iter(table.indexes[kind.unique].get(name, ())), None))
                if holder not in (None, object_id):
                    raise AlreadyExists(f"{kind.name} name {name} is in use by {holder}")
                names[kind.name, name] = object_id

    def encode(self) -> bytes:
        """The whole store as an encoded StoreSnapshot; objects in ascending ID order."""
        parts = []
        for kind in KINDS.values():
            objects = self._tables[kind.message].objects
            parts.append(encoding.repeated(api.StoreSnapshot, kind.plural, [objects[key] for key in sorted(objects)]))
        return b"".join(parts)

    def save(self) -> api.StoreSnapshot:
        """The whole store as a StoreSnapshot message."""
        return api.StoreSnapshot.FromString(self.encode())

    def restore(self, snapshot: api.StoreSnapshot, index: int) -> None:
        """Replace the whole content by a snapshot taken at ``index``."""
        self._tables = {kind.message: Table(kind) for kind in KINDS.values()}
        self.index = index
        for kind in KINDS.values():
            table = self._tables[kind.message]
            for obj in getattr(snapshot, kind.plural):
                table.put(obj.id, copy_of(obj))

    def holder_of(self, cls: type[Message], name: str) -> str | None:
        """ID of the object that has a unique name (compared without case), or None."""
        kind = KIND_OF[cls]
        assert kind.unique is not None
        return next(iter(self._tables[cls].indexes[kind.unique].get(name.lower(), ())), None)


def copy_of(message: M) -> M:
    """A deep copy that may be mutated."""
    out = type(message)()
    out.CopyFrom(message)
    return out


def pack(verb: int, obj: Message) -> api.StoreAction:
    """One StoreAction around an object (verb: CREATE, UPDATE or REMOVE)."""
    action = api.StoreAction(action=verb)  # type: ignore[arg-type]
    getattr(action, KIND_OF[type(obj)].name).CopyFrom(obj)
    return action


def _unpack(action: api.StoreAction) -> tuple[int, Kind, Message]:
    target = action.WhichOneof("target")
    if target is None or target not in KINDS:
        raise Internal("store action without an object")
    return action.action, KINDS[target], getattr(action, target)


def names_of(view: View, cls: type[M], ids: Iterable[str]) -> list[str]:
    """The names of those objects among ``ids`` that exist, in the same order."""
    return [obj.spec.annotations.name for i in ids if (obj := view.get(cls, i)) is not None]  # type: ignore[attr-defined]
