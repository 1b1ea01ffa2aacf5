"""Functions of templates: Go's built-in ones and join, each with the types of its arguments.

Every text that a function gets or returns is paid for. Functions that make more text than they get pay before they make
it; printing and escaping are in swarm/template/printing.py.

(go: src/text/template/funcs.go, src/fmt/print.go; swarmkit: template/template.go)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.template import printing
from swarm.template.budget import Budget, weight
from swarm.template.values import encoded, is_true, type_name

ANY = "interface {}"
STRING = "string"


class FunctionError(Exception):
    """A function cannot use its arguments. The executor adds the location."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of templates.

    fixed: types of its arguments; variadic: type of further arguments; lazy: and, or. makes: its first argument is the
    budget, because it makes more text than it gets.
    """

    call: Callable[..., Any]
    fixed: tuple[str, ...] = ()
    variadic: str | None = None
    lazy: bool = False
    makes: bool = False

    def paid(self, budget: Budget, values: Sequence[Any]) -> Any:
        """The result for these arguments. Raises FunctionError, OverBudget."""
        for value in values:
            if isinstance(value, str):
                budget.text(value)
        result = self.call(budget, *values) if self.makes else self.call(*values)
        return budget.text(result) if isinstance(result, str) else result


def getter(call: Callable[[str], str]) -> Function:
    """A function of one string, such as secret, config and env; ``call`` raises FunctionError."""
    return Function(call, (STRING,))


def _join(budget: Budget, *parts: str) -> str:
    if not parts:
        raise FunctionError("runtime error: slice bounds out of range [1:0]")
    budget.bytes(weight(parts[0]) * len(parts))
    return parts[0].join(parts[1:])


def _index(item: Any, *keys: Any) -> Any:
    for key in keys:
        if item is None:
            raise FunctionError("index of untyped nil")
        if isinstance(item, dict):
            if not isinstance(key, str):
                raise FunctionError(f"value has type {type_name(key)}; should be string")
            item = item.get(key, "")
        elif isinstance(item, str):
            data = encoded(item)
            item = data[_position(key, len(data))]
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
    data = encoded(item)
    start, end = (*[_position(bound, len(data) + 1) for bound in bounds], *(0, len(data))[len(bounds) :])
    if start > end:
        raise FunctionError(f"invalid slice index: {start} > {end}")
    return data[start:end].decode(errors="replace")


def _length(item: Any) -> int:
    if isinstance(item, str):
        return len(encoded(item))
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
    "print": Function(printing.print_values, (), ANY, makes=True),
    "printf": Function(printing.printf, (STRING,), ANY, makes=True),
    "println": Function(printing.println, (), ANY, makes=True),
    "html": Function(printing.html, (), ANY, makes=True),
    "js": Function(printing.js, (), ANY, makes=True),
    "urlquery": Function(printing.urlquery, (), ANY, makes=True),
    "eq": Function(_equal, (ANY,), ANY),
    "ne": Function(lambda first, second: not _equal(first, second), (ANY, ANY)),
    "lt": Function(_less, (ANY, ANY)),
    "le": Function(_less_or_equal, (ANY, ANY)),
    "gt": Function(lambda first, second: not _less_or_equal(first, second), (ANY, ANY)),
    "ge": Function(lambda first, second: not _less(first, second), (ANY, ANY)),
    "join": Function(_join, (), STRING, makes=True),
}
