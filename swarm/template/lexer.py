"""Splits template text into tokens: the language of Go's text/template (go: src/text/template/parse/lex.go).

Text outside ``{{ }}`` is one token. Inside, spaces are tokens too, because they separate arguments. A mistake becomes
an ERROR token, so that the parser reports the first problem in the text.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

from swarm import defaults
from swarm.template.budget import Budget, OverBudget
from swarm.template.errors import quoted

LEFT, RIGHT = "{{", "}}"
_SPACES = " \t\r\n"


class Kind(Enum):
    """The kind of a token."""

    TEXT = auto()
    LEFT = auto()
    RIGHT = auto()
    SPACE = auto()
    FIELD = auto()
    VARIABLE = auto()
    IDENTIFIER = auto()
    KEYWORD = auto()
    DOT = auto()
    NIL = auto()
    BOOL = auto()
    NUMBER = auto()
    CHAR_CONSTANT = auto()
    STRING = auto()
    PIPE = auto()
    DECLARE = auto()
    ASSIGN = auto()
    LEFT_PAREN = auto()
    RIGHT_PAREN = auto()
    CHAR = auto()
    ERROR = auto()
    EOF = auto()


KEYWORDS = ("block", "break", "continue", "define", "else", "end", "if", "range", "template", "with")


class Token(NamedTuple):
    """One token. pos is its offset in the text in characters; line counts from 1."""

    kind: Kind
    pos: int
    value: str
    line: int


# Repetitions are possessive (*+): what does not match is then refused without going back, and without memory for that.
_PATTERNS = (
    (Kind.SPACE, r"[ \t\r\n]+"),
    (Kind.DECLARE, r":="),
    (Kind.ASSIGN, r"="),
    (Kind.PIPE, r"\|"),
    (Kind.STRING, r'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"|`[^`]*+`'),
    (Kind.CHAR_CONSTANT, r"'[^'\\\n]*+(?:\\[^\n][^'\\\n]*+)*+'"),
    (Kind.VARIABLE, r"\$\w*"),
    (
        Kind.NUMBER,
        r"[+-]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?)",
    ),
    (Kind.FIELD, r"\.\w+"),
    (Kind.DOT, r"\."),
    (Kind.IDENTIFIER, r"\w+"),
    (Kind.LEFT_PAREN, r"\("),
    (Kind.RIGHT_PAREN, r"\)"),
    (Kind.CHAR, r"[!-~]"),
)
_TOKEN = re.compile("|".join(f"(?P<{kind.name}>{pattern})" for kind, pattern in _PATTERNS))
_KINDS = {kind.name: kind for kind, _ in _PATTERNS}
_WORDS = (Kind.VARIABLE, Kind.FIELD, Kind.DOT, Kind.IDENTIFIER)
_UNFINISHED = {
    '"': "unterminated quoted string",
    "`": "unterminated raw quoted string",
    "'": "unterminated character constant",
    ":": "expected :=",
}


class _Malformed(Exception):
    """The text is malformed here; the message is Go's."""


