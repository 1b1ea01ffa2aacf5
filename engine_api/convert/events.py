"""Committed changes of the store as the engine's events of scope "swarm", and the filters that clients give.

(moby: daemon/events.go, handleClusterEvents; daemon/events/filter.go)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swarm import api
from swarm.api.enums import enum_name
from swarm.api.timestamps import NANOSECONDS_PER_S, nanoseconds
from swarm.store.store import Change

Event = dict[str, Any]

KINDS = ("service", "node", "network", "secret", "config")
_NAME_KEYS = (*KINDS, "container", "daemon", "plugin", "volume")
_UPDATE_STATES = {
    api.UpdateStatus.UPDATING: "updating",
    api.UpdateStatus.PAUSED: "paused",
    api.UpdateStatus.COMPLETED: "completed",
    api.UpdateStatus.ROLLBACK_STARTED: "rollback_started",
    api.UpdateStatus.ROLLBACK_PAUSED: "rollback_paused",
    api.UpdateStatus.ROLLBACK_COMPLETED: "rollback_completed",
}


def swarm_events(changes: Iterable[Change], now: float) -> list[Event]:
    """One event for each changed object of a kind that users see. now: time of removals, seconds since the epoch.

    A new network that got its subnets in the same entry of the log has two, because in stock these are two entries.
    """
    events = []
    for change in changes:
        if change.kind in KINDS:
            events.append(_event(change, now))
            if (
                change.before is None
                and isinstance(change.after, api.Network)
                and change.after.HasField("driver_state")
            ):
                events.append(_event(replace(change, before=change.after), now))
    return events


def _event(change: Change, now: float) -> Event:
    obj: Any = change.after if change.after is not None else change.before
    if change.after is None:
        action, at = "remove", int(now * NANOSECONDS_PER_S)
    elif change.before is None:
        action, at = "create", nanoseconds(obj.meta.created_at)
    else:
        action, at = "update", nanoseconds(obj.meta.updated_at)
    attributes = {"name": _name(obj)}
    if action == "update" and isinstance(change.before, type(obj)):
        attributes.update(_differences(change.before, obj))
    return {
        "Type": change.kind,
        "Action": action,
        "Actor": {"ID": change.object_id, "Attributes": dict(sorted(attributes.items()))},
        "scope": "swarm",
        "time": at // NANOSECONDS_PER_S,
        "timeNano": at,
    }


def _name(obj: Any) -> str:
    name: str = obj.spec.annotations.name
    if not name and isinstance(obj, api.Node):
        name = obj.description.hostname
    return name


def _differences(before: Any, after: Any) -> dict[str, str]:
    """The attributes of an update event: only what changed, as in stock engines."""
    found: dict[str, str] = {}
    if isinstance(after, api.Service):
        _compare(found, "image", before.spec.task.container.image, after.spec.task.container.image)
        if before.spec.HasField("replicated") and after.spec.HasField("replicated"):
            replicas = before.spec.replicated.replicas, after.spec.replicated.replicas
            _compare(found, "replicas", *map(str, replicas))
        old = _UPDATE_STATES.get(before.update_status.state, "") if before.HasField("update_status") else ""
        new = _UPDATE_STATES.get(after.update_status.state, "") if after.HasField("update_status") else ""
        if new and new != old:
            _compare(found, "updatestate", old, new)
    elif isinstance(after, api.Node):
        _compare(
            found, "availability", *(_enum(api.NodeSpec.Availability, o.spec.availability) for o in (before, after))
        )
        _compare(found, "role", *(_enum(api.NodeRole, o.role) for o in (before, after)))
        _compare(found, "state", *(_enum(api.NodeStatus.State, o.status.state) for o in (before, after)))
    return found


def _compare(found: dict[str, str], name: str, old: str, new: str) -> None:
    if old == new:
        return
    found[f"{name}.new"] = new
    if old:
        found[f"{name}.old"] = old


def _enum(kind: Any, value: int) -> str:
    return enum_name(kind, value).lower()


class EventFilter:
    """The ``filters`` of GET /events applied to swarm events: different keys are AND, values of one key are OR.

    Unknown keys are ignored, as in engines. A key that is a kind, such as "service", matches IDs and names of objects
    of any kind, in full or by prefix.
    """

    def __init__(self, filters: Mapping[str, Sequence[str]]) -> None:
        self._filters = {key: list(values) for key, values in filters.items() if values}

    def wants(self, event: Event) -> bool:
        """Whether a client that gave these filters gets this event."""
        return all(self._matches(key, values, event) for key, values in self._filters.items())

    def _matches(self, key: str, values: list[str], event: Event) -> bool:
        actor = event["Actor"]
        match key:
            case "scope":
                return event["scope"] in values
            case "type":
                return event["Type"] in values
            case "event":
                return event["Action"] in values
            case "label":
                return all(self._label(value, actor["Attributes"]) for value in values)
            case "image":
                return actor["ID"] in values
            case _ if key in _NAME_KEYS:
                names = (actor["ID"], actor["Attributes"].get("name", ""))
                return any(name.startswith(value) for value in values for name in names)
        return True

    @staticmethod
    def _label(value: str, attributes: Mapping[str, str]) -> bool:
        name, separator, wanted = value.partition("=")
        return name in attributes and (not separator or attributes[name] == wanted)
