"""Fuzz target: gRPC above HTTP/2: framing of messages, deadlines, texts and headers, and whole calls at our server.

Checked: messages are the same however the bytes are cut, and never longer than allowed; what is written is read back;
only WireError and HttpError come of bad headers; at the server nothing is raised, nobody is let in whom the table of
methods does not name, every call that was begun ends exactly once, and nothing stays when the connection is gone.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from certs.keys import load_certificates, new_csr, new_private_key, private_key_pem
from certs.root import RootCA
from certs.tls import Credentials, server_context
from swarm import api
from swarm.api.methods import BY_PATH, METHODS
from swarm.errors import Code, SwarmError
from swarm.grpc import frames as h2
from swarm.grpc import wire as grpc_wire
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.grpc.wire import HttpError, MessageReader, WireError
from swarm.io.grpc.server import RpcServer
from swarm.io.grpc.server_connection import ServerConnection
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from tests.fuzz.feed import Feed

NOW = 1_795_359_300.0
TEN_YEARS_S = 3650 * 86_400.0
MESSAGE_BYTES_MAX = 1_000
PATHS = sorted(BY_PATH)
NAMES = (
    b":path",
    b":method",
    b"content-type",
    b"grpc-timeout",
    b"grpc-encoding",
    b"te",
    b"grpc-status",
    b":status",
    b"grpc-message",
    b"forwarded_cert",
    b"forwarded_cert_cn",
    b"forwarded_cert_ou",
    b"forwarded_cert_org",
)
VALUES = (
    b"POST",
    b"application/grpc",
    b"application/grpc+proto",
    b"identity",
    b"gzip",
    b"true",
    b"n1",
    b"gone",
    b"c1",
    b"swarm-manager",
    b"swarm-worker",
    b"0",
    b"16",
    b"200",
    b"100m",
    b"99999999H",
    b"%C3%A9%",
    *map(str.encode, PATHS),
)
IDENTITIES = (
    ("n1", "swarm-manager", "c1"),
    ("n2", "swarm-worker", "c1"),
    ("gone", "swarm-manager", "c1"),
    ("n1", "swarm-manager", "c2"),
)


def _chains() -> list[list[bytes] | None]:
    chains: list[list[bytes] | None] = [None, []]
    for node_id, role, org in IDENTITIES:
        pem = _ROOT.sign(new_csr(_KEY), node_id, role, org, NOW, TEN_YEARS_S)
        chains.append([load_certificates(pem)[0].public_bytes(Encoding.DER)])
    return chains


def one(data: bytes) -> None:
    """The whole of one input."""
    feed = Feed(data)
    kind = feed.byte()
    if kind & 3 == 0:
        framing(feed.rest(), kind >> 2)
    elif kind & 3 == 1:
        texts(feed)
    else:
        _LOOP.run_until_complete(serve(feed, raw=kind & 3 == 3))


# --- functions ---


def framing(data: bytes, seed: int) -> None:
    """Messages in pieces and as a whole."""
    outcomes = []
    for pieces in (
        [(0, len(data))],
        Feed(bytes((seed,)) + data[-16:]).cuts(len(data)),
        [(n, n + 1) for n in range(len(data))],
    ):
        reader = MessageReader(MESSAGE_BYTES_MAX)
        messages: list[bytes] = []
        fault: tuple[str, Code] | None = None
        try:
            for start, stop in pieces:
                messages += reader.feed(data[start:stop])
                assert 0 <= reader.missing <= MESSAGE_BYTES_MAX + grpc_wire.PREFIX_BYTES
                assert len(reader._buffer) <= MESSAGE_BYTES_MAX + grpc_wire.PREFIX_BYTES
        except WireError as error:
            fault = (str(error), Code(error.code))
        assert all(len(message) <= MESSAGE_BYTES_MAX for message in messages)
        outcomes.append((messages if fault is None else None, fault))
        if fault is None:
            again = b"".join(map(grpc_wire.frame_message, messages)) + bytes(reader._buffer)
            assert again == data
            assert reader.partial == bool(reader._buffer)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def fields_of(feed: Feed) -> list[tuple[bytes, bytes]]:
    """Headers as a decoder may hand them out."""
    fields: list[tuple[bytes, bytes]] = []
    while feed and len(fields) < 12:
        names = feed.byte()
        name = feed.some() if names == 255 else NAMES[names % len(NAMES)]
        values = feed.byte()
        fields.append((name, feed.some() if values >= 200 else VALUES[values % len(VALUES)]))
    return fields


def texts(feed: Feed) -> None:
    """Deadlines, escapes and headers."""
    some = feed.some()
    try:
        timeout_s = grpc_wire.parse_timeout(some)
    except WireError:
        pass
    else:
        assert 0 <= timeout_s <= 99_999_999 * 3600
        again = grpc_wire.parse_timeout(grpc_wire.format_timeout(timeout_s).encode())
        assert timeout_s <= again <= timeout_s * 1.001 + 0.001 or again == 99_999_999 * 3600
    text = some.decode("utf-8", "surrogateescape")
    escaped = grpc_wire.percent_encode(text)
    assert escaped.isascii()
    plain = some.decode("utf-8", "replace")
    assert grpc_wire.percent_decode(grpc_wire.percent_encode(plain)) == plain
    grpc_wire.percent_decode(some)
    fields = fields_of(feed)
    try:
        request = grpc_wire.parse_request(fields)
    except (WireError, HttpError):
        pass
    else:
        assert (b":method", b"POST") in fields
        assert request.timeout_s is None or request.timeout_s >= 0
    with contextlib.suppress(WireError):
        grpc_wire.check_response(fields)
    outcome = grpc_wire.outcome(fields)
    if outcome is not None:
        block = grpc_wire.status_block(outcome)
        decoded = h2.HeaderDecoder(64 << 10).decode(block)
        again_error = grpc_wire.outcome(decoded)
        assert again_error is not None
        assert again_error.code == outcome.code


# --- the server ---


class Wire:
    """Drives a ServerConnection in the place of the network."""

    def __init__(self, chain: list[bytes] | None) -> None:
        self.information = {"peername": ("10.0.0.7", 4000), "peer_chain_der": chain, "sslcontext": _CONTEXT}
        self.output = bytearray()
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.information.get(name, default)

    def write(self, data: bytes) -> None:
        if not self.closed:  # what is written after that is dropped, as asyncio does
            self.output += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        pass


class Handler:
    """Answers some calls at once, some later, some never; records how they end."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.server: RpcServer
        self.open: dict[int, str] = {}
        self.ended: set[int] = set()
        self.fault: BaseException | None = None

    def __call__(self, event: Call | StreamData | StreamEnd) -> None:
        try:
            self.take(event)
        except BaseException as fault:  # the server would survive it
            self.fault = self.fault or fault
            raise

    def take(self, event: Call | StreamData | StreamEnd) -> None:
        if isinstance(event, Call):
            method = METHODS[event.method]
            assert event.stream not in self.open
            assert method.insecure or event.peer.role in method.roles
            assert event.peer.org in ("c1", "")
            assert event.peer.node_id != "gone"
            assert isinstance(event.request, method.request) or method.client_streaming
            assert event.peer.role or not event.peer.node_id
            self.open[event.stream] = event.method
        elif isinstance(event, StreamEnd) and event.error is not None:
            del self.open[event.stream]
            return
        else:
            assert METHODS[self.open[event.stream]].client_streaming
            assert event.stream not in self.ended
            if isinstance(event, StreamEnd):
                self.ended.add(event.stream)
        self.answer()

    def answer(self) -> None:
        action = self.feed.below(5)
        if action == 0 or not self.open:
            return
        stream = self.feed.choice(list(self.open))
        response: Message = METHODS[self.open[stream]].response()
        if action == 1:
            del self.open[stream]
            self.server.send(StreamEnd(stream, SwarmError("né\n%", self.feed.choice(list(Code)))))
        elif action == 2:
            self.server.send(StreamData(stream, response))
        elif action == 3 and METHODS[self.open[stream]].client_streaming:
            self.server.pause(stream)
            if self.feed.flag():
                self.server.resume(stream)
        elif action == 4:
            del self.open[stream]
            self.server.send(Reply(stream, response) if self.feed.flag() else StreamEnd(stream))


