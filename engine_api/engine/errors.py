"""Errors between this daemon and the engine: the engine refused, or it could not be reached."""

from __future__ import annotations


class EngineError(Exception):
    """The engine answered with an error. ``status`` is the HTTP status, ``message`` the engine's text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class EngineUnavailable(Exception):
    """The engine did not answer: not running, restarting, too old, or too slow. Trying again later may work.

    refused: no process listens at its address, so it certainly does not run.
    """

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
