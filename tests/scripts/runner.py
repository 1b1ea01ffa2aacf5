"""Runs data-driven scripts: ``command``, ``----``, the expected output, an empty line.

The format of etcd's testdata. With REWRITE=1 in the environment the files are rewritten with what the code does now;
the diff is then for a person to judge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SEPARATOR = "----"


@dataclass
class Step:
    """One command with the comments before it and the output after it."""

    comments: list[str]
    command: str
    expected: str
    line: int


def parse(text: str) -> Iterator[Step]:
    """The steps of a script. Raises ValueError for a command without a separator."""
    comments: list[str] = []
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position].rstrip()
        position += 1
        if not line or line.startswith("#"):
            comments.append(line)
            continue
        if position >= len(lines) or lines[position].rstrip() != _SEPARATOR:
            raise ValueError(f"line {position}: {_SEPARATOR} must follow the command {line!r}")
        start = position = position + 1
        while position < len(lines) and lines[position].strip():
            position += 1
        output = "\n".join(part.rstrip() for part in lines[start:position])
        position += 1
        yield Step(comments, line, output, start - 1)
        comments = []


def run(path: Path, perform: Callable[[str], str]) -> None:
    """Perform each command and compare; or write down what happened (REWRITE=1)."""
    rewrite = bool(os.environ.get("REWRITE"))
    written: list[str] = []
    for step in parse(path.read_text()):
        try:
            output = perform(step.command).rstrip()
        except Exception as error:
            error.add_note(f"{path.name}:{step.line}: {step.command}")
            raise
        written += [*step.comments, step.command, _SEPARATOR, *output.splitlines(), ""]
        if not rewrite:
            assert output == step.expected, f"{path.name}:{step.line}: {step.command}\n{output}"
    if rewrite:
        path.write_text("\n".join(written).rstrip() + "\n")
