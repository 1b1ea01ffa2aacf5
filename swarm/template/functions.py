"""Functions of templates: Go's built-in ones and join, each with the types of its arguments.

(go: src/text/template/funcs.go, src/fmt/print.go; swarmkit: template/template.go)
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from swarm import defaults, gotext
from swarm.template.values import is_true, shown, type_name

ANY = "interface {}"
STRING = "string"


class FunctionError(Exception):
    """A function cannot use its arguments. The executor adds the location."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of templates. fixed: types of its arguments; variadic: type of further arguments; lazy: and, or."""

    call: Callable[..., Any]
    fixed: tuple[str, ...] = ()
    variadic: str | None = None
    lazy: bool = False


def getter(call: Callable[[str], str]) -> Function:
    """A function of one string, such as secret, config and env; ``call`` raises FunctionError."""
    return Function(call, (STRING,))


def _join(*parts: str) -> str:
    if not parts:
        raise FunctionError("runtime error: slice bounds out of range [1:0]")
    return _limited(parts[0].join(parts[1:]))


def _index(item: Any, *keys: Any) -> Any:
    for key in keys:
        if item is None:
            raise FunctionError("index of untyped nil")
        if isinstance(item, dict):
            if not isinstance(key, str):
                raise FunctionError(f"value has type {type_name(key)}; should be string")
            item = item.get(key, "")
        elif isinstance(item, str):
            item = item.encode()[_position(key, len(item.encode()))]
        else:
            raise FunctionError(f"can't index item of type {type_name(item)}")
    return item


def _position(key: Any, length: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise FunctionError(f"cannot index slice/array with type {type_name(key)}")
    if not 0 <= key < length:
        raise FunctionError(f"index out of range: {key}")
    return key


def _slice(item: Any, *bounds: Any) -> str:
    if not isinstance(item, str):
        raise FunctionError(f"can't slice item of type {type_name(item)}")
    if len(bounds) > 2:
        raise FunctionError("cannot 3-index slice a string")
    data = item.encode()
    start, end = (*[_position(bound, len(data) + 1) for bound in bounds], *(0, len(data))[len(bounds) :])
    if start > end:
        raise FunctionError(f"invalid slice index: {start} > {end}")
    return data[start:end].decode(errors="replace")


def _length(item: Any) -> int:
    if isinstance(item, str):
        return len(item.encode())
    if isinstance(item, dict):
        return len(item)
    if item is None:
        raise FunctionError("len of nil pointer")
    raise FunctionError(f"len of type {type_name(item)}")


def _basic(value: Any) -> str:
    if isinstance(value, bool | int | float | str):
        return type_name(value)
    raise FunctionError("invalid type for comparison")


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise FunctionError("missing argument for comparison")
    for other in others:
        if _basic(first) != _basic(other):
            raise FunctionError("incompatible types for comparison")
        if first == other:
            return True
    return False


def _less(first: Any, second: Any) -> bool:
    if _basic(first) != _basic(second):
        raise FunctionError("incompatible types for comparison")
    if isinstance(first, bool):
        raise FunctionError("invalid type for comparison")
    return bool(first < second)


def _less_or_equal(first: Any, second: Any) -> bool:
    return _less(first, second) or _equal(first, second)


# --- printing ------------------------------------------------------------------------------------------------------

_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d*)(?:\.(?P<precision>\d*))?(?P<verb>.?)", re.DOTALL)
_WIDTH_MAX = 1_000_000
_FRACTION_DIGITS = 6
_RADIX = {"d": "d", "o": "o", "x": "x", "X": "X", "b": "b"}


def _print(*values: Any) -> str:
    out = ""
    for position, value in enumerate(values):
        # Go puts a space between two values only if neither is a string.
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            out += " "
        out += shown(value)
    return _limited(out)


def _println(*values: Any) -> str:
    return _limited(" ".join(map(shown, values)) + "\n")


def _printf(form: str, *values: Any) -> str:
    rest = list(values)
    size = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal size
        text = _verb(match, rest)
        size += len(text)
        if size > defaults.TEMPLATE_OUTPUT_CHARS_MAX:
            raise FunctionError("result is too long")
        return text

    out = _VERB.sub(replace, form)
    if rest:
        out += "%!(EXTRA " + ", ".join(f"{type_name(value)}={shown(value)}" for value in rest) + ")"
    return _limited(out)


