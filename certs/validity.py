"""Whether a certificate is valid now, and the error texts for wrong clocks and certificates.

A node that was off while its certificate expired may come back. For a limited time, its old certificate may still be
used for one purpose: to get a new one. This window is as long as the certificate's lifetime, up to a maximum, because
users choose short lifetimes so that lost keys soon become useless. Everything but the time of such a certificate must
be valid, and its key must be one that the managers have on record (swarm/manager/node_keys.py).

The texts begin like Go's, name both clocks where both are known, and say how far apart they are.

(swarmkit: ca/certificates.go ValidateCertChain, which never accepts an expired certificate from a remote caller)
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from certs.errors import CertsError, InvalidCertificate
from certs.keys import identity_of, load_certificate, load_certificates
from certs.root import verify_chain

EXPIRED = "x509: certificate has expired or is not yet valid"
SUPERSEDED = "the certificate is superseded"
REPORTED_SKEW_MIN_S = 60.0


@dataclass(frozen=True)
class Validity:
    """error: why a certificate is not valid now; empty when it is. renewable: it may be renewed nevertheless."""

    error: str = ""
    renewable: bool = False


def validity_of(chain_der: Sequence[bytes], context: ssl.SSLContext, now: float, window_max_s: float) -> Validity:
    """The validity of a client's chain (leaf first) that ``context`` has verified except for its times.

    now: this side's clock, seconds since the epoch. window_max_s: the longest time after its end, in seconds, in which
    a certificate may be renewed.
    """
    try:
        chain = [load_certificate(der) for der in chain_der]
        roots = [load_certificate(der) for der in context.get_ca_certs(binary_form=True)]
    except InvalidCertificate as error:
        return Validity(str(error))
    at = datetime.fromtimestamp(now, UTC)
    if all(it.not_valid_before_utc <= at <= it.not_valid_after_utc for it in (*chain, *roots)):
        return Validity()
    leaf = chain[0]
    late_s = now - leaf.not_valid_after_utc.timestamp()
    early_s = leaf.not_valid_before_utc.timestamp() - now
    clock = f"this manager's clock ({_shown(now)})"
    if early_s > 0:
        since = _shown(leaf.not_valid_before_utc.timestamp())
        return Validity(
            f"{EXPIRED}: the certificate of {_owner(leaf)} is valid from {since}, but that is "
            f"{format_duration(early_s)} ahead of {clock}: the clocks of the managers differ"
        )
    window_s = min(window_max_s, (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds())
    expired = ""
    if late_s > 0:
        end = _shown(leaf.not_valid_after_utc.timestamp())
        expired = (
            f"{EXPIRED}: the certificate of {_owner(leaf)} expired at {end}, {format_duration(late_s)} before {clock}"
        )
        if late_s > window_s:
            return Validity(
                f"{expired}, and it could only be renewed within {format_duration(window_s)} after that: "
                "unless one of the clocks is wrong, that node must leave the swarm and join again"
            )
    try:
        verify_chain(chain, roots, now, allow_expired=bool(expired))
    except CertsError as error:
        return Validity(str(error))
    return Validity(f"{expired}: it can only be renewed", renewable=True) if expired else Validity()


def own_certificate_error(certificate_pem: bytes, now: float) -> str:
    """Why a node's own certificate is not valid now by the node's own clock; empty when it is valid."""
    leaf = load_certificates(certificate_pem)[0]
    start, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if now > end:
        return (
            f"{EXPIRED}: this node's certificate expired at {_shown(end)}, {format_duration(now - end)} before "
            f"this node's clock ({_shown(now)}), and has not been renewed"
        )
    if now < start:
        return (
            f"{EXPIRED}: this node's certificate is valid from {_shown(start)}, but that is "
            f"{format_duration(start - now)} ahead of this node's clock ({_shown(now)})"
        )
    return ""


def clock_difference(own_s: float, other_s: float, other: str) -> str:
    """How far this node's clock is from that of ``other`` (both in seconds since the epoch); empty when they agree."""
    ahead_s = other_s - own_s
    if abs(ahead_s) < REPORTED_SKEW_MIN_S:
        return ""
    return (
        f"the clocks differ: this node's says {_shown(own_s)}, that of {other} says {_shown(other_s)}, "
        f"{format_duration(abs(ahead_s))} {'ahead' if ahead_s > 0 else 'behind'}"
    )


def format_duration(seconds: float) -> str:
    """A duration for people, in its two largest units: ``3d4h``, ``2h5m``, ``1m10s``, ``0s``."""
    left, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, size)
        if amount:
            parts.append(f"{amount}{unit}")
        if parts and (len(parts) == 2 or not amount):
            break
    return "".join(parts) or "0s"


def _owner(leaf: x509.Certificate) -> str:
    try:
        return f"node {identity_of(leaf).node_id}"
    except CertsError:
        return "the caller"


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
