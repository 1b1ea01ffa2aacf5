"""DNS messages as bytes: queries in, answers out (RFC 1035, RFC 6891). Every length is checked before it is used.

A query is read strictly. What we answer, we write; what upstream servers answer is walked through, and passed on as it
is but for the ID and the question.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from overlay.defaults import DNS_QUERY_RECORDS_MAX, DNS_TTL_S, DNS_UDP_BYTES

A, PTR, OPT, ANY = 1, 12, 41, 255
CLASS_IN = 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED, BAD_VERSION = 0, 1, 2, 3, 4, 5, 16
HEADER_BYTES = 12
MESSAGE_BYTES_MAX = 65_535
UDP_BYTES_MIN = 512

_HEADER = struct.Struct(">HHHHHH")
_TYPE_CLASS = struct.Struct(">HH")
_RECORD = struct.Struct(">HHIH")  # type, class, TTL, length of the data
_QR, _AA, _TC, _RD, _RA, _CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
_OPCODE, _RCODE = 0x7800, 0x000F
_NAME_BYTES_MAX, _LABEL_BYTES_MAX = 255, 63
_POINTER = 0xC0
_TO_QUESTION = b"\xc0\x0c"
_ADDRESS = _TO_QUESTION + _RECORD.pack(A, CLASS_IN, DNS_TTL_S, 4)
_ADDRESS_BYTES = len(_ADDRESS) + 4
_OUR_OPT = b"\0" + _RECORD.pack(OPT, DNS_UDP_BYTES, 0, 0)


class BadMessage(ValueError):
    """Bytes that are not a DNS message. code: what to answer; None: nothing at all."""

    def __init__(self, text: str, code: int | None = FORMAT_ERROR) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Query:
    """A query with one question.

    name: lower case, without the last dot; "." for the root; None if it can not be written as text. end: where the
    question ends. opt: where the EDNS record begins; 0: there is none. udp_bytes: of the longest answer by UDP.
    """

    wire: bytes
    name: str | None
    type: int
    klass: int
    end: int
    opt: int = 0
    udp_bytes: int = UDP_BYTES_MIN


def parse_query(wire: bytes) -> Query:
    """Read a client's query; raises BadMessage."""
    if not HEADER_BYTES <= len(wire) <= MESSAGE_BYTES_MAX:
        raise BadMessage("no header", None)
    _, flags, questions, answers, authorities, additions = _HEADER.unpack_from(wire)
    if flags & _QR:
        raise BadMessage("an answer, not a query", None)
    if flags & _OPCODE:
        raise BadMessage("not a standard query", NOT_IMPLEMENTED)
    records = answers + authorities + additions
    if questions != 1 or records > DNS_QUERY_RECORDS_MAX:
        raise BadMessage("not one question")
    name, end = _question_name(wire)
    if end + _TYPE_CLASS.size > len(wire):
        raise BadMessage("the question ends too early")
    kind, klass = _TYPE_CLASS.unpack_from(wire, end)
    query = Query(wire, name, kind, klass, end + _TYPE_CLASS.size)
    if records or query.end != len(wire):
        _read_records(query, records, answers + authorities)
    return query


def _question_name(wire: bytes) -> tuple[str | None, int]:
    """The first name of a message, which has nothing behind it to point at."""
    at, labels = HEADER_BYTES, []
    while True:
        if at >= len(wire):
            raise BadMessage("a name ends too early")
        length = wire[at]
        if length > _LABEL_BYTES_MAX:
            raise BadMessage("a pointer or an unknown label in the question")
        at += 1
        if length == 0:
            break
        labels.append(wire[at : at + length])
        at += length
    if at - HEADER_BYTES > _NAME_BYTES_MAX:
        raise BadMessage("a name is too long")
    return _text(labels), at


def _text(labels: Sequence[bytes]) -> str | None:
    if not labels:
        return "."
    joined = b".".join(labels).lower()
    if not joined.isascii() or joined.count(b".") != len(labels) - 1:
        return None
    return joined.decode("ascii")


def _read_records(query: Query, count: int, before_additions: int) -> None:
    """Find the EDNS record behind the question and check that everything else has its lengths right."""
    wire, at = query.wire, query.end
    for number in range(count):
        begin = at
        at = _skip_name(wire, at)
        kind, klass, ttl, length = _record(wire, at)
        at += _RECORD.size + length
        if kind != OPT:
            continue
        if query.opt or wire[begin] != 0 or number < before_additions:
            raise BadMessage("a wrong EDNS record")
        query.opt = begin
        query.udp_bytes = max(UDP_BYTES_MIN, min(klass, DNS_UDP_BYTES))
        if ttl >> 16 & 0xFF:
            raise BadMessage("an unknown version of EDNS", BAD_VERSION)
    if at != len(wire):
        raise BadMessage("bytes behind the message")


def _record(wire: bytes, at: int) -> tuple[int, int, int, int]:
    if at + _RECORD.size > len(wire):
        raise BadMessage("a record ends too early")
    kind, klass, ttl, length = _RECORD.unpack_from(wire, at)
    if at + _RECORD.size + length > len(wire):
        raise BadMessage("a record is longer than the message")
    return kind, klass, ttl, length


