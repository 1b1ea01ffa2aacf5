"""A certificate authority for tests, with every mistake that a peer could make."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, settings

from certs.tls import ClientTls, Credentials

CLUSTER_ID = "cluster1"

# no deadlines, as machines may be busy; the same examples every time, unless the profile is "search"
settings.register_profile("sideswarm", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "sideswarm"))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """A root named swarm-ca, as SwarmKit makes it."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.now = datetime.now(UTC)
        self.certificate = self._certify(self, self.key, authority_key=False)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def name(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca")])

    def _certify(
        self, subject: Authority, key: ec.EllipticCurvePrivateKey, *, authority_key: bool, ca: bool = True
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject.name)
            .issuer_name(self.name)
            .public_key(subject.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(minutes=5))
            .not_valid_after(self.now + timedelta(days=7300))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject.key.public_key()), critical=False)
        )
        return builder.sign(key, hashes.SHA256())

    def cross_sign(self, other: Authority, *, ca: bool = True) -> bytes:
        """The other root, signed by this one: issuer and subject look the same, as in a root rotation."""
        certificate = self._certify(other, self.key, authority_key=False, ca=ca)
        return certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        node_id: str = "node1",
        role: str = "swarm-manager",
        org: str = CLUSTER_ID,
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        usage: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
        intermediates: bytes = b"",
    ) -> Credentials:
        """A node certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, org),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
        ]
        hosts = [role, node_id] + (["swarm-ca"] if role == "swarm-manager" else [])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(names))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or self.now - timedelta(hours=1))
            .not_valid_after(not_after or self.now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Credentials(certificate.public_bytes(serialization.Encoding.PEM) + intermediates, _pem(key))

    def client(self, credentials: Credentials | None = None, server_name: str = "swarm-manager") -> ClientTls:
        """How a node that trusts this root connects."""
        return ClientTls(server_name, self.pem, credentials)


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The cluster's root."""
    return Authority()


@pytest.fixture(scope="session")
def other_authority() -> Authority:
    """A root of the same name that is not the cluster's (yet)."""
    return Authority()
