"""What can go wrong between this daemon and the engine: it refused, or it could not be asked."""

from __future__ import annotations


class EngineError(Exception):
    """The engine answered with an error. ``status`` is HTTP's, ``message`` the engine's own text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class EngineUnavailable(Exception):
    """The engine did not answer: not running, restarting, too old, or too slow. Trying again later may work.

    refused: nobody listens at its address, so it certainly does not run.
    """

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
