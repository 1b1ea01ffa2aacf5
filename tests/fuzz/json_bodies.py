"""Fuzz target: JSON as clients may send it, with parts that are repeated many thousand times.

Checked by counting, not by a clock: reading executes a limited number of lines of our code, however long a body is, and
holds no more memory than its length and its number of values explain; what Python reads without doubt is read, and
what it refuses is refused; errors are short.
"""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable

from engine_api.convert.gojson import JsonError, base64_bytes, first_value_of, whole_characters
from engine_api.convert.service import SERVICE_SPEC
from engine_api.server.decode import filter_values
from swarm import defaults
from tests.fuzz.feed import Feed
from tests.fuzz.templates import Lines

LINES_PER_VALUE = 45
LINES_PER_BODY = 2_000
MEMORY_PER_BYTE = 24
MEMORY_PER_VALUE_BYTES = 400
MEMORY_PER_BODY_BYTES = 500_000
ERROR_CHARS_MAX = 5_000
PIECES_MAX = 30
REPEAT_MAX = 40_000

PIECES = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b'"a"', b'"a":', b'"Labels":', b'"TaskTemplate":', b'"ContainerSpec":',
    b'"Env":[', b'"Mounts":[', b'{"Target":"/a"},', b'{"a":1},', b"[],", b"{},", b"[1],", b"1,", b"1.5,", b"1e9,", b"-",
    b"0", b"1", b"9", b".", b"e", b"E+", b"true", b"false,", b"null", b"nul", b"NaN", b"Infinity", b"\\", b"\\n",
    b"\\u00e9", b"\\ud83d", b"\\ude00", b"\\u00g", b" ", b"\n", b"\x00", b"\x1f", b"\xff", b"\xc3\xa9", b"\xc3",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"x",', b'"Name":"x",', b"QUJD", b"=", b"x", b"'",
)  # fmt: skip


def body(feed: Feed) -> bytes:
    """Pieces, some of them repeated."""
    out = []
    for _ in range(PIECES_MAX):
        if not feed:
            break
        kind = feed.byte()
        piece = feed.some() if kind == 255 else PIECES[kind % len(PIECES)]
        if feed.byte() > 200:
            piece *= feed.below(REPEAT_MAX)
        out.append(piece)
    return b"".join(out)


def _read(data: bytes) -> bool | None:
    """Whether it is read; None: it may be valid, but is too much."""
    try:
        value, _ = first_value_of(data)
        SERVICE_SPEC.parse(value)
    except EOFError:
        return False
    except JsonError as error:
        if len(str(error)) > ERROR_CHARS_MAX:
            raise AssertionError("a long error") from error
        return None if error.excessive else str(error).startswith("json: ")
    return True


def _python_reads(data: bytes) -> bool | None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    if data.lstrip(b" \t\r\n")[:1] not in (b"[", b"{"):
        return None  # of a bare number it reads as much as it likes
    try:
        json.JSONDecoder(parse_constant=refuse, parse_int=float).raw_decode(
            data.decode("utf-8", "replace").lstrip(" \t\r\n")
        )
    except RecursionError:
        return None
    except ValueError:
        return False
    return True


def one(data: bytes) -> None:
    """The whole of one input."""
    text = body(Feed(data))
    lines = Lines("/engine_api/")
    lines.of(lambda: _read(text))
    allowed = LINES_PER_BODY + LINES_PER_VALUE * defaults.API_JSON_VALUES_MAX
    assert lines.count <= allowed, (lines.count, text[:300])
    tracemalloc.start()
    try:
        outcome = _read(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    room = MEMORY_PER_BODY_BYTES + MEMORY_PER_BYTE * len(text) + MEMORY_PER_VALUE_BYTES * defaults.API_JSON_VALUES_MAX
    assert peak <= room, (peak, room, text[:300])
    expected = _python_reads(text)
    assert outcome is None or expected is None or outcome == expected, (outcome, expected, text[:300])
    for decode in (filter_values, base64_bytes, lambda text: whole_characters(text).encode()):
        lines = Lines("/engine_api/")

        def run(decode: Callable[[str], object] = decode) -> None:
            with contextlib.suppress(JsonError, UnicodeDecodeError):
                decode(text.decode("utf-8", "surrogatepass"))

        lines.of(run)
        assert lines.count <= allowed, (lines.count, text[:300])


def seeds() -> list[bytes]:
    """Inputs to begin with: each piece alone, repeated, and repeated in an array, an object and a string."""
    number = {piece: index for index, piece in enumerate(PIECES)}

    def plain(piece: bytes) -> bytes:
        return bytes((number[piece], 0))

    out = []
    for index in range(len(PIECES)):
        many = bytes((index, 255)) + (30_000).to_bytes(2, "big")
        out += [
            bytes((index, 0)),
            many,
            plain(b"[") + many + plain(b"1") + plain(b"]"),
            plain(b"[") + many + plain(b"}"),
        ]
        out += [plain(b'"') + many + plain(b'"'), plain(b"{") + plain(b'"a":') + many, plain(b"1") + many]
    return out
