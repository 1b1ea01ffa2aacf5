"""The syntax tree of a template. ``str(node)`` is what Go prints for a node, because errors quote it.

(go: src/text/template/parse/node.go)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm.template.errors import quoted


@dataclass(frozen=True, slots=True)
class Node:
    """pos: offset in the text, in characters."""

    pos: int


@dataclass(frozen=True, slots=True)
class Literal(Node):
    """A string, number or bool; ``source`` is its spelling."""

    value: str | int | float | bool
    source: str

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True, slots=True)
class Nil(Node):
    """The word nil."""

    def __str__(self) -> str:
        return "nil"


@dataclass(frozen=True, slots=True)
class Dot(Node):
    """The current value (``.``)."""

    def __str__(self) -> str:
        return "."


@dataclass(frozen=True, slots=True)
class Field(Node):
    """.A.B, looked up in dot."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Variable(Node):
    """$x.A.B: a variable (with its dollar sign) and fields of it."""

    name: str
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f".{name}" for name in self.fields)


@dataclass(frozen=True, slots=True)
class Identifier(Node):
    """A function."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Command(Node):
    """An operand or function and its arguments."""

    words: tuple[Node, ...]

    def __str__(self) -> str:
        return " ".join(f"({word})" if isinstance(word, Pipe) else str(word) for word in self.words)


@dataclass(frozen=True, slots=True)
class Pipe(Node):
    """Commands; each gets the value of the previous one. ``variables`` receive the last value."""

    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    assigns: bool = False

    def __str__(self) -> str:
        commands = " | ".join(map(str, self.commands))
        if not self.variables:
            return commands
        return f"{', '.join(self.variables)} {'=' if self.assigns else ':='} {commands}"


@dataclass(frozen=True, slots=True)
class Chain(Node):
    """(pipe).A.B"""

    operand: Node
    names: tuple[str, ...]

    def __str__(self) -> str:
        head = f"({self.operand})" if isinstance(self.operand, Pipe) else str(self.operand)
        return head + "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Text(Node):
    """Literal text outside of braces."""

    text: str


@dataclass(frozen=True, slots=True)
class Action(Node):
    """{{pipe}}: print a value, or set a variable."""

    pipe: Pipe

    def __str__(self) -> str:
        return f"{{{{{self.pipe}}}}}"


@dataclass(frozen=True, slots=True)
class Branch(Node):
    """if, with and range: a condition or collection, a body, and an else part."""

    word: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...] | None = None

    def __str__(self) -> str:
        return f"{{{{{self.word} {self.pipe}}}}}"


@dataclass(frozen=True, slots=True)
class Jump(Node):
    """break or continue."""

    word: str

    def __str__(self) -> str:
        return f"{{{{{self.word}}}}}"


@dataclass(frozen=True, slots=True)
class Call(Node):
    """{{template "name" pipe}}"""

    name: str
    pipe: Pipe | None

    def __str__(self) -> str:
        argument = "" if self.pipe is None else f" {self.pipe}"
        return f"{{{{template {quoted(self.name)}{argument}}}}}"


@dataclass(frozen=True, slots=True)
class Tree:
    """A parsed text: its name, the text, the nodes, and the templates defined in it."""

    name: str
    text: str
    nodes: tuple[Node, ...]
    defined: dict[str, tuple[Node, ...]] = field(default_factory=dict)

    def location(self, node: Node) -> str:
        """``name:line:column``; columns count bytes from 0, as in Go."""
        before = self.text[: node.pos]
        line = before[before.rfind("\n") + 1 :].encode("utf-8", "surrogateescape")
        return f"{self.name}:{before.count(chr(10)) + 1}:{len(line)}"
