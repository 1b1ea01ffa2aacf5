"""Errors of the Engine API: an HTTP status and the text users know (moby: errdefs)."""

from __future__ import annotations


class ApiError(Exception):
    """Answered as ``{"message": ...}`` with this HTTP status."""

    status = 500

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status


class BadParameter(ApiError):
    """400: the request itself is wrong."""

    status = 400


class Unauthorized(ApiError):
    """401: the unlock key is wrong."""

    status = 401


class Forbidden(ApiError):
    """403."""

    status = 403


class ObjectNotFound(ApiError):
    """404."""

    status = 404


class Conflict(ApiError):
    """409."""

    status = 409


class NotAvailableYet(ApiError):
    """501: stock engines can do that and this version of sideswarm cannot; the text says what to do instead."""

    status = 501


class ServiceUnavailable(ApiError):
    """503: this node cannot do that in its current state (not a manager, already in a swarm, locked...)."""

    status = 503
