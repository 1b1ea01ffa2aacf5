"""Plugin services, which can only be shown. Their spec is an opaque payload, whose message is declared here.

(moby: daemon/cluster/internal/runtime/plugin.proto; stock engines accept such services only when experimental)
"""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from engine_api.convert.fields import flag, many, strings, text
from engine_api.convert.table import Table
from swarm import api

_FIELD = descriptor_pb2.FieldDescriptorProto


_STRING, _BOOL, _MESSAGE = _FIELD.TYPE_STRING, _FIELD.TYPE_BOOL, _FIELD.TYPE_MESSAGE
_LAYOUT = {
    "PluginPrivilege": [("name", _STRING, False), ("description", _STRING, False), ("value", _STRING, True)],
    "PluginSpec": [
        ("name", _STRING, False),
        ("remote", _STRING, False),
        ("privileges", _MESSAGE, True),
        ("disabled", _BOOL, False),
        ("env", _STRING, True),
    ],
}


def _messages() -> descriptor_pool.DescriptorPool:
    """The two messages in a pool of their own; field numbers count from 1 in the order of the layout."""
    file = descriptor_pb2.FileDescriptorProto(name="plugin_payload.proto", syntax="proto3")
    for name, fields in _LAYOUT.items():
        message = file.message_type.add(name=name)
        for position, (field, kind, repeated) in enumerate(fields, start=1):
            message.field.add(
                name=field,
                number=position,
                label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL,
                type=kind,
                type_name=".PluginPrivilege" if kind == _MESSAGE else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_PluginSpec = message_factory.GetMessageClass(_messages().FindMessageTypeByName("PluginSpec"))

_PRIVILEGE = Table(
    "runtime.PluginPrivilege",
    [text("name", "name"), text("description", "description"), strings("value", "value")],
)

PLUGIN_SPEC = Table(
    "runtime.PluginSpec",
    [
        text("name", "name"),
        text("remote", "remote"),
        many("privileges", "privileges", _PRIVILEGE, pointer=True),
        flag("disabled", "disabled"),
        strings("env", "env"),
    ],
)


def show_plugin(task: api.TaskSpec) -> dict[str, object] | None:
    """The plugin spec of a task; None when it has none, or one that cannot be read."""
    if task.WhichOneof("runtime") != "generic" or task.generic.kind != "plugin":
        return None
    message = _PluginSpec()
    try:
        message.ParseFromString(task.generic.payload.value)
    except DecodeError:
        return None
    return PLUGIN_SPEC.show(message)
