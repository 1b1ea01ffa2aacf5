"""gRPC's part of HTTP/2 without I/O, for both roles: bytes in, events out.

A Connection is what the application sees. Its parts: what the peer's frames mean (receiving.py) once they are cut
from its bytes (reading.py), the streams (streams.py), the windows that we give (flow.py), and the windows that we get
with what is to be sent (sending.py).

(RFC 9113; grpc: doc/PROTOCOL-HTTP2.md)
"""

from __future__ import annotations

from swarm.grpc import frames as h2
from swarm.grpc.events import Event
from swarm.grpc.flow import Limits, Stream
from swarm.grpc.frames import ErrorCode
from swarm.grpc.receiving import Receiver
from swarm.grpc.streams import Streams


class Connection:
    """One HTTP/2 connection of either role. Public attributes are for reading, except ``blocked``."""

    def __init__(self, *, client: bool, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self._table = Streams(client=client, limits=limits)
        self.streams = self._table.open
        self._sender = self._table.sender
        self._windows = self._table.windows
        self._receiver = Receiver(client=client, limits=limits, streams=self._table)
        self._greet()

    def _greet(self) -> None:
        settings = {h2.INITIAL_WINDOW_SIZE: self.limits.stream_window_bytes}
        if self.client:
            self._sender.write(h2.PREFACE)
            settings[h2.ENABLE_PUSH] = 0
        else:
            settings[h2.MAX_CONCURRENT_STREAMS] = self.limits.streams_max
        settings[h2.MAX_HEADER_LIST_SIZE] = self.limits.header_list_bytes_max
        self._sender.write(h2.settings_frame(settings))
        self._windows.announce()

    # --- bytes ---

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the network; ``now`` is any clock in seconds that does not go back."""
        return self._receiver.receive(data, now)

    def take_output(self) -> bytes:
        """Bytes to send now, and with them as much waiting data as windows and ``blocked`` allow, a chunk at a time."""
        return self._sender.take(pump=not self._receiver.terminated)

    @property
    def blocked(self) -> bool:
        """Set while the transport takes no more: DATA stays in the outboxes."""
        return self._sender.blocked

    @blocked.setter
    def blocked(self, blocked: bool) -> None:
        self._sender.blocked = blocked

    # --- streams ---

    def can_open(self) -> bool:
        """Whether the peer accepts one more stream now."""
        return len(self.streams) < self._table.peer_max and not self.exhausted

    def open(self, block: bytes) -> Stream:
        """Client: open a stream with these headers; ask can_open first."""
        stream = self._table.begin()
        self.send_headers(stream, block)
        return stream

    def send_headers(self, stream: Stream, block: bytes) -> None:
        """Server: the response's headers."""
        self._sender.write(h2.header_frames(stream.id, block, False, h2.DEFAULT_FRAME_BYTES))

    def send(self, stream: Stream, data: bytes, trailers: bytes | None = None) -> None:
        """Send data, and with ``trailers`` end our direction: a header block, or b"" for none (clients)."""
        self._sender.send(stream, data, trailers)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give up a stream and what waits in it; no event follows."""
        if self.streams.get(stream.id) is stream:
            self._table.reset(stream, code)

    def discard(self, stream: Stream) -> None:
        """Drop what waits in the outbox, before the stream is ended with an error."""
        self._sender.discard(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """The application took ``size`` bytes that came as DataReceived: the peer may send as many again."""
        self._windows.consumed(stream, size)

    def want(self, stream: Stream, size: int) -> None:
        """The current message needs ``size`` more bytes: extend the window if need be, now or when credit is free."""
        self._windows.want(stream, size)

    def ping(self, payload: bytes) -> None:
        """Send a PING of 8 bytes; PongReceived follows."""
        self._sender.write(h2.frame(h2.PING, 0, 0, payload))

    # --- ending ---

    def announce_end(self) -> None:
        """Server: ask the client to open no more streams; those under way are still served."""
        self._sender.write(h2.goaway_frame(h2.STREAM_ID_MAX, ErrorCode.NO_ERROR, "graceful stop"))

    def refuse_new(self) -> None:
        """Server: ignore new streams from now on, and tell the client which were served."""
        self._table.accept_no_more()
        self._sender.write(h2.goaway_frame(self._table.last_remote, ErrorCode.NO_ERROR, "graceful stop"))

    def terminate(self, code: ErrorCode, text: str) -> None:
        """End the connection because of what the peer did; nothing more is received."""
        self._receiver.terminate(code, text)

    # --- looking in ---

    @property
    def terminated(self) -> bool:
        """The peer broke the rules: nothing more is received."""
        return self._receiver.terminated

    @property
    def peer_closing(self) -> bool:
        """GOAWAY came."""
        return self._receiver.peer_closing

    @property
    def greeted(self) -> bool:
        """The peer's first SETTINGS came."""
        return self._receiver.greeted

    @property
    def frames(self) -> int:
        """How many frames came."""
        return self._receiver.frames.count

    @property
    def awaiting_frames(self) -> bool:
        """The peer is in the middle of a preface, a header block or a frame."""
        receiver = self._receiver
        return not receiver.greeted or receiver.headers.unfinished is not None or bool(receiver.frames.buffer)

    @property
    def exhausted(self) -> bool:
        """No more streams can be opened on this connection."""
        return self._receiver.terminated or self._receiver.peer_closing or self._table.exhausted

    @property
    def buffered(self) -> int:
        """Bytes in all outboxes."""
        return self._sender.buffered

    @property
    def data_bytes_sent(self) -> int:
        """Bytes of DATA sent, of those that had to wait in an outbox."""
        return self._sender.data_bytes_sent

    def held_bytes(self) -> int:
        """All bytes that the peer can make this connection keep; counted when asked.

        Those are: an incomplete frame, an incomplete header block, the header table and the cached header blocks,
        frames that ``take_output`` has not returned, and the outboxes. Not counted: messages that were handed out as
        DataReceived, which are the application's, and the fixed cost of a stream, whose number is limited.
        """
        return self._receiver.held_bytes() + self._sender.output_bytes + self._sender.buffered

    def check(self) -> None:
        """Assert what must always hold; tests call it."""
        self._receiver.check()
        self._table.check()
        self._sender.check(self.streams, terminated=self.terminated)
