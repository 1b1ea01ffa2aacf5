"""Private keys, certificate requests (CSRs) and PEM; the identity that a certificate names.

A node's key is ECDSA on P-256, kept as PKCS#8. Its CSR has an empty subject, because only the public key in it counts:
the certificate authority chooses the names. This module reads and writes PEM blocks itself, because OpenSSL refuses the
extra headers that SwarmKit puts into key files.

(swarmkit: ca/certificates.go, GenerateNewCSR; ca/pkcs8; ca/auth.go)
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from certs.errors import InvalidCertificate, InvalidCsr, InvalidKey

MANAGER_ROLE = "swarm-manager"
WORKER_ROLE = "swarm-worker"
CA_ROLE = "swarm-ca"

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n")
_END = re.compile(rb"-----END ([A-Z0-9 ]+)-----\r?\n?")
_PEM_LINE_CHARS = 64


@dataclass(frozen=True)
class Identity:
    """The identity that a node certificate names: node ID (CN), role (OU) and cluster ID (O)."""

    node_id: str
    role: str
    org: str


@dataclass(frozen=True)
class PemBlock:
    """One PEM block: label, headers in their order, and the bytes inside."""

    label: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def encode(self) -> bytes:
        """The block as text, headers first and sorted by name as Go writes them."""
        lines = [f"-----BEGIN {self.label}-----"]
        if self.headers:
            lines += [f"{name}: {self.headers[name]}" for name in sorted(self.headers)]
            lines.append("")
        text = base64.b64encode(self.body).decode()
        lines += [text[start : start + _PEM_LINE_CHARS] for start in range(0, len(text), _PEM_LINE_CHARS)]
        lines += [f"-----END {self.label}-----", ""]
        return "\n".join(lines).encode()


def pem_blocks(data: bytes) -> list[PemBlock]:
    """All well-formed PEM blocks in ``data``; text around them and malformed blocks are skipped.

    A block begins at the last BEGIN before its END, so each byte is read only once, whatever the input.
    """
    blocks = []
    start = 0
    for end in _END.finditer(data):
        begin = _BEGIN.match(data, max(data.rfind(b"-----BEGIN ", start, end.start()), start), end.start())
        start = end.end()
        if begin is None or begin[1] != end[1]:
            continue
        headers: dict[str, str] = {}
        encoded = []
        for line in data[begin.end() : end.start()].split(b"\n"):
            name, colon, value = line.partition(b":")
            if colon:
                headers[name.decode(errors="replace").strip()] = value.decode(errors="replace").strip()
            else:
                encoded.append(line.strip())
        try:
            body = base64.b64decode(b"".join(encoded), validate=True)
        except binascii.Error:
            continue
        blocks.append(PemBlock(begin[1].decode(), body, headers))
    return blocks


def normalize_pem(data: bytes) -> bytes:
    """The same blocks with uniform white space and without headers, for comparison and storage."""
    return b"".join(PemBlock(block.label, block.body).encode() for block in pem_blocks(data))


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: PrivateKey) -> bytes:
    """PKCS#8 in PEM, as node keys are kept."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def root_key_pem(key: PrivateKey) -> bytes:
    """The traditional form (EC PRIVATE KEY, RSA PRIVATE KEY), as root keys are kept in the store."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def load_private_key(pem: bytes) -> PrivateKey:
    """Read an unencrypted private key; PEM headers are ignored. Raises InvalidKey."""
    for block in pem_blocks(pem):
        if not block.label.endswith("PRIVATE KEY"):
            continue
        try:
            key = serialization.load_der_private_key(block.body, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            break
        if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            return key
        break
    raise InvalidKey


def public_key_der(certificate: x509.Certificate) -> bytes:
    """SubjectPublicKeyInfo of a certificate in DER."""
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_fingerprint(signed: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of a certificate or CSR (RFC 5280, 4.1.2.7): it names the key."""
    info = signed.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(info).digest()


def new_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request in PEM with an empty subject, signed by ``key``."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def load_csr(pem: bytes) -> x509.CertificateSigningRequest:
    """Read a request and check that its own key signed it. Raises InvalidCsr."""
    try:
        csr = x509.load_pem_x509_csr(pem)
        valid = csr.is_signature_valid
        csr.public_key()
    except _UNREADABLE as error:
        raise InvalidCsr from error
    if not valid:
        raise InvalidCsr("certificate request is not signed by its own key")
    return csr


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a bundle, in order; an empty list if there are none. Raises InvalidCertificate."""
    return [load_certificate(block.body) for block in pem_blocks(pem) if block.label == "CERTIFICATE"]


def load_certificate(der: bytes) -> x509.Certificate:
    """A certificate whose parts can all be read. Raises InvalidCertificate.

    The library parses most parts only on access, and may raise any exception then. So all are read here.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        for part in ("subject", "issuer", "extensions", "not_valid_before_utc", "not_valid_after_utc"):
            getattr(certificate, part)
        certificate.public_key()
    except _UNREADABLE as error:
        raise InvalidCertificate("malformed certificate") from error
    return certificate


_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def certificates_pem(certificates: list[x509.Certificate]) -> bytes:
    """A bundle in PEM."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def identity_of(certificate: x509.Certificate | bytes) -> Identity:
    """Node ID, role and cluster ID of a node certificate, given parsed, as PEM (its first block) or as DER.

    Raises InvalidCertificate when it cannot be read or does not have exactly one of each name.
    """
    if isinstance(certificate, bytes):
        certificate = load_leaf(certificate)
    names = []
    for oid, what in _NAMES:
        values = certificate.subject.get_attributes_for_oid(oid)
        if len(values) != 1:
            raise InvalidCertificate(f"certificate has {len(values)} values for its {what}, expecting one")
        names.append(str(values[0].value))
    return Identity(*names)


_NAMES = (
    (NameOID.COMMON_NAME, "node ID (CN)"),
    (NameOID.ORGANIZATIONAL_UNIT_NAME, "role (OU)"),
    (NameOID.ORGANIZATION_NAME, "organization (O)"),
)


def load_leaf(data: bytes) -> x509.Certificate:
    """The first certificate of a PEM bundle, or the one in DER. Raises InvalidCertificate."""
    if data.startswith(b"\x30"):
        return load_certificate(data)
    certificates = load_certificates(data)
    if not certificates:
        raise InvalidCertificate("no certificate found")
    return certificates[0]
