"""The events of an HTTP/2 connection, which it returns to its application."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.grpc.frames import ErrorCode, Field


@dataclass(slots=True)
class HeadersReceived:
    """Headers of a request (server), or of a response, or trailers (client: those come with end)."""

    stream: int
    fields: tuple[Field, ...]
    end: bool


@dataclass(slots=True)
class DataReceived:
    """Bytes of a message. They count against the stream's window until ``Connection.consumed``."""

    stream: int
    data: bytes
    end: bool


@dataclass(slots=True)
class StreamClosed:
    """The stream was reset: by the peer (remote), or by us because the peer broke its rules."""

    stream: int
    code: ErrorCode
    text: str
    remote: bool


@dataclass(slots=True)
class GoAwayReceived:
    """GOAWAY: the peer accepts no new streams, and did not process those above last_stream."""

    last_stream: int
    code: ErrorCode
    text: str


@dataclass(slots=True)
class PongReceived:
    """The answer to a PING."""

    payload: bytes


@dataclass(slots=True)
class Terminated:
    """The peer broke the rules of the connection: send the output, a GOAWAY, then close."""

    code: ErrorCode
    text: str


Event = HeadersReceived | DataReceived | StreamClosed | GoAwayReceived | PongReceived | Terminated
