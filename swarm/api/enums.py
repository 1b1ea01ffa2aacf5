"""Names and numbers of enumerations. A peer may send a number that has no name in this version.

protobuf keeps such a number as it is. The control API refuses it in clients' requests. In the log and in agents'
reports it is kept, and shown as a number.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def enum_name(kind: Any, value: int) -> str:
    """The name of a value of the enumeration ``kind``, in capitals as in the .proto; its number if it has no name."""
    name: str = kind.Name(value) if value in kind.values() else str(value)
    return name


def unknown_value(message: Message) -> str | None:
    """The path of a field, at any depth, whose number has no name in its enumeration; None if there is none."""
    for field, value in message.ListFields():
        if field.enum_type is not None:
            known = field.enum_type.values_by_number
            if any(number not in known for number in (value if field.is_repeated else (value,))):
                return str(field.name)
        elif field.message_type is not None:
            for inner in _messages(field, value):
                found = unknown_value(inner)
                if found is not None:
                    return f"{field.name}.{found}"
    return None


def _messages(field: FieldDescriptor, value: Any) -> list[Message]:
    if not field.is_repeated:
        return [value]
    kind = field.message_type
    if kind is None or not kind.GetOptions().map_entry:
        return list(value)
    return list(value.values()) if kind.fields_by_name["value"].message_type is not None else []
