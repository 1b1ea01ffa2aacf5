"""What all methods of the control API share: look-ups, filters of lists, names.

(swarmkit: manager/controlapi/common.go, api/naming/naming.go)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api.enums import unknown_value
from swarm.api.objects import KIND_OF
from swarm.api.parts import has_more_parts
from swarm.errors import InvalidArgument, NotFound
from swarm.store.store import View

M = TypeVar("M", bound=Message)
Test = Callable[[Any], bool]

MALFORMED = "invalid argument"


class CommonFilters(Protocol):
    """The part that the Filters messages of all List requests have in common."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def id_prefixes(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def name_prefixes(self) -> Sequence[str]: ...


def require(condition: object, text: str = MALFORMED) -> None:
    """Raises InvalidArgument with ``text`` unless ``condition`` holds."""
    if not condition:
        raise InvalidArgument(text)


def require_known_values(request: Message) -> None:
    """Every write begins with it.

    Raises InvalidArgument for an enumeration value that this version does not know, and for a request with more parts
    than any client has a reason to send: the checks after this one go through all of them.
    """
    most = defaults.REQUEST_PARTS_MAX
    require(not has_more_parts(request, most), f"{MALFORMED}: the request has more than {most} parts")
    field = unknown_value(request)
    if field is not None:
        raise InvalidArgument(f"{MALFORMED}: {field} has a value that this manager does not know")


def find_one(view: View, cls: type[M], object_id: str, missing_id: str = MALFORMED) -> M:
    """The object with this ID. Raises InvalidArgument (``missing_id``) for an empty ID, NotFound for an unknown one."""
    require(object_id, missing_id)
    obj = view.get(cls, object_id)
    if obj is None:
        raise NotFound(f"{KIND_OF[cls].name} {object_id} not found")
    return obj


def in_order(objects: Iterable[M]) -> list[M]:
    """Ascending by ID, the order of every list; each object once."""
    by_id: dict[str, M] = {obj.id: obj for obj in objects}  # type: ignore[attr-defined]
    return [by_id[object_id] for object_id in sorted(by_id)]


def select(objects: Iterable[M], tests: Sequence[Test]) -> list[M]:
    """Those objects that pass all tests, ascending by ID."""
    return in_order(obj for obj in objects if all(test(obj) for test in tests))


def is_one_of(value: Any, wanted: Sequence[Any]) -> bool:
    """Whether ``value`` is among ``wanted``; an empty filter lets everything pass."""
    return not wanted or value in wanted


def starts_with_one_of(value: str, prefixes: Sequence[str]) -> bool:
    """Whether ``value`` begins with one of ``prefixes``; an empty filter lets everything pass."""
    return not prefixes or value.startswith(tuple(prefixes))


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether every wanted label is there; a wanted value of "" stands for any value."""
    return all(key in labels and value in ("", labels[key]) for key, value in wanted.items())


def annotation_tests(
    filters: CommonFilters, name_of: Callable[[Any], str], labels_of: Callable[[Any], Any]
) -> list[Test]:
    """Tests for the common filters, one per key in use: OR within a key, AND between keys; case matters."""
    tests: list[Test] = []
    names, prefixes = list(filters.names), list(filters.name_prefixes)
    ids, labels = list(filters.id_prefixes), dict(filters.labels)
    if names:
        tests.append(lambda obj: name_of(obj) in names)
    if prefixes:
        tests.append(lambda obj: starts_with_one_of(name_of(obj), prefixes))
    if ids:
        tests.append(lambda obj: starts_with_one_of(obj.id, ids))
    if labels:
        tests.append(lambda obj: has_labels(labels_of(obj), labels))
    return tests


def spec_name(obj: Any) -> str:
    """Name in the spec's annotations."""
    return str(obj.spec.annotations.name)


def spec_labels(obj: Any) -> Mapping[str, str]:
    """Labels in the spec's annotations."""
    labels: Mapping[str, str] = obj.spec.annotations.labels
    return labels


def either_test(filters: CommonFilters, name_of: Callable[[Any], str], labels_of: Callable[[Any], Any]) -> Test:
    """The other reading of the common filters, that of secrets, configs and resources.

    Names, name prefixes (both without case) and ID prefixes are alternatives of each other; labels must match as well.
    """
    names = [name.lower() for name in filters.names]
    prefixes = tuple(prefix.lower() for prefix in filters.name_prefixes)
    ids, labels = tuple(filters.id_prefixes), dict(filters.labels)

    def passes(obj: Any) -> bool:
        if (names or prefixes or ids) and not (
            name_of(obj).lower() in names
            or (prefixes and name_of(obj).lower().startswith(prefixes))
            or (ids and obj.id.startswith(ids))
        ):
            return False
        return has_labels(labels_of(obj), labels)

    return passes


def runtime_of(spec: api.TaskSpec) -> str | None:
    """``container``, ``attachment``, the kind of a generic runtime in lower case, or None without a runtime."""
    runtime = spec.WhichOneof("runtime")
    return spec.generic.kind.lower() if runtime == "generic" else runtime


def plural(word: str, names: Sequence[str]) -> str:
    """``word`` with an s unless there is exactly one name."""
    return word if len(names) == 1 else f"{word}s"
