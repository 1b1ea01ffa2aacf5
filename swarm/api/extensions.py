"""Extensions that our nodes add to messages for each other, in field 15, which SwarmKit's messages do not use.

Stock peers skip unknown fields, so an extension only adds to what the message means to everybody.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

_FIELD = b"\x7a"  # 15, length-delimited

OURS = b"sideswarm"
"""On an answer to Health/Check: this manager is sideswarm's."""

ENGINE_GONE = b"engine gone"
"""On a heartbeat: this node's engine has ended, so do not count on any task of this node."""

FLOW = b"flow"
"""On the first, empty request of Raft/StreamRaftMessage: complete messages follow until the call ends."""

NETWORK_KEYS = b"network keys"
"""On Control/UpdateCluster: change the network keys as well; on the answer: they were changed."""

MOVED = b"moved"
"""On the answer to Raft/ResolveAddress: this manager found the member at this address; the log has another one."""

INGRESS_MADE = b"ingress made"
"""On a cluster object in the store: the network of the routing mesh was made once, so nobody makes it again."""


def with_extension(message: M, extension: bytes) -> M:
    """A copy of ``message`` with ``extension`` (shorter than 128 bytes)."""
    return type(message).FromString(message.SerializeToString() + _suffix(extension))


def has_extension(message: Message, extension: bytes) -> bool:
    """Whether the message has this extension."""
    return message.SerializeToString().endswith(_suffix(extension))


def _suffix(extension: bytes) -> bytes:
    return _FIELD + bytes([len(extension)]) + extension
