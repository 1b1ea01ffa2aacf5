"""TLS contexts of a node, and the verification of a server's certificate chain as Go does it.

Servers ask for a client certificate and verify it if the client has one, because one port serves both joining nodes
(which have none yet) and members. Clients do not let OpenSSL verify: during a root rotation a peer presents a root that
is cross-signed by the old one. Its issuer and subject are equal, so OpenSSL takes it for the end of the chain. Instead,
clients call verify_chain with the presented chain before they send the first byte. Neither side insists on ALPN,
because stock peers stop offering and selecting "h2" after their first certificate renewal.

New credentials get a new context; a context never changes. Servers look up the current one for each connection.

(swarmkit: ca/transport.go, ca/config.go)
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.errors import CertsError, InvalidCertificate, InvalidKey
from certs.keys import identity_of, load_certificate, load_certificates

CHAIN_CERTIFICATES_MAX = 10
HTTP2 = "h2"
TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # the list of newer stock managers; older ones prefer these too
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; Python does not define it


class UntrustedCertificate(CertsError):
    """The peer's certificate chain does not lead to a trusted root, has expired, or names somebody else."""


class OutsideValidity(UntrustedCertificate):
    """The peer's certificate has expired or is not valid yet, or a clock is wrong."""


@dataclass(frozen=True)
class Credentials:
    """A node's certificate (leaf, then intermediates) and its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True)
class ClientTls:
    """How to connect to a manager. roots_pem None skips verification: use it only to fetch the root certificate.

    node_id: the only node that may answer; empty: any node may.
    """

    server_name: str
    roots_pem: bytes | None
    credentials: Credentials | None = None
    node_id: str = ""


def server_context(
    credentials: Credentials, roots_pem: bytes | None, alpn: Sequence[str] = (HTTP2,), *, require_client: bool = False
) -> ssl.SSLContext:
    """A context for servers that verifies a client certificate if there is one, or requires one.

    roots_pem holds all roots that are trusted now (both of them during a rotation). None: do not ask for a certificate.
    Raises InvalidKey, UntrustedCertificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context, alpn)
    _load(context, credentials)
    context.num_tickets = 0
    if roots_pem is None:
        assert not require_client, "a required client certificate needs roots to verify it"
        return context
    _trust(context, roots_pem)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    return context


def member_context(credentials: Credentials, roots_pem: bytes) -> ssl.SSLContext:
    """A server_context that ignores validity periods; the caller checks them (certs/validity.py).

    OpenSSL would refuse an expired certificate with an alert that says little, and with it a node that only wants to
    renew it.
    """
    context = server_context(credentials, roots_pem)
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
    return context


def client_context(tls: ClientTls, alpn: Sequence[str] = (HTTP2,)) -> ssl.SSLContext:
    """A context for clients that presents the credentials, if any, but verifies nothing: call verify_chain.

    Raises InvalidKey.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context, alpn)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls.credentials is not None:
        _load(context, tls.credentials)
    return context


def https_context(roots_pem: bytes, credentials: Credentials) -> ssl.SSLContext:
    """A context for HTTPS clients that present ``credentials``; OpenSSL verifies chain and host name.

    Raises InvalidKey, UntrustedCertificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context, ("http/1.1",))
    _load(context, credentials)
    _trust(context, roots_pem)
    return context


