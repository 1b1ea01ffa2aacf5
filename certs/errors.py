"""Errors of this package: one exception per cause, each with the gRPC code that peers see and a text for users.

(swarmkit: ca/certificates.go, ca/config.go, ca/keyreadwriter.go, manager/controlapi/ca_rotation.go)
"""

from __future__ import annotations

UNKNOWN = 2
INVALID_ARGUMENT = 3
FAILED_PRECONDITION = 9
UNAUTHENTICATED = 16


class CertsError(Exception):
    """An operating error of this package. ``code`` is a gRPC status code; the text contains no secret."""

    code: int = UNKNOWN

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


# --- what cannot be read -------------------------------------------------------------------------------------------


class InvalidCertificate(CertsError):
    """Bytes that are not a certificate, or a certificate without the names that a node certificate needs."""


class InvalidKey(CertsError):
    """Bytes that are not a private key, or a key of an unsupported type or size."""

    code = INVALID_ARGUMENT

    def __init__(self, message: str = "malformed private key") -> None:
        super().__init__(message)


class InvalidCsr(CertsError):
    """A certificate request that cannot be read or is not signed by its own key."""

    code = INVALID_ARGUMENT

    def __init__(self, message: str = "unable to parse certificate request") -> None:
        super().__init__(message)


class InvalidJoinToken(CertsError):
    """A join token in an unknown format."""

    def __init__(self) -> None:
        super().__init__("invalid join token")


class InvalidUnlockKeyText(CertsError):
    """An unlock key, as typed by a user, in an unknown format."""

    code = INVALID_ARGUMENT

    def __init__(self) -> None:
        super().__init__("invalid key string")


# --- what cannot be trusted ----------------------------------------------------------------------------------------


class UntrustedChain(CertsError):
    """A certificate chain that does not lead to a trusted root, or that has a broken link."""


class UnknownAuthority(UntrustedChain):
    """No trusted root signed the chain. During a root rotation, its root may simply be newer than ours."""

    def __init__(self) -> None:
        super().__init__("x509: certificate signed by unknown authority")


class CertificateExpired(UntrustedChain):
    """A certificate of the chain is outside its validity period."""


class FingerprintMismatch(CertsError):
    """A manager sent a different root certificate from the one that the join token names."""

    def __init__(self, expected_digest: str) -> None:
        super().__init__(f"remote CA does not match fingerprint. Expected: {expected_digest}")


class FipsRequired(CertsError):
    """The cluster accepts only nodes in FIPS mode, and this node is not in it."""

    code = FAILED_PRECONDITION

    def __init__(self) -> None:
        super().__init__("node is not FIPS-enabled but cluster requires FIPS")


# --- certificate authorities ---------------------------------------------------------------------------------------


class InvalidRoot(CertsError):
    """A root certificate, signing key or intermediate that cannot serve a cluster."""

    code = INVALID_ARGUMENT


class NoSigningKey(CertsError):
    """This process has the root certificate without its key, so it cannot sign."""

    def __init__(self) -> None:
        super().__init__("no valid signer found")


class ExternalUnusable(CertsError):
    """An external authority could not be reached, or gave no sensible answer. It may do so later."""


class ExternalRefused(CertsError):
    """An external authority read the request and refused it, or signed something other than what was requested."""


# --- key files -----------------------------------------------------------------------------------------------------


class InvalidUnlockKey(CertsError):
    """The key file cannot be opened with this unlock key."""

    code = UNAUTHENTICATED

    def __init__(self) -> None:
        super().__init__("swarm could not be unlocked: invalid key provided")


class StoredKeyDamaged(CertsError):
    """Key or certificate files whose content is damaged or contradictory."""
