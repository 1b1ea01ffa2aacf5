"""Errors of trust: one exception per cause, each with the gRPC code that peers see and the text that users know.

(swarmkit: ca/certificates.go, ca/config.go, ca/keyreadwriter.go, manager/controlapi/ca_rotation.go)
"""

from __future__ import annotations

UNKNOWN = 2
INVALID_ARGUMENT = 3
FAILED_PRECONDITION = 9
UNAUTHENTICATED = 16


class CertsError(Exception):
    """An operating error of this package. ``code`` is a gRPC status code; the text carries no secret."""

    code: int = UNKNOWN

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidCertificate(CertsError):
    """Bytes that are no certificate, or one without the names that a node certificate needs."""


class InvalidKey(CertsError):
    """Bytes that are no private key, or one of a kind or size that is not supported."""

    def __init__(self, message: str = "malformed private key") -> None:
        super().__init__(message)


class InvalidCsr(CertsError):
    """A certificate request that cannot be read or is not signed by its own key."""

    def __init__(self, message: str = "unable to parse certificate request") -> None:
        super().__init__(message)