def calls(feed: Feed) -> bytes:
    """Calls, mostly well-formed, and what may happen between their frames."""
    out: list[bytes] = []
    stream = 1
    while feed and len(out) < 40:
        shape = feed.byte()
        if shape < 40:
            out.append(h2.rst_stream_frame(max(1, stream - 2 * (shape % 4)), h2.ErrorCode.CANCEL))
        elif shape < 60:
            out.append(feed.some())
        elif shape < 100:
            message = feed.some()
            data = grpc_wire.frame_message(message)[: feed.byte() + 4]
            out.append(h2.frame(h2.DATA, shape & 1, max(1, stream - 2 * (shape % 4)), data))
        else:
            method = BY_PATH[feed.choice(PATHS)]
            block = h2.METHOD_POST + h2.literal(":path", method.path) + h2.literal("content-type", "application/grpc")
            block += b"".join(
                b"\0" + h2._length(len(name)) + name + h2._length(len(value)) + value
                for name, value in (fields_of(Feed(feed.some())) if shape & 2 else [])
            )
            out.append(h2.header_frames(stream, block, False, 16_384))
            if shape & 4:
                request = method.request.FromString(b"")
                out.append(h2.frame(h2.DATA, shape & 1, stream, grpc_wire.frame_message(request.SerializeToString())))
            stream += 2
    return b"".join(out)


