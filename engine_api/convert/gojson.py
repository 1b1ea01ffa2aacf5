"""JSON as Go reads it: values, and the texts of Go's errors, which clients of the Engine API show to their users.

Python's parser does the work. Only a text that it refuses is scanned again by Go's rules, to report the error as Go
does. (go: encoding/json/scanner.go, encoding/base64)
"""

from __future__ import annotations

import binascii
import json
import re
from typing import Any

_SPACE = " \t\r\n"
_SURROGATE = re.compile("[\ud800-\udfff]")
_BASE64 = {char: n for n, char in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
_NAMED_ESCAPES = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r"}
_NAMED_ESCAPES |= {"\t": "\\t", "\v": "\\v"}


class JsonError(ValueError):
    """What Go's decoder would say about a text or about the type of a value in it."""


class Literal(float):
    """A number with a fraction or an exponent, and how it was written: Go's type errors quote it."""

    text: str

    def __new__(cls, text: str) -> Literal:
        """From the text of a JSON number."""
        number = super().__new__(cls, text)
        number.text = text
        return number


class _Premature(Exception):
    """The text ends inside a value."""


def quote(text: str) -> str:
    """``%q`` of Go."""
    out = []
    for char in text:
        if char in _NAMED_ESCAPES:
            out.append(_NAMED_ESCAPES[char])
        elif char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


def whole_characters(text: str) -> str:
    """Half a surrogate pair becomes U+FFFD, as in Go; protobuf would refuse it."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_float=Literal, parse_constant=_no_constant)


def first_value(text: str) -> tuple[Any, str]:
    """The first value of a text and what follows it, as json.NewDecoder(...).Decode.

    Raises EOFError for a text without a value, JsonError for any other fault.
    """
    start = len(text) - len(text.lstrip(_SPACE))
    if start == len(text):
        raise EOFError
    try:
        return _decoded(text, start)
    except RecursionError:
        raise JsonError("exceeded max depth") from None


def _decoded(text: str, start: int) -> tuple[Any, str]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except ValueError:
        raise JsonError(_fault(text, start) or "unexpected EOF") from None
    return value, text[end:].strip(_SPACE)


def whole_value(text: str) -> Any:
    """The only value of a text, as json.Unmarshal. Raises JsonError."""
    try:
        value, rest = first_value(text)
    except EOFError:
        raise JsonError("unexpected end of JSON input") from None
    except JsonError as error:
        raise JsonError("unexpected end of JSON input" if str(error) == "unexpected EOF" else str(error)) from None
    if rest:
        raise JsonError(f"invalid character {_char(rest[0])} after top-level value")
    return value


def _char(char: str) -> str:
    if char == "'":
        return "'\\''"
    if char == '"':
        return "'\"'"
    return "'" + quote(char)[1:-1] + "'"


def _fault(text: str, start: int) -> str | None:
    """What Go's scanner says of a text that is not JSON; None when it only ends too early."""
    try:
        _Walk(text, start).value()
    except _Premature:
        return None
    except JsonError as error:
        return str(error)
    return "invalid JSON"


class _Walk:
    """Go's scanner as recursive descent; finds the first invalid character."""

    def __init__(self, text: str, position: int) -> None:
        self.text = text
        self.position = position

    def peek(self) -> str:
        if self.position >= len(self.text):
            raise _Premature
        return self.text[self.position]

    def after_space(self) -> str:
        while self.peek() in _SPACE:
            self.position += 1
        return self.peek()

    def refuse(self, context: str) -> JsonError:
        return JsonError(f"invalid character {_char(self.peek())} {context}")

    def value(self) -> None:
        char = self.after_space()
        if char == "{":
            self.sequence("}", self.member, "after object key:value pair")
        elif char == "[":
            self.sequence("]", self.value, "after array element")
        elif char == '"':
            self.string()
        elif char in "tfn":
            self.word({"t": "true", "f": "false", "n": "null"}[char])
        elif char == "-" or char.isdigit():
            self.number()
        else:
            raise self.refuse("looking for beginning of value")

    def sequence(self, close: str, element: Any, context: str) -> None:
        self.position += 1
        if self.after_space() == close:
            self.position += 1
            return
        while True:
            element()
            char = self.after_space()
            if char not in (",", close):
                raise self.refuse(context)
            self.position += 1
            if char == close:
                return

    def member(self) -> None:
        if self.after_space() != '"':
            raise self.refuse("looking for beginning of object key string")
        self.string()
        if self.after_space() != ":":
            raise self.refuse("after object key")
        self.position += 1
        self.value()

    def string(self) -> None:
        self.position += 1
        while (char := self.peek()) != '"':
            if char < " ":
                raise self.refuse("in string literal")
            self.position += 1
            if char != "\\":
                continue
            if self.peek() == "u":
                for _ in range(4):
                    self.position += 1
                    if self.peek() not in "0123456789abcdefABCDEF":
                        raise self.refuse("in \\u hexadecimal character escape")
            elif self.peek() not in 'bfnrt"\\/':
                raise self.refuse("in string escape code")
            self.position += 1
        self.position += 1

    def word(self, word: str) -> None:
        for expected in word[1:]:
            self.position += 1
            if self.peek() != expected:
                raise self.refuse(f"in literal {word} (expecting {_char(expected)})")
        self.position += 1

    def digits(self, context: str) -> None:
        if not self.peek().isdigit():
            raise self.refuse(context)
        while self.position < len(self.text) and self.text[self.position].isdigit():
            self.position += 1

    def number(self) -> None:
        if self.peek() == "-":
            self.position += 1
        if self.peek() == "0":
            self.position += 1
        else:
            self.digits("in numeric literal")
        if self.position < len(self.text) and self.text[self.position] == ".":
            self.position += 1
            self.digits("after decimal point in numeric literal")
        if self.position < len(self.text) and self.text[self.position] in "eE":
            self.position += 1
            if self.peek() in "+-":
                self.position += 1
            self.digits("in exponent of numeric literal")


def base64_bytes(text: str) -> bytes:
    """Standard base64 with padding, line breaks allowed. Raises JsonError with the place of the first fault."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # also binascii.Error
        return base64_by_digits(text)


def base64_by_digits(text: str) -> bytes:
    """The same, digit by digit: accepts line breaks and finds the place of an error."""
    places = [i for i, char in enumerate(text) if char not in "\r\n"]
    out = bytearray()
    for start in range(0, len(places), 4):
        group = places[start : start + 4]
        digits: list[int] = []
        for n, place in enumerate(group):
            digit = _BASE64.get(text[place])
            if digit is None:
                _check_padding(text, group, n, places[start + 4 :])
                break
            digits.append(digit)
        else:
            if len(group) < 4:
                raise JsonError(f"illegal base64 data at input byte {len(text) - len(group)}")
        number = 0
        for digit in digits + [0] * (4 - len(digits)):
            number = number << 6 | digit
        out += number.to_bytes(3, "big")[: max(len(digits) - 1, 0)]
    return bytes(out)


def _check_padding(text: str, group: list[int], n: int, rest: list[int]) -> None:
    """Handle a character at group[n] that is not a digit: it must be padding, and the text must end with it."""
    place = group[n]
    if text[place] != "=" or n < 2:
        raise JsonError(f"illegal base64 data at input byte {place}")
    if n == 2:
        if len(group) < 4:
            raise JsonError(f"illegal base64 data at input byte {len(text)}")
        if text[group[3]] != "=":
            raise JsonError(f"illegal base64 data at input byte {group[3] - 1}")
    if rest:
        raise JsonError(f"illegal base64 data at input byte {rest[0]}")
