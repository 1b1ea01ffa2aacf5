"""Runs a parsed template over data, with Go's error texts (go: src/text/template/exec.go).

The manager runs users' templates, so their depth is limited, and all they do is paid from a budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarm import defaults
from swarm.template.budget import Budget, OverBudget
from swarm.template.errors import TemplateError, quoted, shortened
from swarm.template.functions import ANY, STRING, Function, FunctionError
from swarm.template.nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Identifier,
    Jump,
    Literal,
    Nil,
    Node,
    Pipe,
    Text,
    Tree,
    Variable,
)
from swarm.template.values import Record, entries, is_true, shown, type_name

_ABSENT = object()
_VARIABLES_PER_STEP = 32  # that are compared with a name


class _Break(Exception):
    """Control flow: leave the innermost range."""


class _Continue(Exception):
    """Control flow: continue with the next iteration of the innermost range."""


class Executor:
    """One execution of one tree. budget: pays for visited nodes, entries of maps and texts."""

    def __init__(self, tree: Tree, functions: Mapping[str, Function], budget: Budget) -> None:
        self._tree = tree
        self._functions = functions
        self._budget = budget
        self._name = tree.name
        self._out: list[str] = []
        self._depth = 0
        self._variables: list[tuple[str, Any]] = []

    def run(self, data: Any) -> str:
        """The output. Raises TemplateError."""
        self._variables = [("$", data)]
        self._walk(data, self._tree.nodes)
        return "".join(self._out)

    def _error(self, node: Node, message: str) -> TemplateError:
        where = self._tree.location(node)
        context = f"executing {quoted(self._name)} at <{shortened(str(node))}>"
        return TemplateError(f"template: {where}: {context}: {shortened(message)}")

    # --- statements ------------------------------------------------------------------------------------------------

    def _walk(self, dot: Any, nodes: Sequence[Node]) -> None:
        self._depth += 1
        for node in nodes:
            self._step(node)
            if isinstance(node, Text):
                self._write(node, node.text)
            elif isinstance(node, Action):
                value = self._pipe(dot, node.pipe)
                if not node.pipe.variables:
                    self._write(node, "<no value>" if value is None else self._shown(node, value))
            elif isinstance(node, Branch):
                self._scoped(dot, node)
            elif isinstance(node, Call):
                self._call_template(dot, node)
            elif isinstance(node, Jump):
                raise _Break if node.word == "break" else _Continue
        self._depth -= 1

    def _step(self, node: Node, count: int = 1) -> None:
        try:
            self._budget.step(count)
        except OverBudget as error:
            raise self._error(node, str(error)) from None
        if self._depth > defaults.TEMPLATE_DEPTH_MAX:
            raise self._error(node, f"exceeded maximum template depth ({defaults.TEMPLATE_DEPTH_MAX})")

    def _write(self, node: Node, text: str) -> None:
        try:
            self._out.append(self._budget.text(text))
        except OverBudget as error:
            raise self._error(node, str(error)) from None

    def _shown(self, node: Node, value: Any) -> str:
        self._step(node, entries(value))
        return shown(value)

    def _scoped(self, dot: Any, node: Branch) -> None:
        mark, depth = len(self._variables), self._depth
        try:
            if node.word == "range":
                self._range(dot, node)
                return
            value = self._pipe(dot, node.pipe)
            if is_true(value):
                self._walk(value if node.word == "with" else dot, node.body)
            elif node.otherwise is not None:
                self._walk(dot, node.otherwise)
        finally:
            del self._variables[mark:]
            self._depth = depth

    def _range(self, dot: Any, node: Branch) -> None:
        names = node.pipe.variables
        outer = len(self._variables)
        value = self._pipe(dot, node.pipe)
        if not node.pipe.assigns:
            del self._variables[outer:]
        if value is not None and not isinstance(value, dict):
            raise self._error(node, f"range can't iterate over {self._shown(node, value)}")
        self._step(node, entries(value))
        items = sorted((value or {}).items())
        depth = self._depth
        for item in items:
            mark = len(self._variables)
            for name, part in zip(names, item[-len(names) :] if names else (), strict=True):
                if node.pipe.assigns:
                    self._assign(node, name, part)
                else:
                    self._variables.append((name, part))
            try:
                self._walk(item[1], node.body)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self._variables[mark:]
                self._depth = depth
        if not items and node.otherwise is not None:
            self._walk(dot, node.otherwise)

    def _call_template(self, dot: Any, node: Call) -> None:
        body = self._tree.defined.get(node.name)
        if body is None:
            raise self._error(node, f"template {quoted(node.name)} not defined")
        value = None if node.pipe is None else self._pipe(dot, node.pipe)
        outer, name = self._variables, self._name
        self._variables, self._name = [("$", value)], node.name
        self._walk(value, body)
        self._variables, self._name = outer, name

    # --- pipelines -------------------------------------------------------------------------------------------------

    def _pipe(self, dot: Any, pipe: Pipe) -> Any:
        self._step(pipe)
        self._depth += 1
        value: Any = _ABSENT
        for command in pipe.commands:
            value = self._command(dot, command, value)
        for name in pipe.variables:
            if pipe.assigns:
                self._assign(pipe, name, value)
            else:
                self._variables.append((name, value))
        self._depth -= 1
        return value

    def _assign(self, node: Node, name: str, value: Any) -> None:
        self._step(node, len(self._variables) // _VARIABLES_PER_STEP)
        for position in range(len(self._variables) - 1, -1, -1):
            if self._variables[position][0] == name:
                self._variables[position] = (name, value)
                return

    def _lookup(self, node: Node, name: str) -> Any:
        self._step(node, len(self._variables) // _VARIABLES_PER_STEP)
        return next(value for known, value in reversed(self._variables) if known == name)

    def _command(self, dot: Any, command: Command, final: Any) -> Any:
        word = command.words[0]
        if isinstance(word, Identifier):
            return self._call(dot, word.name, command, command.words[1:], final)
        has_arguments = len(command.words) > 1 or final is not _ABSENT
        if isinstance(word, Field | Chain | Variable) and (not isinstance(word, Variable) or word.fields):
            return self._field_word(dot, word, has_arguments)
        if has_arguments:
            raise self._error(word, f"can't give argument to non-function {word}")
        if isinstance(word, Nil):
            raise self._error(word, "nil is not a command")
        return self._value(dot, word)

    def _field_word(self, dot: Any, word: Node, has_arguments: bool = False) -> Any:
        if isinstance(word, Field):
            return self._fields(word, dot, word.names, has_arguments)
        if isinstance(word, Variable):
            return self._fields(word, self._lookup(word, word.name), word.fields, has_arguments)
        assert isinstance(word, Chain)
        return self._fields(word, self._value(dot, word.operand), word.names, has_arguments)

    def _value(self, dot: Any, word: Node) -> Any:
        """The value of an operand that is not a function."""
        if isinstance(word, Dot):
            return dot
        if isinstance(word, Literal):
            self._check_int(word)
            return word.value
        if isinstance(word, Variable) and not word.fields:
            return self._lookup(word, word.name)
        if isinstance(word, Pipe):
            return self._pipe(dot, word)
        if isinstance(word, Identifier):
            return self._call(dot, word.name, word, (), _ABSENT)
        if isinstance(word, Nil):
            return None
        return self._field_word(dot, word)

    def _check_int(self, word: Literal) -> None:
        if isinstance(word.value, int) and not -(1 << 63) <= word.value < 1 << 63:
            raise self._error(word, f"{word.source} overflows int")

    def _fields(self, node: Node, receiver: Any, names: Sequence[str], has_arguments: bool) -> Any:
        for position, name in enumerate(names):
            last = position == len(names) - 1
            receiver = self._field(node, receiver, name, has_arguments and last)
        return receiver

    def _field(self, node: Node, receiver: Any, name: str, has_arguments: bool) -> Any:
        if receiver is None:
            raise self._error(node, f"nil data; no entry for key {quoted(name)}")
        if isinstance(receiver, Record) and name in receiver.fields:
            if has_arguments:
                raise self._error(node, f"{name} has arguments but cannot be invoked as function")
            return receiver.fields[name]
        if isinstance(receiver, dict):
            if has_arguments:
                raise self._error(node, f"{name} is not a method but has arguments")
            if name not in receiver:
                raise self._error(node, f"map has no entry for key {quoted(name)}")
            return receiver[name]
        raise self._error(node, f"can't evaluate field {name} in type {type_name(receiver)}")

    # --- functions -------------------------------------------------------------------------------------------------

    def _call(self, dot: Any, name: str, node: Node, words: Sequence[Node], final: Any) -> Any:
        self._step(node)
        function = self._functions[name]
        given = len(words) + (final is not _ABSENT)
        fixed = len(function.fixed)
        if function.variadic is not None and given < fixed:
            raise self._error(node, f"wrong number of args for {name}: want at least {fixed} got {len(words)}")
        if function.variadic is None and given != fixed:
            raise self._error(node, f"wrong number of args for {name}: want {fixed} got {given}")
        kinds = (*function.fixed, *[function.variadic or ANY] * (given - fixed))
        if function.lazy:
            return self._and_or(dot, name, words, final)
        values = [self._argument(dot, word, kind) for word, kind in zip(words, kinds, strict=False)]
        if final is not _ABSENT:
            values.append(self._typed(node, final, kinds[-1]))
        try:
            return function.paid(self._budget, values)
        except (FunctionError, OverBudget) as error:
            raise self._error(node, f"error calling {name}: {error}") from error

    def _and_or(self, dot: Any, name: str, words: Sequence[Node], final: Any) -> Any:
        """The first argument that decides the result, or the last one. Later arguments are not evaluated."""
        for position, word in enumerate(words):
            value = self._argument(dot, word, ANY)
            if is_true(value) == (name == "or") or (position == len(words) - 1 and final is _ABSENT):
                return value
        return final

    def _argument(self, dot: Any, word: Node, kind: str) -> Any:
        if isinstance(word, Nil) and kind == STRING:
            raise self._error(word, "cannot assign nil to string")
        if isinstance(word, Literal) and kind == STRING and not isinstance(word.value, str):
            raise self._error(word, f"expected string; found {word}")
        return self._typed(word, self._value(dot, word), kind)

    def _typed(self, node: Node, value: Any, kind: str) -> Any:
        if kind == STRING and not isinstance(value, str):
            if value is None:
                raise self._error(node, "invalid value; expected string")
            raise self._error(node, f"wrong type for value; expected string; got {type_name(value)}")
        return value
