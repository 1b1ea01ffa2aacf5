"""swarm.grpc.peer and the metadata that carries a forwarded peer: what a certificate proves about its owner."""

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs.errors import InvalidCertificate
from certs.keys import load_leaf, new_csr, new_private_key
from certs.root import RootCA
from swarm.grpc.authorize import forwarded_peer, forwarding_metadata
from swarm.grpc.peer import peer_of
from swarm.rpc import Peer

_NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC).timestamp()


def _certificate() -> bytes:
    csr = new_csr(new_private_key())
    return RootCA.create(_NOW).sign(csr, "node", "swarm-worker", "cluster", _NOW, 86_400.0)


def test_the_peer_of_a_certificate_has_its_names_its_key_and_its_beginning() -> None:
    certificate = _certificate()
    peer = peer_of(certificate, "10.0.0.1:40000")
    assert (peer.node_id, peer.role, peer.org, peer.addr) == ("node", "swarm-worker", "cluster", "10.0.0.1:40000")
    assert peer.not_before == load_leaf(certificate).not_valid_before_utc.timestamp() > 0
    assert len(peer.key) == 32
    assert peer.key != peer_of(_certificate()).key
    assert peer == peer_of(load_leaf(certificate).public_bytes(Encoding.DER), peer.addr)


def test_bytes_that_are_no_certificate_prove_nobody() -> None:
    with pytest.raises(InvalidCertificate):
        peer_of(b"no certificate")


def test_a_forwarded_peer_keeps_its_key_and_its_beginning() -> None:
    peer = peer_of(_certificate(), "10.0.0.1:40000")
    metadata: dict[str, tuple[str, ...]] = {name: (value,) for name, value in forwarding_metadata(peer)}
    found = forwarded_peer(metadata, Peer(node_id="follower"))
    assert (found.key, found.not_before, found.forwarder) == (peer.key, peer.not_before, "follower")


@pytest.mark.parametrize(("key", "not_before"), [("zz", "-1"), ("0", "1e3"), ("", "٣"), ("0g", "9" * 40)])
def test_absurd_metadata_of_a_forwarder_says_nothing_of_the_key(key: str, not_before: str) -> None:
    metadata = {"sideswarm_cert_key": (key,), "sideswarm_cert_not_before": (not_before,)}
    found = forwarded_peer(metadata, Peer(node_id="follower"))
    assert (found.key, found.not_before) == (b"", 0.0)
