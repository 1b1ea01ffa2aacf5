"""What the clients of a listener may ask for: a policy sees the head of every request before anything is forwarded.

A policy sees heads only. What follows a head with ``upgrade`` is a stream of bytes between client and engine that
nobody looks into, so a policy that restricts its clients has to refuse such heads.
"""

from __future__ import annotations

from typing import Protocol

from engine_api.front.http1 import Head


class Refused(Exception):
    """The policy does not allow a request. status: the HTTP status of the answer; the text is for the user."""

    def __init__(self, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.status = status


class Policy(Protocol):
    """Decides about requests. It is shared by all connections of a listener and must not wait."""

    def check(self, head: Head) -> None:
        """Raises Refused when this request may not be made."""
        ...


class FullAccess:
    """Everything is allowed: whoever may connect is root on this host, as with dockerd."""

    def check(self, head: Head) -> None:
        """See Policy."""
