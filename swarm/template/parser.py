"""Parses tokens into nodes: Go's text/template grammar and error texts (go: src/text/template/parse/parse.go)."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from swarm import defaults, gotext
from swarm.template.budget import Budget, OverBudget
from swarm.template.errors import TemplateError, quoted, shortened
from swarm.template.lexer import Kind, Lexer, Token
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

_OPERANDS = frozenset(
    {
        Kind.BOOL,
        Kind.CHAR_CONSTANT,
        Kind.DOT,
        Kind.FIELD,
        Kind.IDENTIFIER,
        Kind.NUMBER,
        Kind.NIL,
        Kind.STRING,
        Kind.VARIABLE,
        Kind.LEFT_PAREN,
    }
)
_QUOTED_CHARS = 10
_VARIABLES_PER_STEP = 32  # that are compared with a name
_GO_OCTAL = re.compile(r"([+-]?)0([0-7_]+)")


class _Stop(Exception):
    """Control flow: an end or else, which closes the list of nodes being read."""

    def __init__(self, token: Token) -> None:
        self.token = token


class Parser:
    """Parses one text. functions: the names that may be called. budget: pays for tokens and for constants."""

    def __init__(self, name: str, text: str, functions: Collection[str], budget: Budget) -> None:
        self._name = name
        self._text = text
        self._functions = functions
        self._budget = budget
        self._tokens = Lexer(text, budget).tokens()
        self._index = 0
        self._line = 1
        self._action_line = 1
        self._variables = ["$"]
        self._defined: dict[str, tuple[Node, ...]] = {}
        self._ranges = 0
        self._depth = 0

    def parse(self) -> Tree:
        """The whole text. Raises TemplateError."""
        nodes: list[Node] = []
        while self._peek().kind is not Kind.EOF:
            try:
                node = self._text_or_action(top=True)
            except _Stop as stop:
                raise self._error(f"unexpected {{{{{stop.token.value}}}}}") from None
            except OverBudget as error:
                raise self._error(str(error)) from None
            if node is not None:
                nodes.append(node)
        return Tree(self._name, self._text, tuple(nodes), self._defined)

    # --- tokens ----------------------------------------------------------------------------------------------------

    def _peek(self, skip_space: bool = False) -> Token:
        if skip_space:
            while self._tokens[self._index].kind is Kind.SPACE:
                self._index += 1
        token = self._tokens[self._index]
        self._line = token.line
        return token

    def _next(self, skip_space: bool = True) -> Token:
        token = self._peek(skip_space)
        if token.kind not in (Kind.EOF, Kind.ERROR):
            self._index += 1
        return token

    def _error(self, message: str) -> TemplateError:
        return TemplateError(f"template: {self._name}:{self._line}: {shortened(message)}")

    def _unexpected(self, token: Token, context: str) -> TemplateError:
        if token.kind is Kind.ERROR:
            extra = ""
            if token.line != self._action_line:
                extra = f" started at {self._name}:{self._action_line}"
                extra = extra if token.value.endswith(" action") else f" in action{extra}"
            return self._error(token.value + extra)
        return self._error(f"unexpected {_shown(token)} in {context}")

    def _expect(self, kind: Kind, context: str) -> Token:
        token = self._next()
        if token.kind is not kind:
            raise self._unexpected(token, context)
        return token

    # --- lists and control -----------------------------------------------------------------------------------------

    def _text_or_action(self, top: bool = False) -> Node | None:
        token = self._next(skip_space=False)
        if token.kind is Kind.TEXT:
            return Text(token.pos, token.value)
        if token.kind is not Kind.LEFT:
            raise self._unexpected(token, "input")
        self._action_line = token.line
        word = self._peek(skip_space=True)
        if word.kind is not Kind.KEYWORD:
            return Action(word.pos, self._pipeline("command"))
        self._next()
        if word.value in ("end", "else"):
            raise _Stop(word)
        if word.value == "define":
            if not top:
                raise self._unexpected(word, "command")
            self._define()
            return None
        return self._control(word)

    def _control(self, word: Token) -> Node:
        if word.value in ("if", "with", "range"):
            return self._branch(word)
        if word.value == "template":
            name, token = self._template_name("template clause")
            if self._peek(skip_space=True).kind is Kind.RIGHT:
                self._next()
                return Call(token.pos, name, None)
            return Call(token.pos, name, self._pipeline("template clause"))
        if word.value == "block":
            return self._block()
        if not self._ranges:
            raise self._error(f"{{{{{word.value}}}}} outside {{{{range}}}}")
        self._expect(Kind.RIGHT, f"{{{{{word.value}}}}}")
        return Jump(word.pos, word.value)

    def _list(self) -> tuple[tuple[Node, ...], Token]:
        """Nodes up to the next end or else, and that token; its right delimiter is not read yet."""
        self._enter()
        nodes: list[Node] = []
        while self._peek().kind is not Kind.EOF:
            try:
                node = self._text_or_action()
            except _Stop as stop:
                self._depth -= 1
                return tuple(nodes), stop.token
            if node is not None:
                nodes.append(node)
        raise self._error("unexpected EOF")

    def _branch(self, word: Token) -> Branch:
        scope = len(self._variables)
        pipe = self._pipeline(word.value)
        is_range = word.value == "range"
        self._ranges += is_range
        body, stop = self._list()
        self._ranges -= is_range
        otherwise: tuple[Node, ...] | None = None
        if stop.value == "else":
            follow = self._peek(skip_space=True)
            if follow.kind is Kind.KEYWORD and follow.value == word.value and not is_range:
                self._next()
                # "else if" closes with the end of the inner branch.
                self._enter()
                otherwise = (self._branch(follow),)
                self._depth -= 1
                del self._variables[scope:]
                return Branch(pipe.pos, word.value, pipe, body, otherwise)
            self._expect(Kind.RIGHT, "else")
            otherwise, stop = self._list()
            if stop.value != "end":
                raise self._error(f"expected end; found {{{{{stop.value}}}}}")
        self._expect(Kind.RIGHT, "end")
        del self._variables[scope:]
        return Branch(pipe.pos, word.value, pipe, body, otherwise)

    def _template_name(self, context: str) -> tuple[str, Token]:
        token = self._next()
        if token.kind is not Kind.STRING:
            raise self._unexpected(token, context)
        return self._unquote(token.value), token

    def _define(self) -> None:
        name, _ = self._template_name("define clause")
        self._expect(Kind.RIGHT, "define clause")
        self._body(name, "define clause")

    def _block(self) -> Call:
        name, token = self._template_name("block clause")
        pipe = self._pipeline("block clause")
        self._body(name, "block clause")
        return Call(token.pos, name, pipe)

    def _body(self, name: str, context: str) -> None:
        outer, self._variables = self._variables, ["$"]
        ranges, self._ranges = self._ranges, 0
        nodes, stop = self._list()
        if stop.value != "end":
            raise self._error(f"unexpected {{{{{stop.value}}}}} in {context}")
        self._expect(Kind.RIGHT, "end")
        self._variables, self._ranges = outer, ranges
        if _is_empty(nodes) and name in self._defined:
            return
        if name in self._defined and not _is_empty(self._defined[name]):
            raise self._error(f"template: multiple definition of template {quoted(name)}")
        self._defined[name] = nodes

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > defaults.TEMPLATE_DEPTH_MAX:
            raise self._error("template is nested too deeply")

    # --- pipelines -------------------------------------------------------------------------------------------------

    def _pipeline(self, context: str, end: Kind = Kind.RIGHT) -> Pipe:
        pos = self._peek(skip_space=True).pos
        variables, assigns = self._declarations(context)
        commands: list[Command] = []
        while True:
            token = self._peek(skip_space=True)
            if token.kind is end:
                self._next()
                break
            if token.kind not in _OPERANDS:
                raise self._unexpected(token, context)
            commands.append(self._command())
        if not commands:
            raise self._error(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command.words[0], Literal | Dot | Nil):
                raise self._error(f"non executable command in pipeline stage {stage}")
        self._variables += variables if not assigns else ()
        return Pipe(pos, tuple(commands), variables, assigns)

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        names: list[str] = []
        start = self._index
        while self._peek(skip_space=True).kind is Kind.VARIABLE:
            name = self._next().value
            follow = self._peek(skip_space=True)
            if follow.kind in (Kind.DECLARE, Kind.ASSIGN):
                self._next()
                names.append(name)
                if follow.kind is Kind.ASSIGN:
                    for used in names:
                        self._check_variable(used)
                return tuple(names), follow.kind is Kind.ASSIGN
            if follow.kind is Kind.CHAR and follow.value == ",":
                self._next()
                names.append(name)
                if context != "range" or len(names) > 1:
                    raise self._error(f"too many declarations in {context}")
                if self._peek(skip_space=True).kind is not Kind.VARIABLE:
                    raise self._error("range can only initialize variables")
                continue
            break
        self._index = start
        return (), False

    def _command(self) -> Command:
        pos = self._peek(skip_space=True).pos
        words: list[Node] = []
        while True:
            operand = self._operand()
            if operand is not None:
                words.append(operand)
            token = self._peek()
            if token.kind is Kind.SPACE:
                self._next(skip_space=False)
                self._peek(skip_space=True)
                continue
            if token.kind is Kind.PIPE:
                self._next()
                if self._peek(skip_space=True).kind in (Kind.RIGHT, Kind.RIGHT_PAREN, Kind.PIPE):
                    raise self._error("missing value for command")
            elif token.kind not in (Kind.RIGHT, Kind.RIGHT_PAREN):
                raise self._unexpected(token, "operand")
            break
        if not words:
            raise self._error("empty command")
        return Command(pos, tuple(words))

    def _operand(self) -> Node | None:
        node = self._term()
        if node is None or self._peek().kind is not Kind.FIELD:
            return node
        pos = self._peek().pos
        names = []
        while self._peek().kind is Kind.FIELD:
            names.append(self._next(skip_space=False).value[1:])
        if isinstance(node, Field):
            return Field(pos, (*node.names, *names))
        if isinstance(node, Variable):
            return Variable(pos, node.name, (*node.fields, *names))
        if isinstance(node, Literal | Nil | Dot):
            raise self._error(f"unexpected . after term {quoted(str(node))}")
        return Chain(pos, node, tuple(names))

    def _term(self) -> Node | None:
        token = self._peek()
        if token.kind not in _OPERANDS:
            return None
        self._next(skip_space=False)
        if token.kind is Kind.IDENTIFIER:
            if token.value not in self._functions:
                raise self._error(f"function {quoted(token.value)} not defined")
            return Identifier(token.pos, token.value)
        if token.kind is Kind.FIELD:
            return Field(token.pos, (token.value[1:],))
        if token.kind is Kind.VARIABLE:
            self._check_variable(token.value)
            return Variable(token.pos, token.value)
        if token.kind is Kind.DOT:
            return Dot(token.pos)
        if token.kind is Kind.NIL:
            return Nil(token.pos)
        if token.kind is Kind.LEFT_PAREN:
            self._enter()
            pipe = self._pipeline("parenthesized pipeline", Kind.RIGHT_PAREN)
            self._depth -= 1
            return pipe
        return Literal(token.pos, self._literal(token), token.value)

    def _check_variable(self, name: str) -> None:
        self._budget.step(len(self._variables) // _VARIABLES_PER_STEP)
        if name not in self._variables:
            raise self._error(f"undefined variable {quoted(name)}")

    # --- constants -------------------------------------------------------------------------------------------------

    def _literal(self, token: Token) -> str | int | float | bool:
        if token.kind is Kind.BOOL:
            return token.value == "true"
        if token.kind is Kind.STRING:
            return self._unquote(token.value)
        if token.kind is Kind.CHAR_CONSTANT:
            text = self._unquote('"' + token.value[1:-1].replace("\\'", "'").replace('"', '\\"') + '"')
            if len(text) != 1:
                raise self._error(f"malformed character constant: {token.value}")
            return ord(text)
        return self._number(token.value)

    def _number(self, text: str) -> int | float:
        octal = _GO_OCTAL.fullmatch(text)
        try:
            if octal is not None:
                return int(octal[1] + octal[2].replace("_", ""), 8)
            value = ast.literal_eval(text.lstrip("+-"))
        except (ValueError, SyntaxError):
            raise self._error(f"illegal number syntax: {quoted(text)}") from None
        assert isinstance(value, int | float)
        return -value if text.startswith("-") else value

    def _unquote(self, text: str) -> str:
        if text.startswith("`"):
            return text[1:-1].replace("\r", "")
        if "\\" in text:
            self._budget.slow(text)
        try:
            return gotext.unquote(text)
        except gotext.NotQuotedError:
            raise self._error("invalid syntax") from None


def _shown(token: Token) -> str:
    """A token as error messages print it."""
    if token.kind is Kind.EOF:
        return "EOF"
    if token.kind in (Kind.KEYWORD, Kind.DOT, Kind.NIL):
        return f"<{token.value}>"
    if len(token.value) > _QUOTED_CHARS:
        return gotext.quote(token.value[:_QUOTED_CHARS]) + "..."
    return gotext.quote(token.value)


def _is_empty(nodes: tuple[Node, ...]) -> bool:
    return all(isinstance(node, Text) and not node.text.strip() for node in nodes)
