"""Marks that our nodes put on messages for each other: field 15, which SwarmKit's messages do not have.

Stock peers skip fields that they do not know, so a mark only adds to what the message says to everybody.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

_FIELD = b"\x7a"  # 15, length-delimited

OURS = b"sideswarm"
"""On an answer to Health/Check: a manager of ours."""

ENGINE_GONE = b"engine gone"
"""On a heartbeat: this node's engine has ended, and nothing runs here any more that could be relied upon."""

FLOW = b"flow"
"""On the first, empty request of Raft/StreamRaftMessage: complete messages follow, for as long as the call lives."""

NETWORK_KEYS = b"network keys"
"""On Control/UpdateCluster: change the keys of the networks as well; on the answer: they were changed."""

MOVED = b"moved"
"""On the answer to Raft/ResolveAddress: who answers has found the member there; the log names another address."""


def marked(message: M, mark: bytes) -> M:
    """A copy of ``message`` with the mark (shorter than 128 bytes)."""
    return type(message).FromString(message.SerializeToString() + _suffix(mark))


def has_mark(message: Message, mark: bytes) -> bool:
    """Whether the message has this mark."""
    return message.SerializeToString().endswith(_suffix(mark))


def _suffix(mark: bytes) -> bytes:
    return _FIELD + bytes([len(mark)]) + mark
