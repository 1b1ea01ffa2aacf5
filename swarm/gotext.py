"""Formats values as Go does. Clients match on SwarmKit's texts, which contain Go's quoting, numbers and durations."""

from __future__ import annotations

import re
from decimal import Decimal

_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}
_EXPONENT_MIN = -4
_EXPONENT_MAX = 6
_UNITS_NS = (("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000))


def quote(text: str) -> str:
    """``%q``: double quotes, backslash escapes, and numeric escapes for unprintable characters."""
    if text.isprintable():
        text = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float) -> str:
    """``%g`` and ``%v`` of a float: the shortest digits that read back as the same number."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    sign, digit_tuple, exponent = Decimal(repr(value)).as_tuple()
    digits = "".join(map(str, digit_tuple)).lstrip("0")
    if not digits:
        return "-0" if sign else "0"
    assert isinstance(exponent, int)
    power = len(digits) - 1 + exponent
    digits = digits.rstrip("0")
    if power < _EXPONENT_MIN or power >= _EXPONENT_MAX:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        text = f"{digits[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"
    elif power < 0:
        text = "0." + "0" * (-power - 1) + digits
    elif len(digits) <= power + 1:
        text = digits.ljust(power + 1, "0")
    else:
        text = f"{digits[: power + 1]}.{digits[power + 1 :]}"
    return f"-{text}" if sign else text


def duration(nanoseconds: int) -> str:
    """``%s`` of a time.Duration: ``1h0m0s``, ``1.5s``, ``10ms``, ``0s``."""
    if nanoseconds == 0:
        return "0s"
    sign, rest = ("-" if nanoseconds < 0 else ""), abs(nanoseconds)
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if rest < size * 1_000:
            return f"{sign}{_ratio(rest, size)}{unit}"
    out = sign
    for unit, size in _UNITS_NS[:-1]:
        count, rest = divmod(rest, size)
        if count or out not in ("", "-"):
            out += f"{count}{unit}"
    return f"{out}{_ratio(rest, 1_000_000_000)}s"


def _ratio(count: int, size: int) -> str:
    whole, rest = divmod(count, size)
    fraction = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)


_UNQUOTE = re.compile(
    r"""\\(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<o>[0-7]{3})|(?P<c>.)|$)"""
)
_UNESCAPES = {escape[1]: char for char, escape in _ESCAPES.items()}


class NotQuotedError(ValueError):
    """A text that is not a double-quoted Go literal, or whose bytes are not valid UTF-8."""


def unquote(text: str) -> str:
    """The string that a double-quoted Go literal stands for. Raises NotQuotedError."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise NotQuotedError("not a quoted string")
    try:
        return _unescaped(text).decode()
    except ValueError as error:
        raise NotQuotedError("malformed escape") from error


def _unescaped(text: str) -> bytes:
    out = bytearray()
    rest = 1
    for match in _UNQUOTE.finditer(text, 1, len(text) - 1):
        out += text[rest : match.start()].encode()
        rest = match.end()
        if match["x"] or match["o"]:
            value = int(match["x"], 16) if match["x"] else int(match["o"], 8)
            if value > 0xFF:
                raise ValueError("octal escape above 255")
            out.append(value)  # a byte, not a character
        elif match["u"] or match["U"]:
            out += chr(int(match["u"] or match["U"], 16)).encode()
        elif match["c"] in _UNESCAPES:
            out += _UNESCAPES[match["c"]].encode()
        else:
            raise ValueError("unknown escape")
    return bytes(out + text[rest:-1].encode())
