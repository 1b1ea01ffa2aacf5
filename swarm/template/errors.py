"""The error of an invalid template, and how it quotes what users wrote."""

from __future__ import annotations

from swarm import gotext

_SHOWN_CHARS_MAX = 1_000


class TemplateError(Exception):
    """A template that cannot be parsed or executed; the text is Go's."""


def shortened(text: str) -> str:
    """A text for an error: the beginning of a very long one."""
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."


def quoted(text: str) -> str:
    """A text in Go's quotes, shortened first."""
    return gotext.quote(shortened(text))
