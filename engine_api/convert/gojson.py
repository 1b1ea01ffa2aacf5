"""JSON as Go reads it: values, and the texts of Go's errors, which clients of the Engine API show to their users.

Python's parser does the work. Only a text that it refuses is scanned again by Go's rules, to report the error as Go
does. (go: encoding/json/scanner.go, encoding/base64)
"""

from __future__ import annotations

import binascii
import json
import re
from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import Any

from engine_api.convert.goquote import quote, quote_char
from engine_api.convert.goscan import Premature, Scan, ScanError
from swarm import defaults

__all__ = [
    "JsonError",
    "Literal",
    "base64_by_digits",
    "base64_bytes",
    "first_value",
    "first_value_of",
    "quote",
    "whole_characters",
    "whole_value",
]

_SPACE = " \t\r\n"
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_DIGIT = re.compile(r"[^A-Za-z0-9+/\r\n]")
_NOT_BREAK = re.compile(r"[^\r\n]")
_INTEGER_CHARS_MAX = 25  # longer ones fit no type of Go
_SHOWN_CHARS_MAX = 100
_PIECE_BYTES = 64 << 10


class JsonError(ValueError):
    """What Go's decoder would say about a text or about the type of a value in it.

    excessive: the text may be valid JSON, but has more values or levels than we read.
    """

    def __init__(self, text: str, excessive: bool = False) -> None:
        super().__init__(text)
        self.excessive = excessive


class Literal(float):
    """A number with a fraction or an exponent, or of very many digits, and how it was written: Go's errors quote it."""

    text: str

    def __new__(cls, text: str) -> Literal:
        """From the text of a JSON number."""
        number = super().__new__(cls, text)
        number.text = text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."
        return number


def whole_characters(text: str) -> str:
    """Half a surrogate pair becomes U+FFFD, as in Go; protobuf would refuse it."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    pieces = range(0, len(text), _PIECE_BYTES)  # so that other threads may run in between
    return "".join([_SURROGATE.sub("\ufffd", text[at : at + _PIECE_BYTES]) for at in pieces])


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _integer(text: str) -> int | Literal:
    return int(text) if len(text) <= _INTEGER_CHARS_MAX else Literal(text)


_DECODER = json.JSONDecoder(parse_float=Literal, parse_int=_integer, parse_constant=_no_constant)


def first_value(text: str) -> tuple[Any, str]:
    """The first value of a text and what follows it, as json.NewDecoder(...).Decode.

    Raises EOFError for a text without a value, JsonError for any other fault, and for more values than any client has a
    reason to send.
    """
    return _first_value(text, lambda: text)


def first_value_of(body: bytes) -> tuple[Any, str]:
    """The same of bytes: what is not UTF-8 becomes U+FFFD, and errors name bytes, as Go's decoder does."""
    return _first_value(_decoded(body), lambda: body.decode("latin-1"))


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:  # piece by piece, so that other threads may run in between
        decoder = getincrementaldecoder("utf-8")("replace")
        pieces = range(0, len(body), _PIECE_BYTES)
        return "".join([decoder.decode(body[at : at + _PIECE_BYTES]) for at in pieces] + [decoder.decode(b"", True)])


def _first_value(text: str, bytewise: Callable[[], str]) -> tuple[Any, str]:
    start = len(text) - len(text.lstrip(_SPACE))
    if start == len(text):
        raise EOFError
    most = defaults.API_JSON_VALUES_MAX
    try:
        # A value follows a comma or a bracket, or is the first one. Those inside strings count too, at first.
        if text.count(",") + text.count("[") + text.count("{") >= most:
            _scan(bytewise(), start, most)
        try:
            value, end = _DECODER.raw_decode(text, start)
        except ValueError:
            _scan(bytewise(), start, most)
            raise JsonError("invalid JSON") from None
    except RecursionError:
        raise JsonError("exceeded max depth", excessive=True) from None
    return value, text[end:].strip(_SPACE)


def _scan(text: str, start: int, most: int) -> None:
    """Find a fault, or too many values. Raises JsonError."""
    try:
        Scan(text, start, most).value()
    except Premature:
        raise JsonError("unexpected EOF") from None
    except ScanError as error:
        raise JsonError(str(error), error.excessive) from None


def whole_value(text: str) -> Any:
    """The only value of a text, as json.Unmarshal. Raises JsonError."""
    try:
        value, rest = first_value(text)
    except EOFError:
        raise JsonError("unexpected end of JSON input") from None
    except JsonError as error:
        raise JsonError("unexpected end of JSON input" if str(error) == "unexpected EOF" else str(error)) from None
    if rest:
        raise JsonError(f"invalid character {quote_char(rest[0])} after top-level value")
    return value


def base64_bytes(text: str) -> bytes:
    """Standard base64 with padding, line breaks allowed. Raises JsonError with the place of the first fault."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # also binascii.Error
        return base64_by_digits(text)


def base64_by_digits(text: str) -> bytes:
    """The same by groups of four digits: accepts line breaks and finds the place of an error."""
    odd = _NOT_DIGIT.search(text)
    end = len(text) if odd is None else odd.start()
    begin = text[:end].replace("\r", "").replace("\n", "")
    whole = len(begin) // 4 * 4
    digits = begin[whole:]
    if odd is None:
        if digits:
            raise JsonError(f"illegal base64 data at input byte {len(text) - len(digits)}")
    else:
        _check_padding(text, end, len(digits))
    padding = "=" * (-len(digits) % 4)
    return binascii.a2b_base64(begin[:whole] + digits + padding)


def _check_padding(text: str, place: int, digits: int) -> None:
    """Check a character that is no digit: it must be padding after these digits of a group, and end the text."""
    if text[place] != "=" or digits < 2:
        raise JsonError(f"illegal base64 data at input byte {place}")
    after = _NOT_BREAK.search(text, place + 1)
    if digits == 2:
        if after is None:
            raise JsonError(f"illegal base64 data at input byte {len(text)}")
        if after[0] != "=":
            raise JsonError(f"illegal base64 data at input byte {after.start() - 1}")
        after = _NOT_BREAK.search(text, after.end())
    if after is not None:
        raise JsonError(f"illegal base64 data at input byte {after.start()}")
