"""What an HTTP/2 connection tells its application. (RFC 9113)"""

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
    """Bytes of a message. They stay on the stream's account until ``consumed``."""

    stream: int
    data: bytes
    end: bool


@dataclass(slots=True)
class StreamClosed:
    """The stream is over before its time: reset by the peer, or by us because of what the peer did."""

    stream: int
    code: ErrorCode
    text: str
    remote: bool


@dataclass(slots=True)
class GoAwayReceived:
    """The peer takes no new streams; those above last_stream were not looked at."""

    last_stream: int
    code: ErrorCode
    text: str


@dataclass(slots=True)
class PongReceived:
    """The answer to a PING."""

    payload: bytes


@dataclass(slots=True)
class Terminated:
    """The peer broke the rules of the connection: send what is in the output (a GOAWAY), then close."""

    code: ErrorCode
    text: str


Event = HeadersReceived | DataReceived | StreamClosed | GoAwayReceived | PongReceived | Terminated
