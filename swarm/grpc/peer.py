"""The peer that a node certificate proves."""

from __future__ import annotations

from certs.keys import identity_of, key_fingerprint, load_leaf
from certs.validity import Validity
from swarm.rpc import Peer

_VALID = Validity()


def peer_of(certificate: bytes, addr: str = "", *, local: bool = False, validity: Validity = _VALID) -> Peer:
    """The owner of a node certificate (DER, or a PEM bundle whose first certificate counts).

    addr, local: see Peer. validity: what was found about its times. Raises InvalidCertificate.
    """
    leaf = load_leaf(certificate)
    identity = identity_of(leaf)
    return Peer(
        identity.node_id,
        identity.role,
        identity.org,
        addr,
        local=local,
        certificate_error=validity.error,
        renewable=validity.renewable,
        key=key_fingerprint(leaf),
        not_before=leaf.not_valid_before_utc.timestamp(),
    )
