"""The error of an invalid template."""

from __future__ import annotations


class TemplateError(Exception):
    """A template that cannot be parsed or executed; the text is Go's."""