class Lexer:
    """Splits one text into tokens; the last one is EOF or ERROR."""

    def __init__(self, text: str, budget: Budget) -> None:
        self._text = text
        self._budget = budget
        self._pos = 0
        self._counted = 0
        self._line = 1
        self._tokens: list[Token] = []

    def tokens(self) -> list[Token]:
        """All tokens of the text. A step is paid for each token and each action."""
        try:
            self._scan()
        except (_Malformed, OverBudget) as error:
            self._append(Kind.ERROR, self._pos, str(error))
        return self._tokens

    def _scan(self) -> None:
        trim = False
        while self._pos < len(self._text):
            start = self._text.find(LEFT, self._pos)
            end = len(self._text) if start < 0 else start
            text = self._text[self._pos : end]
            lead = len(text) - len(text.lstrip(_SPACES)) if trim else 0
            if start >= 0 and self._trims_left(start):
                text = text.rstrip(_SPACES)
            if text[lead:]:
                self._emit(Kind.TEXT, self._pos + lead, text[lead:])
            if start < 0:
                self._pos = len(self._text)
                break
            trim = self._action(start)
        self._emit(Kind.EOF, len(self._text), "")

    def _trims_left(self, start: int) -> bool:
        mark = self._text[start + 2 : start + 4]
        return len(mark) == 2 and mark[0] == "-" and mark[1] in _SPACES

    def _right(self, pos: int) -> tuple[int, bool] | None:
        """Length of a right delimiter at ``pos`` with its trim marker, and whether it trims."""
        if self._text.startswith(RIGHT, pos):
            return len(RIGHT), False
        if self._text[pos : pos + 1] in tuple(_SPACES) and self._text.startswith("-" + RIGHT, pos + 1):
            return 2 + len(RIGHT), True
        return None

    def _action(self, start: int) -> bool:
        """Scan one action from its left delimiter. Returns whether it trims the text after it."""
        self._budget.step()
        self._pos = start + len(LEFT) + (2 if self._trims_left(start) else 0)
        if self._text.startswith("/*", self._pos):
            return self._comment()
        self._emit(Kind.LEFT, start, LEFT)
        depth = 0
        while True:
            right = self._right(self._pos)
            if right is not None:
                if depth:
                    raise _Malformed("unclosed left paren")
                self._emit(Kind.RIGHT, self._pos, RIGHT)
                self._pos += right[0]
                return right[1]
            if self._pos >= len(self._text):
                raise _Malformed("unclosed action")
            token = self._inside()
            depth += (token.kind is Kind.LEFT_PAREN) - (token.kind is Kind.RIGHT_PAREN)
            if depth < 0:
                self._tokens.pop()
                raise _Malformed(f"unexpected right paren {_unicode(')')}")

    def _comment(self) -> bool:
        end = self._text.find("*/", self._pos + 2)
        if end < 0:
            raise _Malformed("unclosed comment")
        right = self._right(end + 2)
        if right is None:
            raise _Malformed("comment ends before closing delimiter")
        self._pos = end + 2 + right[0]
        return right[1]

    def _inside(self) -> Token:
        match = _TOKEN.match(self._text, self._pos)
        if match is not None:
            assert match.lastgroup is not None
            return self._word(_KINDS[match.lastgroup], match[0])
        char = self._text[self._pos]
        raise _Malformed(f"unrecognized character in action: {_unicode(char)}")

    def _word(self, kind: Kind, value: str) -> Token:
        start, after = self._pos, self._pos + len(value)
        if kind is Kind.SPACE and self._text.startswith("-" + RIGHT, after):
            value, after = value[:-1], after - 1  # the last space belongs to the trim marker
        if kind is Kind.CHAR and value in _UNFINISHED:
            raise _Malformed(_UNFINISHED[value])
        if kind is Kind.NUMBER and len(value) > defaults.TEMPLATE_NUMBER_CHARS_MAX:
            raise _Malformed(f"bad number syntax: {quoted(value)}")
        if kind is Kind.NUMBER and self._text[after : after + 1].isalnum():
            raise _Malformed(f'bad number syntax: "{value}{self._text[after]}"')
        if kind in _WORDS and not self._ends_word(after):
            raise _Malformed(f"bad character {_unicode(self._text[after])}")
        if kind is Kind.IDENTIFIER:
            kind = _kind_of_word(value)
        self._pos = after
        return self._emit(kind, start, value) if value else self._tokens[-1]

    def _ends_word(self, pos: int) -> bool:
        char = self._text[pos : pos + 1]
        return char == "" or char in _SPACES or char in ".,|:)(=" or self._text.startswith(RIGHT, pos)

    def _emit(self, kind: Kind, pos: int, value: str) -> Token:
        self._budget.step()
        return self._append(kind, pos, value)

    def _append(self, kind: Kind, pos: int, value: str) -> Token:
        self._line += self._text.count("\n", self._counted, pos)
        self._counted = max(self._counted, pos)
        token = Token(kind, pos, value, self._line)
        self._tokens.append(token)
        return token


def _kind_of_word(word: str) -> Kind:
    if word in KEYWORDS:
        return Kind.KEYWORD
    if word == "nil":
        return Kind.NIL
    return Kind.BOOL if word in ("true", "false") else Kind.IDENTIFIER


def _unicode(char: str) -> str:
    """``%#U``: code point and, where it can be printed, the character."""
    text = f"U+{ord(char):04X}"
    return f"{text} '{char}'" if char.isprintable() else text
