"""Go's JSON scanner: finds what is wrong with a text, and counts its values.

It goes from value to value with regular expressions, whose repetitions are possessive: every character is looked at
once, and nothing is recursive. (go: encoding/json/scanner.go)
"""

from __future__ import annotations

import re

from engine_api.convert.goquote import quote_char

DEPTH_MAX = 10_000
_STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+'
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?![.eE])"
_SPACE = re.compile(r"[ \t\r\n]*+")
_OPEN_STRING = re.compile(_STRING)
_SCALAR = re.compile(rf'[ \t\r\n]*+(?:{_STRING}"|{_NUMBER}|true|false|null|\[[ \t\r\n]*+\]|\{{[ \t\r\n]*+\}})')
_KEY = re.compile(rf'[ \t\r\n]*+{_STRING}"[ \t\r\n]*+:')
_DIGITS = re.compile(r"[0-9]++")
_WORDS = {"t": "true", "f": "false", "n": "null"}
_CLOSING = {"[": "]", "{": "}"}
_AFTER = {"]": "after array element", "}": "after object key:value pair"}


class ScanError(ValueError):
    """What Go's scanner would say about a text; excessive: it may be valid, but has too many values or levels."""

    def __init__(self, text: str, excessive: bool = False) -> None:
        super().__init__(text)
        self.excessive = excessive


class Premature(Exception):
    """The text ends inside a value."""


class Scan:
    """One text from a position on. most: how many values it may have."""

    def __init__(self, text: str, position: int, most: int) -> None:
        self._text = text
        self._position = position
        self._most = most
        self._values = 0
        self._open: list[str] = []  # closing brackets, innermost last

    def value(self) -> None:
        """Go over one value with all that is in it. Raises ScanError, Premature."""
        while True:
            self._count()
            match = _SCALAR.match(self._text, self._position)
            if match is not None:
                self._position = match.end()
            elif self._begin():
                continue
            if self._end():
                return

    def _count(self) -> None:
        self._values += 1
        if self._values > self._most:
            raise ScanError(f"the text has more than {self._most} values", excessive=True)

    def _peek(self) -> str:
        if self._position >= len(self._text):
            raise Premature
        return self._text[self._position]

    def _after_space(self) -> str:
        match = _SPACE.match(self._text, self._position)
        assert match is not None
        self._position = match.end()
        return self._peek()

    def _refuse(self, context: str) -> ScanError:
        return ScanError(f"invalid character {quote_char(self._peek())} {context}")

    def _begin(self) -> bool:
        """Begin an array or object, or fail on anything else. Returns whether a value has to follow."""
        char = self._after_space()
        if char not in _CLOSING:
            self._scalar(char)
            return False
        self._position += 1
        if self._after_space() == _CLOSING[char]:
            self._position += 1
            return False
        self._open.append(_CLOSING[char])
        if len(self._open) > DEPTH_MAX:
            raise ScanError("exceeded max depth", excessive=True)
        if char == "{":
            self._key()
        return True

    def _end(self) -> bool:
        """After a value: close what ends here. Returns whether it was the whole text's value."""
        while self._open:
            close = self._open[-1]
            char = self._after_space()
            if char not in (",", close):
                raise self._refuse(_AFTER[close])
            self._position += 1
            if char == ",":
                if close == "}":
                    self._key()
                return False
            self._open.pop()
        return True

    def _key(self) -> None:
        match = _KEY.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
            return
        if self._after_space() != '"':
            raise self._refuse("looking for beginning of object key string")
        self._string()
        if self._after_space() != ":":
            raise self._refuse("after object key")
        self._position += 1

    # --- scalars, which are wrong if one comes here ----------------------------------------------------------------

    def _scalar(self, char: str) -> None:
        if char == '"':
            self._string()
        elif char in _WORDS:
            self._word(_WORDS[char])
        elif char in "-0123456789":
            self._number()
        else:
            raise self._refuse("looking for beginning of value")

    def _string(self) -> None:
        match = _OPEN_STRING.match(self._text, self._position)
        assert match is not None
        self._position = match.end()
        char = self._peek()
        if char < " ":
            raise self._refuse("in string literal")
        self._position += 1
        if char == '"':
            return
        if self._peek() != "u":
            raise self._refuse("in string escape code")
        while True:  # one of the four is no digit
            self._position += 1
            if self._peek() not in "0123456789abcdefABCDEF":
                raise self._refuse("in \\u hexadecimal character escape")

    def _word(self, word: str) -> None:
        for expected in word[1:]:
            self._position += 1
            if self._peek() != expected:
                raise self._refuse(f"in literal {word} (expecting {quote_char(expected)})")
        self._position += 1

    def _digits(self, context: str) -> None:
        self._peek()
        match = _DIGITS.match(self._text, self._position)
        if match is None:
            raise self._refuse(context)
        self._position = match.end()

    def _number(self) -> None:
        if self._peek() == "-":
            self._position += 1
            self._peek()
        if self._peek() == "0":
            self._position += 1
        else:
            self._digits("in numeric literal")
        if self._peek() == ".":
            self._position += 1
            self._digits("after decimal point in numeric literal")
        if self._peek() in "eE":
            self._position += 1
            if self._peek() in "+-":
                self._position += 1
            self._digits("in exponent of numeric literal")