def _verb(match: re.Match[str], rest: list[Any]) -> str:
    verb, flags = match["verb"], match["flags"]
    if verb == "%":
        return "%"
    if not verb:
        return "%!(NOVERB)"
    if not rest:
        return f"%!{verb}(MISSING)"
    value = rest.pop(0)
    width, precision = int(match["width"] or 0), match["precision"]
    if max(width, int(precision or 0)) > _WIDTH_MAX:
        return "%!(BADWIDTH)" if width > _WIDTH_MAX else "%!(BADPREC)"
    text = _formatted(verb, flags, value, None if precision is None else int(precision or 0))
    if text is None:
        return f"%!{verb}({'<nil>' if value is None else f'{type_name(value)}={shown(value)}'})"
    numeric = isinstance(value, int | float) and verb not in "vT"
    if "0" in flags and "-" not in flags and numeric:
        sign = text[0] if text[0] in "+-" else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.ljust(width) if "-" in flags else text.rjust(width)


def _formatted(verb: str, flags: str, value: Any, precision: int | None) -> str | None:
    """One value formatted by one verb, without padding; None when they do not fit together."""
    if verb == "v":
        return shown(value)
    if verb == "T":
        return type_name(value)
    if isinstance(value, str):
        return _formatted_string(verb, value if precision is None else value[:precision])
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


def _formatted_string(verb: str, value: str) -> str | None:
    if verb == "s":
        return value
    if verb == "q":
        return gotext.quote(value)
    if verb in "xX":
        digits = value.encode().hex()
        return digits.upper() if verb == "X" else digits
    return None


def _formatted_rune(verb: str, value: int) -> str:
    char = chr(value) if 0 <= value < 0x110000 and not 0xD800 <= value < 0xE000 else "�"
    if verb == "U":
        return f"U+{value:04X}"
    return char if verb == "c" else "'" + gotext.quote(char)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"


def _html(*values: Any) -> str:
    escaped = html.escape(_print(*values), quote=False)
    return escaped.replace('"', "&#34;").replace("'", "&#39;")


def _urlquery(*values: Any) -> str:
    return quote_plus(_print(*values))


def _js(*values: Any) -> str:
    return "".join(_js_char(char) for char in _print(*values))


def _js_char(char: str) -> str:
    if char in "\\'\"":
        return f"\\{char}"
    if char in "<>&=" or char < " ":
        return f"\\u{ord(char):04X}"
    return char if char < "\x80" or char.isprintable() else f"\\u{ord(char):04X}"


def _limited(text: str) -> str:
    if len(text) > defaults.TEMPLATE_OUTPUT_CHARS_MAX:
        raise FunctionError("result is too long")
    return text


def _not(value: Any) -> bool:
    return not is_true(value)


def _deferred(*values: Any) -> Any:
    """Stands in for and/or, whose arguments the executor evaluates one by one."""
    return values[-1]


BUILTINS: dict[str, Function] = {
    "and": Function(_deferred, (ANY,), ANY, lazy=True),
    "or": Function(_deferred, (ANY,), ANY, lazy=True),
    "not": Function(_not, (ANY,)),
    "index": Function(_index, (ANY,), ANY),
    "slice": Function(_slice, (ANY,), ANY),
    "len": Function(_length, (ANY,)),
    "print": Function(_print, (), ANY),
    "printf": Function(_printf, (STRING,), ANY),
    "println": Function(_println, (), ANY),
    "html": Function(_html, (), ANY),
    "js": Function(_js, (), ANY),
    "urlquery": Function(_urlquery, (), ANY),
    "eq": Function(_equal, (ANY,), ANY),
    "ne": Function(lambda first, second: not _equal(first, second), (ANY, ANY)),
    "lt": Function(_less, (ANY, ANY)),
    "le": Function(_less_or_equal, (ANY, ANY)),
    "gt": Function(lambda first, second: not _less_or_equal(first, second), (ANY, ANY)),
    "ge": Function(lambda first, second: not _less(first, second), (ANY, ANY)),
    "join": Function(_join, (), STRING),
}
