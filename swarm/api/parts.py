"""How many parts a message has: messages inside it, and elements of its lists and maps, at any depth."""

from __future__ import annotations

from google.protobuf.message import Message


def has_more_parts(message: Message, most: int) -> bool:
    """Whether there are more than ``most``; counting stops there, before anything is looked at one by one."""
    count = 0
    waiting = [message]
    while waiting:
        for field, value in waiting.pop().ListFields():
            count += len(value) if field.is_repeated else 1
            if count > most:
                return True
            kind = field.message_type
            if kind is None:
                continue
            if not field.is_repeated:
                waiting.append(value)
            elif not kind.GetOptions().map_entry:
                waiting.extend(value)
            elif kind.fields_by_name["value"].message_type is not None:
                waiting.extend(value.values())
    return False
