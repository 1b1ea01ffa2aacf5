"""Properties of the tables: what is shown reads back as the same message, for any message that Docker can express."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_api.convert.cluster import CLUSTER_SPEC, NODE
from engine_api.convert.gojson import whole_value
from engine_api.convert.objects import CONFIG, TASK
from engine_api.convert.service import SERVICE
from swarm import api

_TEXT = st.text(st.characters(codec="utf-8"), max_size=4)
_INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: _TEXT,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(0, 1, width=32),
}
_DURATION = st.integers(-(1 << 62), 1 << 62)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=5)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return st.sampled_from([value.number for value in field.enum_type.values])
    return _SCALARS[field.cpp_type]


@st.composite
def _message(draw: st.DrawFn, cls: type[Message], depth: int = 0) -> Any:
    """A message with some of its fields set."""
    message: Any = cls()
    if cls.DESCRIPTOR.full_name == "google.protobuf.Duration":
        message.FromNanoseconds(draw(_DURATION))
        return message
    if cls.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        message.seconds, message.nanos = draw(st.integers(1, 1 << 33)), draw(st.integers(0, 999_999_999))
        return message
    fields = [f for f in cls.DESCRIPTOR.fields if f.message_type is None or f.message_type.name != "Any"]
    for field in draw(st.lists(st.sampled_from(fields), unique_by=lambda f: f.name, max_size=6)) if fields else []:
        _draw_field(draw, message, field, depth)
    return message


def _draw_field(draw: st.DrawFn, message: Any, field: Any, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name).update(draw(st.dictionaries(_TEXT, _TEXT, max_size=2)))
    elif field.message_type is None:
        strategy = _scalar(field)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(strategy, max_size=2)))
        else:
            setattr(message, field.name, draw(strategy))
    elif depth < 4:
        inner = _message(field.message_type._concrete_class, depth + 1)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(inner, max_size=2)))
        else:
            target = getattr(message, field.name)
            target.SetInParent()
            target.CopyFrom(draw(inner))


def _settles(table: Any, message: Any) -> None:
    """Shown and read, an object may lose what JSON cannot express; after that it must not change again."""
    once = type(message)()
    table.fill(once, table.parse(_through_json(table.show(message))))
    shown = table.show(once)
    twice = type(message)()
    table.fill(twice, table.parse(_through_json(shown)))
    assert twice == once
    assert json.dumps(table.show(twice)) == json.dumps(shown)


def _through_json(value: Any) -> Any:
    return whole_value(msgspec.json.encode(value).decode())


@settings(max_examples=60, deadline=None)
@given(_message(api.Task))
def test_tasks_settle(message: api.Task) -> None:
    message.spec.container.image = "i"
    message.spec.resources.ClearField("swap_bytes")
    _drop_odd_references(message.spec.container)
    _settles(TASK, message)


@settings(max_examples=60, deadline=None)
@given(_message(api.Service))
def test_services_settle(message: api.Service) -> None:
    for spec in (message.spec, message.previous_spec):
        if spec is message.spec or message.HasField("previous_spec"):
            spec.task.container.image = "i"
            spec.task.resources.ClearField("swap_bytes")
            _drop_odd_references(spec.task.container)
    _settles(SERVICE, message)


def _drop_odd_references(container: api.ContainerSpec) -> None:
    """What no client can say: references without a target, credentials without a source."""
    del container.configs[:]
    container.privileges.ClearField("credential_spec")


@settings(max_examples=40, deadline=None)
@given(_message(api.Node))
def test_nodes_settle(message: api.Node) -> None:
    _settles(NODE, message)


@settings(max_examples=40, deadline=None)
@given(_message(api.Config))
def test_configs_settle(message: api.Config) -> None:
    _settles(CONFIG, message)
    again = api.ConfigSpec()
    CONFIG.fill(wrapped := api.Config(), CONFIG.parse(_through_json(CONFIG.show(message))))
    again.CopyFrom(wrapped.spec)
    assert again.data == message.spec.data


@settings(max_examples=40, deadline=None)
@given(_message(api.ClusterSpec))
def test_cluster_specs_settle(message: api.ClusterSpec) -> None:
    _settles(CLUSTER_SPEC, message)
