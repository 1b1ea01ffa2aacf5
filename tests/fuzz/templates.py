"""Fuzz target: templates as users may write them, with small budgets, so that short inputs can exceed them.

Checked by counting, not by a clock: a template executes no more lines of our code, and holds no more memory, than its
budget allows; its result does not depend on the budget; what is refused is a TemplateError with a short text; and what
one template used up is missing for the next one.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

from swarm import api, expansion, template
from swarm.template import FunctionError, TemplateError
from swarm.template.budget import Budget
from tests.fuzz.feed import Feed

LINES_PER_STEP = 60  # of parsing and executing together
LINES_PER_TEMPLATE = 600  # also for the location and the text of an error
MEMORY_PER_STEP_BYTES = 1_500
MEMORY_PER_BYTE = 16  # of budget and of source
MEMORY_PER_TEMPLATE_BYTES = 300_000
ERROR_CHARS_MAX = 6_000
PIECES_MAX = 40
REPEAT_MAX = 400

PIECES = (
    "{{", "}}", "{{- ", " -}}", "{{/*", "*/}}", "$x", "$y", ":=", "=", "|", "(", ")", "`", '"', "'", ",", " ", "\n",
    ".", ".Service", ".Labels", ".Node.Hostname", "1", "-", "0x", "1e9", "é", "\U0001f600", "\\x41", "\\u00e9", "<",
    "if ", "else", "end", "range ", "with ", "define ", "template ", "block ", "break", "continue", "nil", "true",
    "print ", "printf ", "println ", "html ", "js ", "urlquery ", "join ", "index ", "slice ", "len ", "eq ", "lt ",
    "and ", "or ", "not ", "%d", "%1000000d", "%.99999f", "%-9s", "%q", "%x", "%v", "%*d", "%U",
    "{{$x := `a`}}", "{{$x = print $x $x}}", "{{$x = js $x}}", "{{$x}}", "{{define `a`}}", '{{define "b"}}', "{{end}}",
    "{{template `a` .}}", '{{template "b" $x}}', "{{range .Service.Labels}}", "{{if $x}}", "{{else}}", "{{1}}",
    "{{.Service}}", "{{printf `%1000d` 1}}", "{{join $x $x $x $x}}", "{{$y := html $x $x}}", "{{len $x}}",
    '{{secret "s"}}', "{{env `E`}}", '{{printf "%q" (secret "s")}}',
)  # fmt: skip


class Lines:
    """Counts the executed lines of our code below a directory."""

    def __init__(self, directory: str) -> None:
        self.count = 0
        self._directory = directory

    def of(self, run: Callable[[], object]) -> None:
        """Run it, and count."""
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            run()
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if self._directory in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.count += event == "line"
        return self._line


def source(feed: Feed) -> str:
    """A template of pieces, some of them repeated."""
    out = []
    for _ in range(PIECES_MAX):
        if not feed:
            break
        kind = feed.byte()
        piece = feed.some().decode("utf-8", "surrogateescape") if kind == 255 else PIECES[kind % len(PIECES)]
        if feed.byte() > 200:
            piece *= feed.below(REPEAT_MAX)
        out.append(piece)
    return "".join(out)


def _secret(target: str) -> str:
    if target != "s":
        raise FunctionError("no such secret")
    return "\udcff<\u00e9" * 50


def _task() -> api.Task:
    task = api.Task(id="t1", service_id="s1", slot=1)
    task.service_annotations.name = "web"
    task.service_annotations.labels.update({f"key{number}": "<value>" for number in range(30)})
    task.spec.container.env.append("E=<e>")
    return task


_TASK = _task()
_NODE = api.NodeDescription(hostname="host")
_DATA = expansion.context(_NODE, _TASK)
_FUNCTIONS = {"secret": template.getter(_secret), "env": expansion.env_function(_TASK)}


def _outcome(text: str, budget: Budget) -> str | None:
    """What it expands to; None when it is refused."""
    try:
        return template.expand(text, _DATA, budget, _FUNCTIONS)
    except TemplateError as error:
        said = str(error)
        assert said.startswith("template: "), said[:300]
        assert len(said) <= ERROR_CHARS_MAX, len(said)
        return None


def one(data: bytes) -> None:
    """The whole of one input."""
    feed = Feed(data)
    steps, size = 20 + feed.below(1_000), 200 + feed.below(20_000)
    text = source(feed)
    small = Budget("a test", steps, size)
    lines = Lines("/swarm/template/")
    lines.of(lambda: _outcome(text, small))
    allowed = LINES_PER_TEMPLATE + LINES_PER_STEP * steps + size
    assert lines.count <= allowed, (lines.count, allowed, text[:300])
    tracemalloc.start()
    try:
        result = _outcome(text, Budget("a test", steps, size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    room = MEMORY_PER_TEMPLATE_BYTES + MEMORY_PER_STEP_BYTES * steps + MEMORY_PER_BYTE * (size + len(text))
    assert peak <= room, (peak, room, text[:300])
    if result is not None:
        assert len(result) <= len(text) + size, text[:300]
        assert _outcome(text, Budget("a test", 2 * steps, 2 * size)) == result
    if small.steps_left < 0 or small.bytes_left < 0:
        assert _outcome("{{1}}", small) is None


def seeds() -> list[bytes]:
    """Inputs to begin with: each piece alone and inside an action, whole actions repeated, growth in a few steps."""
    number = {piece: index for index, piece in enumerate(PIECES)}

    def pieces(*names: str, repeat: int = 0) -> bytes:
        out = bytearray((1, 0, 16, 0))
        for name in names:
            out += bytes((number[name], 255, repeat >> 8, repeat & 255) if repeat else (number[name], 0))
        return bytes(out)

    out = [pieces(piece) for piece in PIECES]
    out += [pieces("{{", piece, "}}") for piece in PIECES]
    out += [pieces(piece, repeat=300) for piece in PIECES if piece.startswith("{{")]
    out += [pieces("{{$x := `a`}}", piece, piece, piece, "{{$x}}") for piece in PIECES if piece.startswith("{{$x =")]
    begin = pieces("{{$x := `a`}}")
    for piece in ("{{$x = print $x $x}}", "{{$x = js $x}}", "{{join $x $x $x $x}}", "{{$y := html $x $x}}"):
        out.append(begin + bytes((number["{{$x = print $x $x}}"], 255, 0, 12, number[piece], 255, 1, 0)))
    out.append(pieces("{{define `a`}}", "{{template `a` .}}", "{{template `a` .}}", "{{end}}", "{{template `a` .}}"))
    out.append(pieces("{{range .Service.Labels}}", "{{.Service}}", "{{end}}", repeat=1))
    return out
