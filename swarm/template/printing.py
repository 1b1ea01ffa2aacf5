"""Functions of templates that print: print, println, printf, and the escapes html, js and urlquery.

They make more text than they get, so they pay while they make it: for widths before they pad, and for escapes piece by
piece. What is held at any moment beyond what is paid for is one piece.

(go: src/fmt/print.go, src/text/template/funcs.go)
"""

from __future__ import annotations

import html as html_escapes
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus

from swarm import gotext
from swarm.template.budget import Budget
from swarm.template.values import encoded, entries, shown, type_name

_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>[0-9]*)(?:\.(?P<precision>[0-9]*))?(?P<verb>.?)", re.DOTALL)
_WIDTH_MAX = 1_000_000
_WIDTH_DIGITS_MAX = 7
_FRACTION_DIGITS = 6
_RADIX = {"d": "d", "o": "o", "x": "x", "X": "X", "b": "b"}
_PIECE_CHARS = 4_096


def print_values(budget: Budget, *values: Any) -> str:
    """print."""
    out: list[str] = []
    for position, value in enumerate(values):
        # Go puts a space between two values only if neither is a string.
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            out.append(" ")
        out.append(_shown(budget, value))
    return "".join(out)


def println(budget: Budget, *values: Any) -> str:
    """println."""
    return " ".join([_shown(budget, value) for value in values]) + "\n"


def _shown(budget: Budget, value: Any) -> str:
    """``%v``, paid for; a string is paid for by who gives it."""
    if isinstance(value, str):
        return value
    budget.step(entries(value))
    return budget.text(shown(value))


def _by_pieces(budget: Budget, text: str, escape: Callable[[str], str]) -> str:
    """A text escaped character by character."""
    out = []
    for start in range(0, len(text), _PIECE_CHARS):
        piece = text[start : start + _PIECE_CHARS]
        budget.slow(piece)
        out.append(budget.text(escape(piece)))
    return "".join(out)


# --- printf --------------------------------------------------------------------------------------------------------


def printf(budget: Budget, form: str, *values: Any) -> str:
    """printf."""
    rest = list(reversed(values))
    out: list[str] = []
    end = 0
    for match in _VERB.finditer(form):
        budget.step()
        out += form[end : match.start()], budget.text(_verb(budget, match, rest))
        end = match.end()
    out.append(form[end:])
    if rest:
        extra = [f"{type_name(value)}={_shown(budget, value)}" for value in reversed(rest)]
        out.append("%!(EXTRA " + ", ".join(extra) + ")")
    return "".join(out)


def _verb(budget: Budget, match: re.Match[str], rest: list[Any]) -> str:
    verb, flags = match["verb"], match["flags"]
    if verb == "%":
        return "%"
    if not verb:
        return "%!(NOVERB)"
    if not rest:
        return f"%!{verb}(MISSING)"
    value = rest.pop()
    width, precision = _size(match["width"]), _size(match["precision"])
    if max(width or 0, precision or 0) > _WIDTH_MAX:
        return "%!(BADWIDTH)" if (width or 0) > _WIDTH_MAX else "%!(BADPREC)"
    budget.bytes((width or 0) + (precision or 0))
    text = _formatted(budget, verb, flags, value, precision)
    if text is None:
        return f"%!{verb}({'<nil>' if value is None else f'{type_name(value)}={_shown(budget, value)}'})"
    return _padded(text, flags, width or 0, isinstance(value, int | float) and verb not in "vT")


def _size(digits: str | None) -> int | None:
    """A width or a precision; None when there is none, and more than the limit for any that is too large."""
    if digits is None:
        return None
    return _WIDTH_MAX + 1 if len(digits.lstrip("0")) > _WIDTH_DIGITS_MAX else int(digits.lstrip("0") or 0)


def _padded(text: str, flags: str, width: int, numeric: bool) -> str:
    if "0" in flags and "-" not in flags and numeric:
        sign = text[0] if text[0] in "+-" else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _formatted(budget: Budget, verb: str, flags: str, value: Any, precision: int | None) -> str | None:
    """One value formatted by one verb, without padding; None when they do not fit together."""
    if verb == "v":
        return _shown(budget, value)
    if verb == "T":
        return type_name(value)
    if isinstance(value, str):
        return _formatted_string(budget, verb, value if precision is None else value[:precision])
    if isinstance(value, bool):
        return shown(value) if verb == "t" else None
    if isinstance(value, int) and verb in _RADIX:
        return format(value, ("+" if "+" in flags else "") + _RADIX[verb])
    if isinstance(value, int) and verb in "cqU":
        return _formatted_rune(verb, value)
    if isinstance(value, float) and verb in "eEfFgG":
        if verb == "g" and precision is None:
            return gotext.number(value)
        return format(
            value, ("+" if "+" in flags else "") + f".{_FRACTION_DIGITS if precision is None else precision}{verb}"
        )
    return None


def _formatted_string(budget: Budget, verb: str, value: str) -> str | None:
    if verb == "s":
        return value
    if verb == "q":
        return '"' + _by_pieces(budget, value, lambda piece: gotext.quote(piece)[1:-1]) + '"'
    if verb in "xX":
        digits = _by_pieces(budget, value, lambda piece: encoded(piece).hex())
        return digits.upper() if verb == "X" else digits
    return None


def _formatted_rune(verb: str, value: int) -> str:
    char = chr(value) if 0 <= value < 0x110000 and not 0xD800 <= value < 0xE000 else "\ufffd"
    if verb == "U":
        return f"U+{value:04X}"
    return char if verb == "c" else "'" + gotext.quote(char)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"


# --- escapes -------------------------------------------------------------------------------------------------------


def html(budget: Budget, *values: Any) -> str:
    """html."""
    return _by_pieces(budget, print_values(budget, *values), _html)


def urlquery(budget: Budget, *values: Any) -> str:
    """urlquery."""
    return _by_pieces(budget, print_values(budget, *values), lambda piece: quote_plus(encoded(piece)))


def js(budget: Budget, *values: Any) -> str:
    """js."""
    return _by_pieces(budget, print_values(budget, *values), _js)


def _html(text: str) -> str:
    escaped = html_escapes.escape(text, quote=False)
    return escaped.replace('"', "&#34;").replace("'", "&#39;")


def _js(text: str) -> str:
    return text.translate(_JS_ESCAPES) if text.isascii() else "".join(map(_js_char, text))


def _js_char(char: str) -> str:
    if char in "\\'\"":
        return f"\\{char}"
    if char in "<>&=" or char < " ":
        return f"\\u{ord(char):04X}"
    return char if char < "\x80" or char.isprintable() else f"\\u{ord(char):04X}"


_JS_ESCAPES = {code: _js_char(chr(code)) for code in range(0x80)}