def _harden(context: ssl.SSLContext, alpn: Sequence[str]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_1_2_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    if alpn:
        context.set_alpn_protocols(list(alpn))


def _trust(context: ssl.SSLContext, roots_pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=roots_pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise UntrustedCertificate("malformed root certificates") from error
    # the user's root may be signed by another root, which need not be known here
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """OpenSSL reads keys only from files: give it one that lives in memory and vanishes when closed."""
    descriptor = _anonymous_file()
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(credentials.key_pem.rstrip() + b"\n" + credentials.certificate_pem)
        # The callback keeps OpenSSL from asking for a pass phrase on a terminal.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise InvalidKey(
            f"certificate and key cannot be used: {getattr(error, 'reason', None) or 'malformed'}"
        ) from None
    finally:
        os.close(descriptor)


def _anonymous_file() -> int:
    try:
        return os.memfd_create("credentials", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # kernels and sandboxes without memfd
        descriptor, path = tempfile.mkstemp()  # mode 0600
        os.unlink(path)
        return descriptor


def verify_chain(chain_der: Sequence[bytes], roots_pem: bytes, server_name: str, now: float) -> None:
    """Check that a chain (leaf first) is valid for a server of that name at ``now`` (seconds since the epoch).

    All paths from the leaf through presented intermediates to a root are tried, so neither the order of the chain nor
    roots with equal names matter. Raises UntrustedCertificate.
    """
    if not chain_der:
        raise UntrustedCertificate("tls: server presented no certificate")
    if len(chain_der) > CHAIN_CERTIFICATES_MAX:
        raise UntrustedCertificate(f"x509: chain of {len(chain_der)} certificates is too long")
    try:
        chain = [load_certificate(der) for der in chain_der]
        roots = load_certificates(roots_pem)
        at = datetime.fromtimestamp(now, UTC)
        leaf, pool = chain[0], chain[1:]
        _check_time(leaf, at)
        _check_usage(leaf)
        _check_name(leaf, server_name)
        if not _reaches_root(leaf, pool, roots, at):
            raise UntrustedCertificate("x509: certificate signed by unknown authority")
    except (InvalidCertificate, ValueError) as error:
        raise UntrustedCertificate("x509: malformed certificate") from error


def verify_node(chain_der: Sequence[bytes], node_id: str) -> None:
    """Check that an already verified chain belongs to this node. Raises UntrustedCertificate."""
    try:
        found = identity_of(chain_der[0]).node_id
    except InvalidCertificate as error:
        raise UntrustedCertificate(f"x509: {error}") from error
    if found != node_id:
        raise UntrustedCertificate(f"x509: certificate is of node {found}, not {node_id}")


def _reaches_root(
    leaf: x509.Certificate, intermediates: list[x509.Certificate], roots: list[x509.Certificate], at: datetime
) -> bool:
    """Search from the leaf up. Each intermediate is visited once, even if they sign each other in circles."""
    pool = list(intermediates)
    frontier = [leaf]
    while frontier:
        certificate = frontier.pop()
        if any(_issued(root, certificate) and _valid_at(root, at) for root in roots):
            return True
        issuers = [it for it in pool if _issued(it, certificate) and _is_ca(it) and _valid_at(it, at)]
        pool = [it for it in pool if it not in issuers]
        frontier += issuers
    return False


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        return missing.oid == x509.KeyUsage.oid  # no KeyUsage: every use is allowed; no BasicConstraints: not a CA


def _valid_at(certificate: x509.Certificate, at: datetime) -> bool:
    return certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc


def _check_time(certificate: x509.Certificate, at: datetime) -> None:
    if _valid_at(certificate, at):
        return
    before = at < certificate.not_valid_before_utc
    bound = certificate.not_valid_before_utc if before else certificate.not_valid_after_utc
    raise OutsideValidity(
        f"x509: certificate has expired or is not yet valid: current time {_rfc3339(at)} is "
        f"{'before' if before else 'after'} {_rfc3339(bound)}"
    )


def _rfc3339(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_usage(leaf: x509.Certificate) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usage:
        raise UntrustedCertificate("x509: certificate specifies an incompatible key usage")


def _check_name(leaf: x509.Certificate, server_name: str) -> None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise UntrustedCertificate(
            f"x509: certificate is not valid for any names, but wanted to match {server_name}"
        ) from None
    known = names.get_values_for_type(x509.DNSName)
    if server_name.lower() not in (name.lower() for name in known):
        raise UntrustedCertificate(f"x509: certificate is valid for {', '.join(known)}, not {server_name}")
