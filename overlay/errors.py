"""What can go wrong with the networks of a node."""

from __future__ import annotations


class OverlayError(Exception):
    """A network can not be made what it should be; the text says why."""
