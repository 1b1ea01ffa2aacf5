"""Keys and requests made once and used by every seed: real certificates, without the cost and chance of making keys."""

from __future__ import annotations

from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.root import RootCA
from swarm.node.bootstrap import NewKey
from tests.sim.kernel import Kernel

EPOCH = 1_750_000_000.0


@cache
def new_key(number: int) -> NewKey:
    """Key ``number`` with its request, always the same."""
    key = ec.derive_private_key(1_000 + number, ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    return NewKey(key, request.public_bytes(serialization.Encoding.PEM))


@cache
def root() -> RootCA:
    """The authority of every simulated cluster."""
    return RootCA.create(EPOCH, ec.derive_private_key(7, ec.SECP256R1()), deterministic=True)


class Requests:
    """Requests with a new key each."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._used = 0

    def new(self) -> NewKey:
        """The next one."""
        self._used += 1
        return new_key(self._used)