def _skip_name(wire: bytes, at: int) -> int:
    """Where the name that begins here ends. Pointers are not followed: what they lead to is not used."""
    begin = at
    while at < len(wire):
        length = wire[at]
        if length >= _POINTER:
            if at + 2 > len(wire) or (length & ~_POINTER) << 8 | wire[at + 1] >= begin:
                raise BadMessage("a pointer that does not lead back")
            return at + 2
        if length > _LABEL_BYTES_MAX:
            raise BadMessage("an unknown label")
        at += 1 + length
        if at - begin > _NAME_BYTES_MAX:
            raise BadMessage("a name is too long")
        if length == 0:
            return at
    raise BadMessage("a name ends too early")


def addresses(query: Query, packed: Sequence[bytes], room: int) -> bytes:
    """An answer with as many of these addresses (4 bytes each) as fit into `room` bytes."""
    room -= query.end + (len(_OUR_OPT) if query.opt else 0)
    fit = packed[: room // _ADDRESS_BYTES]
    records = b"".join([_ADDRESS + address for address in fit])
    return _reply(query, NO_ERROR, len(fit), records, _TC if len(fit) < len(packed) else 0)


def addresses_that_fit(query: Query, room: int) -> int:
    """How many addresses an answer of so many bytes can have."""
    return (room - query.end - (len(_OUR_OPT) if query.opt else 0)) // _ADDRESS_BYTES


def pointer(query: Query, name: str) -> bytes:
    """An answer to a PTR question; raises BadMessage if this is no name for DNS."""
    target = wire_name(name)
    record = _TO_QUESTION + _RECORD.pack(PTR, CLASS_IN, DNS_TTL_S, len(target)) + target
    return _reply(query, NO_ERROR, 1, record)


def empty(query: Query, code: int = NO_ERROR) -> bytes:
    """An answer without records. With NO_ERROR: the name is there, but has none of this type."""
    return _reply(query, code, 0, b"")


def truncated(query: Query) -> bytes:
    """An answer that only says: ask by TCP."""
    return _reply(query, NO_ERROR, 0, b"", _TC)


def error(wire: bytes, code: int) -> bytes:
    """The answer to bytes that are not a query; they have a header."""
    number, flags = struct.unpack_from(">HH", wire)
    flags = _QR | flags & (_OPCODE | _RD) | code & _RCODE
    if code > _RCODE:  # only EDNS can say it
        return _HEADER.pack(number, flags, 0, 0, 0, 1) + b"\0" + _RECORD.pack(OPT, DNS_UDP_BYTES, code >> 4 << 24, 0)
    return _HEADER.pack(number, flags, 0, 0, 0, 0)


def _reply(query: Query, code: int, count: int, records: bytes, more: int = 0) -> bytes:
    number, flags = struct.unpack_from(">HH", query.wire)
    authority = _AA if code in (NO_ERROR, NAME_ERROR) else 0
    flags = _QR | _RA | authority | flags & (_RD | _CD) | more | code
    extra = _OUR_OPT if query.opt else b""
    header = _HEADER.pack(number, flags, 1, count, 0, 1 if extra else 0)
    return header + query.wire[HEADER_BYTES : query.end] + records + extra


def wire_name(name: str) -> bytes:
    """A name as bytes; raises BadMessage."""
    labels = name.encode("utf-8").split(b".")
    if not all(0 < len(label) <= _LABEL_BYTES_MAX for label in labels):
        raise BadMessage("not a name for DNS")
    wire = b"".join([bytes((len(label),)) + label for label in labels]) + b"\0"
    if len(wire) > _NAME_BYTES_MAX:
        raise BadMessage("a name is too long")
    return wire


def upstream_query(query: Query, number: int) -> bytes:
    """The query for a host's resolver: another ID, and answers by UDP that need no fragments."""
    wire = bytearray(query.wire)
    struct.pack_into(">H", wire, 0, number)
    if query.opt:
        struct.pack_into(">H", wire, query.opt + 3, query.udp_bytes)
    return bytes(wire)


def answers(sent: bytes, received: bytes) -> bool:
    """Whether the second message is an answer to the first: same ID, same question, every length right."""
    if len(received) < HEADER_BYTES or received[:2] != sent[:2]:
        return False
    _, flags, questions, *counts = _HEADER.unpack_from(received)
    if not flags & _QR or flags & _OPCODE:
        return False
    try:
        at = _same_question(sent, received) if questions == 1 else 0
        if at == 0:
            return False
        for _ in range(sum(counts)):
            at = _skip_name(received, at)
            at += _RECORD.size + _record(received, at)[3]
    except BadMessage:
        return False
    return True


def _same_question(sent: bytes, received: bytes) -> int:
    """Where the question of the answer ends; 0: it is another question."""
    end = _skip_name(sent, HEADER_BYTES) + _TYPE_CLASS.size
    name = slice(HEADER_BYTES, end - _TYPE_CLASS.size)
    same = received[name].lower() == sent[name].lower() and received[name.stop : end] == sent[name.stop : end]
    return end if same else 0


def code_of(answer: bytes) -> int:
    """NO_ERROR, NAME_ERROR, ... of an answer."""
    return answer[3] & _RCODE


def passed_on(query: Query, answer: bytes, room: int) -> bytes:
    """An upstream answer for the client: its ID, its spelling of the question, or a request to ask by TCP."""
    if len(answer) > room:
        return truncated(query)
    return query.wire[:2] + answer[2:HEADER_BYTES] + query.wire[HEADER_BYTES : query.end] + answer[query.end :]
