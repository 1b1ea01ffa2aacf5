"""Quotes strings and characters as Go does in its errors (go: strconv.Quote)."""

from __future__ import annotations

_NAMED_ESCAPES = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r"}
_NAMED_ESCAPES |= {"\t": "\\t", "\v": "\\v"}
_SHOWN_CHARS_MAX = 2_000


def quote(text: str) -> str:
    """``%q`` of Go; the beginning of a very long text."""
    if len(text) > _SHOWN_CHARS_MAX:
        text = text[:_SHOWN_CHARS_MAX] + "..."
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


def quote_char(char: str) -> str:
    """A character in single quotes."""
    if char == "'":
        return "'\\''"
    if char == '"':
        return "'\"'"
    return "'" + quote(char)[1:-1] + "'"