async def serve(feed: Feed, raw: bool) -> None:
    """One connection at our server from its first to its last byte."""
    choices = Feed(feed.some())
    wire = Wire(choices.choice(_CHAINS))
    handler = Handler(choices)
    authorizer = ClusterAuthorizer("c1", lambda node_id: node_id == "gone")
    handler.server = server = RpcServer(handler, None, authorizer, itertools.count(1))
    connection = server._accept()
    assert isinstance(connection, ServerConnection)
    connection.connection_made(wire)  # type: ignore[arg-type]
    data = h2.PREFACE + h2.settings_frame({}) + (feed.rest() if raw else calls(feed))
    for start, stop in choices.cuts(len(data)):
        if wire.closed:
            break
        connection.data_received(data[start:stop])
        handler.answer()
        if choices.byte() & 7 == 1:
            server.sweep(connection.received_at + choices.byte())
        await asyncio.sleep(0)
    if handler.fault is not None:
        raise handler.fault
    assert len(connection.calls) <= connection.limits.streams_max
    assert sorted(handler.open) == sorted(server._calls), "who is open differs"
    connection.connection_lost(None)
    assert not connection.calls
    assert not handler.open
    assert not server._calls
    assert not server._incomplete
    assert not server._connections
    assert not server.connection_count
    assert all(timer.cancelled() for timer in _LOOP._scheduled)  # type: ignore[attr-defined]
    _frames(bytes(wire.output))


def _frames(data: bytes) -> None:
    """What the server sent is frames, and its header blocks can be read."""
    position = 0
    decoder = h2.HeaderDecoder(64 << 10)
    while position < len(data):
        size = int.from_bytes(data[position : position + 3], "big")
        assert size <= h2.DEFAULT_FRAME_BYTES
        payload = data[position + 9 : position + 9 + size]
        assert len(payload) == size
        if data[position + 3] == h2.HEADERS:
            assert any(name in (b":status", b"grpc-status") for name, _ in decoder.decode(payload))
        position += 9 + size


_LOOP = asyncio.new_event_loop()
atexit.register(_LOOP.close)
_ROOT, _KEY = RootCA.create(NOW), new_private_key()
_OWN = Credentials(_ROOT.sign(new_csr(_KEY), "n1", "swarm-manager", "c1", NOW, TEN_YEARS_S), private_key_pem(_KEY))
_CONTEXT = server_context(_OWN, _ROOT.bundle_pem)
_CHAINS = _chains()


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    session = api.SessionRequest(session_id="x").SerializeToString()
    out = [b"\x00" + grpc_wire.frame_message(b"abc") * 3, b"\x04" + grpc_wire.frame_message(session) + b"\0\0"]
    out += [b"\x01\x05100mS", b"\x01\x04%41%", b"\x01\x02\xc3\xa9" + bytes((0, 30, 1, 0, 2, 1, 3, 14))]
    for chain in range(6):
        out.append(b"\x02" + bytes((8, chain, 2, 4, 1, 3, 0, 2, 0)) + bytes((108, 10, 109, 20, 111, 3, 2, 9, 5, 65, 3)))
        out.append(b"\x02" + bytes((8, chain, 2, 4, 1, 3, 0, 2, 0)) + bytes((104, 48, 61, 5)) + session + b"\x09")
    return out
