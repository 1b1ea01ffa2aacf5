"""The receiving half of an HTTP/2 connection without I/O: bytes to frames, fragments to header blocks.

(RFC 9113, sections 3.4, 4.1 and 4.3)
"""

from __future__ import annotations

from collections.abc import Iterator

from swarm.grpc import frames as h2
from swarm.grpc.flow import Limits
from swarm.grpc.frames import ConnectionFault, ErrorCode, Field, HeaderDecoder

Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""
Headers = tuple[int, bool, tuple[Field, ...]]
"""Stream, whether it ends the stream, fields."""


class FrameReader:
    """Cuts the peer's bytes into frames."""

    def __init__(self, *, expects_preface: bool) -> None:
        self.buffer = bytearray()
        """The beginning of a frame that is not complete."""
        self.count = 0
        """Frames so far."""
        self._expects_preface = expects_preface

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Every frame that is complete now; take all of them. Raises ConnectionFault."""
        buffer = self.buffer
        buffer += data
        position = 0
        if self._expects_preface:
            start = bytes(buffer[: len(h2.PREFACE)])
            if not h2.PREFACE.startswith(start):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
            if len(start) < len(h2.PREFACE):
                return
            self._expects_preface = False
            position = len(h2.PREFACE)
        while len(buffer) - position >= h2.FRAME_HEADER_BYTES:
            size = buffer[position] << 16 | buffer[position + 1] << 8 | buffer[position + 2]
            if size > h2.DEFAULT_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes")
            end = position + h2.FRAME_HEADER_BYTES + size
            if len(buffer) < end:
                break
            stream_id = int.from_bytes(buffer[position + 5 : position + 9], "big") & h2.STREAM_ID_MAX
            payload = bytes(buffer[position + h2.FRAME_HEADER_BYTES : end])
            kind, flags = buffer[position + 3], buffer[position + 4]
            position = end
            self.count += 1
            yield kind, flags, stream_id, payload
        del buffer[:position]

    def check(self) -> None:
        """Assert what must always hold."""
        assert len(self.buffer) <= h2.DEFAULT_FRAME_BYTES + h2.FRAME_HEADER_BYTES


class HeaderReader:
    """Joins HEADERS and its CONTINUATION frames, which nothing may interrupt, and decodes the block."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = HeaderDecoder(limits.header_list_bytes_max)
        self.unfinished: int | None = None
        """The stream whose header block is not complete: CONTINUATION must follow."""
        self._ends_stream = False
        self._fragments: list[bytes] = []

    def headers(self, flags: int, stream_id: int, payload: bytes) -> Headers | None:
        """HEADERS came; None: the block goes on in CONTINUATION. Raises ConnectionFault."""
        payload = h2.without_padding(flags, payload)
        if flags & h2.HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            payload = payload[5:]
        if flags & h2.END_HEADERS:
            return stream_id, bool(flags & h2.END_STREAM), self._decoder.decode(payload)
        self.unfinished, self._ends_stream, self._fragments = stream_id, bool(flags & h2.END_STREAM), [payload]
        return None

    def continuation(self, flags: int, payload: bytes) -> Headers | None:
        """CONTINUATION came; None: the block goes on in another one. Raises ConnectionFault."""
        if self.unfinished is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._fragments.append(payload)
        if len(self._fragments) > self._limits.header_frames_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block in too many frames")
        if sum(map(len, self._fragments)) > self._limits.header_list_bytes_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too long")
        if not flags & h2.END_HEADERS:
            return None
        stream_id, block = self.unfinished, b"".join(self._fragments)
        self.unfinished, self._fragments = None, []
        return stream_id, self._ends_stream, self._decoder.decode(block)

    def held_bytes(self) -> int:
        """The unfinished block, and what the decoder remembers of the peer's headers."""
        return sum(map(len, self._fragments)) + self._decoder.held_bytes()

    def check(self) -> None:
        """Assert what must always hold."""
        assert (self.unfinished is not None) == bool(self._fragments)
        # a fragment too many, or a byte, ends the connection, and stays until that is closed
        assert len(self._fragments) <= self._limits.header_frames_max + 1
        assert sum(map(len, self._fragments)) <= self._limits.header_list_bytes_max + h2.DEFAULT_FRAME_BYTES
        self._decoder.check()
