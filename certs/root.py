"""The certificate authority of a cluster: trusted roots, signing, cross-signing, and verification of chains.

Theory of operation. Nodes trust a *bundle* of root certificates. A cluster signs with the first certificate of the
bundle, except during a root rotation: then it signs with the new root's key, and appends an *intermediate* (the new
root, signed by the old key) to each node certificate, so that nodes that know only the old root accept it:

    before     bundle [root 1]   signs with key 1   issues [leaf by 1]
    during     bundle [root 1]   signs with key 2   issues [leaf by 2][root 2 signed by 1]
    after      bundle [root 2]   signs with key 2   issues [leaf by 2]

The old and the new root have the same subject (CN=swarm-ca), so an intermediate names itself as its issuer. OpenSSL
takes such a certificate for self-signed unless it has the key identifier of its signer. Ours have one, SwarmKit's do
not. verify_chain does not need it: it follows signatures.

(swarmkit: ca/certificates.go)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from certs.errors import (
    CertificateExpired,
    InvalidCertificate,
    InvalidCsr,
    InvalidKey,
    InvalidRoot,
    NoSigningKey,
    UnknownAuthority,
    UntrustedChain,
)
from certs.keys import (
    CA_ROLE,
    MANAGER_ROLE,
    PrivateKey,
    load_certificates,
    load_csr,
    load_private_key,
    new_private_key,
    normalize_pem,
    public_key_der,
    root_key_pem,
)
from certs.tokens import root_digest

ROOT_NAME = "swarm-ca"
ROOT_EXPIRY_S = 630_720_000
ROOT_BACKDATE_S = 5 * 60
NODE_EXPIRY_S = 90 * 24 * 3600.0
NODE_EXPIRY_MIN_S = 3600.0
NODE_BACKDATE_S = 3600
DESIRED_ROOT_LIFE_MIN_S = 365 * 24 * 3600.0
RSA_KEY_BITS_MIN = 2048

_MINUTE_S = 60
_END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # the last moment that X.509 can express
_SERIAL_BYTES = 19
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_HASH_OF_CURVE: dict[str, _Hash] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_SIGNATURES = (
    SignatureAlgorithmOID.RSA_WITH_SHA256,
    SignatureAlgorithmOID.RSA_WITH_SHA384,
    SignatureAlgorithmOID.RSA_WITH_SHA512,
    SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    SignatureAlgorithmOID.ECDSA_WITH_SHA512,
)
_WEAK_SIGNATURES = {
    SignatureAlgorithmOID.RSA_WITH_MD5: "MD5-RSA",
    SignatureAlgorithmOID.RSA_WITH_SHA1: "SHA1-RSA",
    SignatureAlgorithmOID.ECDSA_WITH_SHA1: "ECDSA-SHA1",
    SignatureAlgorithmOID.RSASSA_PSS: "SHA256-RSAPSS",
    SignatureAlgorithmOID.ED25519: "Ed25519",
}

_E = TypeVar("_E", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Issuer:
    """The signer of a certificate: subject and SubjectPublicKeyInfo in DER, as nodes report them (NodeTLSInfo)."""

    subject_der: bytes
    public_key_der: bytes

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Issuer:
        """``certificate`` as the issuer of the certificates that its key signs."""
        return cls(certificate.subject.public_bytes(), public_key_der(certificate))


class RootCA:
    """A bundle of trusted roots, with the signing key if this process may sign.

    bundle_pem is kept byte for byte, because join tokens name its SHA-256. ``deterministic`` makes signatures and
    serial numbers a function of their inputs, for simulation. Raises InvalidRoot or InvalidKey with SwarmKit's texts.
    Validity periods are not checked here; see desired_root and verify.
    """

    def __init__(
        self, bundle_pem: bytes, key_pem: bytes | None, intermediates_pem: bytes = b"", deterministic: bool = False
    ) -> None:
        self.bundle_pem = bundle_pem
        self.key_pem = key_pem or None
        self.intermediates_pem = intermediates_pem
        self.digest = root_digest(bundle_pem)
        self._deterministic = deterministic
        self.roots = _load_roots(bundle_pem)
        intermediates = _load_intermediates(intermediates_pem, self.roots)
        self._signer = intermediates[0] if intermediates else self.roots[0]
        self._key = _matching_key(self.key_pem, self._signer) if self.key_pem else None

    @classmethod
    def create(cls, now: float, key: ec.EllipticCurvePrivateKey | None = None, deterministic: bool = False) -> RootCA:
        """A new authority with a self-signed root that is valid for 20 years. Without ``key`` a new key is made."""
        key = key or new_private_key()
        name = _name((NameOID.COMMON_NAME, ROOT_NAME))
        start = _minute(now) - timedelta(seconds=ROOT_BACKDATE_S)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(_serial(deterministic, name, key.public_key(), start))
            .not_valid_before(start)
            .not_valid_after(start + timedelta(seconds=ROOT_EXPIRY_S))
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(_sign(builder, key, deterministic), root_key_pem(key), deterministic=deterministic)

    def __repr__(self) -> str:
        return f"RootCA(digest={self.digest}, signs={self.can_sign})"

    @property
    def can_sign(self) -> bool:
        """Whether this process has the signing key."""
        return self._key is not None

    @property
    def issuer(self) -> Issuer:
        """The issuer of the certificates that are signed here."""
        return Issuer.of(self._signer)

    def sign(
        self, csr_pem: bytes, node_id: str, role: str, org: str, now: float, expiry_s: float, after: float = 0.0
    ) -> bytes:
        """A node certificate in PEM, intermediates appended. Only the public key of the request is used.

        It is valid from one hour ago until ``expiry_s`` seconds from now; below one hour, the default of 90 days
        applies. after: it begins later than this (seconds since the epoch). If that would be after now, the clock of
        who signed before was ahead, and this one begins as if there were none before. None ever begins after now.
        Raises InvalidCsr, NoSigningKey.
        """
        if self._key is None:
            raise NoSigningKey
        csr = load_csr(csr_pem)
        try:
            builder = self._leaf(csr.public_key(), node_id, role, org, now, expiry_s, after)
            return _sign(builder, self._key, self._deterministic) + self.intermediates_pem
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidCsr(f"failed to sign node certificate: {error}") from error

    def _leaf(
        self, public: Any, node_id: str, role: str, org: str, now: float, expiry_s: float, after: float
    ) -> x509.CertificateBuilder:
        subject = _name(
            (NameOID.ORGANIZATION_NAME, org), (NameOID.ORGANIZATIONAL_UNIT_NAME, role), (NameOID.COMMON_NAME, node_id)
        )
        expiry_s = expiry_s if expiry_s >= NODE_EXPIRY_MIN_S else NODE_EXPIRY_S
        start = _minute(now)
        begins = start - timedelta(seconds=NODE_BACKDATE_S)
        if begins.timestamp() <= after < int(now):
            begins = _moment(int(after) + 1)
        hosts = [role, node_id] + ([CA_ROLE] if role == MANAGER_ROLE else [])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._signer.subject)
            .public_key(public)
            .serial_number(_serial(self._deterministic, subject, public, start))
            .not_valid_before(begins)
            .not_valid_after(start + timedelta(seconds=min(expiry_s, (_END_OF_TIME - start).total_seconds())))
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_authority_key(self._signer), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        )

    def cross_sign(self, other_pem: bytes) -> bytes:
        """The first certificate of ``other_pem`` with the same names, key, validity and extensions, signed by our key.

        Raises NoSigningKey; InvalidRoot when it is not a CA certificate.
        """
        if self._key is None:
            raise NoSigningKey
        try:
            other = load_certificates(other_pem)[0]
        except (InvalidCertificate, IndexError) as error:
            raise InvalidRoot("could not parse new CA certificate") from error
        if not _is_authority(other):
            raise InvalidRoot("certificate not a CA")
        try:
            return self._cross_signed(other)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidRoot(f"could not cross-sign new CA certificate: {error}") from error

    def _cross_signed(self, other: x509.Certificate) -> bytes:
        assert self._key is not None
        builder = (
            x509.CertificateBuilder()
            .subject_name(other.subject)
            .issuer_name(self._signer.subject)
            .public_key(other.public_key())
            .serial_number(other.serial_number)
            .not_valid_before(other.not_valid_before_utc)
            .not_valid_after(other.not_valid_after_utc)
            .add_extension(_authority_key(self._signer), critical=False)
        )
        for extension in other.extensions:
            if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
                builder = builder.add_extension(extension.value, extension.critical)
        return _sign(builder, self._key, self._deterministic)

    def request(self) -> bytes:
        """A certificate request (PEM) with the first root's name, key and extensions, for another CA to sign.

        Raises NoSigningKey.
        """
        if self._key is None:
            raise NoSigningKey
        root = self.roots[0]
        builder = x509.CertificateSigningRequestBuilder().subject_name(root.subject)
        for extension in root.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            algorithm = _HASH_OF_CURVE[self._key.curve.name]
            request = builder.sign(self._key, algorithm, ecdsa_deterministic=True if self._deterministic else None)
        else:
            request = builder.sign(self._key, _rsa_hash(self._key.key_size))
        return request.public_bytes(serialization.Encoding.PEM)

    def verify(self, chain_pem: bytes, now: float, allow_expired: bool = False) -> Issuer:
        """Check a node's chain against this bundle; return the issuer of its first certificate. See verify_chain."""
        return Issuer.of(verify_chain(load_certificates(chain_pem), self.roots, now, allow_expired))


def desired_root(certificate_pem: bytes, key_pem: bytes, now: float, deterministic: bool = False) -> RootCA:
    """The authority that a user requests (one certificate, and its key or b""), checked as strictly as in SwarmKit.

    Raises InvalidRoot or InvalidKey with SwarmKit's texts.
    """
    root = RootCA(normalize_pem(certificate_pem), key_pem, deterministic=deterministic)
    if len(root.roots) != 1:
        raise InvalidRoot("the desired CA certificate cannot contain multiple certificates")
    certificate = root.roots[0]
    moment = _moment(now)
    if certificate.not_valid_before_utc > moment:
        raise InvalidRoot(f"error while validating Root CA Certificate: {_EXPIRED}")
    if certificate.not_valid_after_utc < moment + timedelta(seconds=DESIRED_ROOT_LIFE_MIN_S):
        raise InvalidRoot("CA certificate expires too soon")
    return root


_EXPIRED = "x509: certificate has expired or is not yet valid: "


def verify_chain(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: float | None, allow_expired: bool = False
) -> x509.Certificate:
    """Check that each certificate is signed by the next, and one of them by a root; return the issuer of the first.

    Every certificate must be valid at ``now`` (None: at any time). With ``allow_expired`` it is enough that all of
    them, including a root, were valid at one common moment. Raises CertificateExpired, UnknownAuthority,
    UntrustedChain.
    """
    if not chain:
        raise UntrustedChain("no certificates to validate")
    moment = _moment(now) if now is not None else None
    for number, certificate in enumerate(chain, 1):
        if moment is not None:
            _check_time(number, certificate, moment, allow_expired)
        if number > 1 and not _signed_by(chain[number - 2], certificate):
            raise UntrustedChain(
                f"certificates do not form a chain: ({number - 1} - {_common_name(chain[number - 2])}) "
                f"is not signed by ({number} - {_common_name(certificate)})"
            )
    if allow_expired and moment is not None:
        moment = min(moment, min(certificate.not_valid_after_utc for certificate in chain))
        if any(certificate.not_valid_before_utc > moment for certificate in chain):
            raise UntrustedChain("there is no time span for which all of the certificates, including a root, are valid")
    trusted = [root for root in roots if moment is None or _valid_at(root, moment)]
    for number, certificate in enumerate(chain, 1):
        for root in trusted:
            if _signed_by(certificate, root):
                return root if number == 1 else chain[1]
    raise UnknownAuthority


def _valid_at(certificate: x509.Certificate, moment: datetime) -> bool:
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _check_time(number: int, certificate: x509.Certificate, moment: datetime, allow_expired: bool) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if moment < start:
        word, limit = "before", start
    elif moment > end and not allow_expired:
        word, limit = "after", end
    else:
        return
    raise CertificateExpired(
        f"certificate ({number} - {_common_name(certificate)}) not valid {word} {_rfc1123(limit)}, "
        f"and it is currently {_rfc1123(moment)}: {_EXPIRED}"
    )


# --- reading what others made --------------------------------------------------------------------------------------


def _load_roots(bundle_pem: bytes) -> list[x509.Certificate]:
    try:
        roots = load_certificates(bundle_pem)
    except InvalidCertificate as error:
        raise InvalidRoot(f"invalid root certificates: {error}") from error
    if not roots:
        raise InvalidRoot("no valid root CA certificates found")
    for root in roots:
        if root.signature_algorithm_oid not in _SIGNATURES:
            oid = root.signature_algorithm_oid
            raise InvalidRoot(f"unsupported signature algorithm: {_WEAK_SIGNATURES.get(oid, oid.dotted_string)}")
        if not _is_authority(root):
            raise InvalidRoot("certificate not a CA")
    return roots


def _load_intermediates(pem: bytes, roots: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    try:
        chain = load_certificates(pem)
        if chain:
            verify_chain(chain, roots, now=None)
    except (InvalidCertificate, UntrustedChain) as error:
        raise InvalidRoot(f"invalid intermediate chain: {error}") from error
    return chain


def _matching_key(key_pem: bytes, certificate: x509.Certificate) -> PrivateKey:
    key = load_private_key(key_pem)
    public = certificate.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size < RSA_KEY_BITS_MIN:
            raise InvalidKey("unsupported RSA key parameters")
    elif isinstance(public, ec.EllipticCurvePublicKey):
        if public.curve.name not in _CURVES:
            raise InvalidKey("unsupported ECDSA key parameters")
    else:
        raise InvalidKey("unknown or unsupported certificate public key algorithm")
    if _spki(key.public_key()) != _spki(public):
        raise InvalidKey("certificate key mismatch")
    return key


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if not _is_authority(issuer):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


# --- making our own ------------------------------------------------------------------------------------------------


def _name(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """A name in PrintableString where its characters allow it, as Go encodes it: peers compare these bytes."""
    return x509.Name([x509.NameAttribute(oid, value, _type=_string_type(value)) for oid, value in parts])


def _string_type(value: str) -> _ASN1Type:
    printable = value.isascii() and all(char.isalnum() or char in " '()+,-./:=?" for char in value)
    return _ASN1Type.PrintableString if printable else _ASN1Type.UTF8String


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=not sign_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = _extension(issuer, x509.SubjectKeyIdentifier)
    if own is not None:
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]


def _serial(deterministic: bool, subject: x509.Name, public: object, start: datetime) -> int:
    if not deterministic:
        return x509.random_serial_number()
    inputs = subject.public_bytes() + _spki(public) + start.isoformat().encode()
    return int.from_bytes(hashlib.sha256(inputs).digest()[:_SERIAL_BYTES], "big") | 1


def _sign(builder: x509.CertificateBuilder, key: PrivateKey, deterministic: bool) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = _HASH_OF_CURVE[key.curve.name]
        certificate = builder.sign(key, algorithm, ecdsa_deterministic=True if deterministic else None)
    else:
        certificate = builder.sign(key, _rsa_hash(key.key_size))
    return certificate.public_bytes(serialization.Encoding.PEM)


def _rsa_hash(key_bits: int) -> _Hash:
    if key_bits >= 4096:
        return hashes.SHA512()
    return hashes.SHA384() if key_bits >= 3072 else hashes.SHA256()


def _spki(public: object) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(encoding, form)  # type: ignore[attr-defined, no-any-return]


def _moment(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)


def _minute(now: float) -> datetime:
    """The nearest full minute."""
    return _moment(int(now + _MINUTE_S / 2) // _MINUTE_S * _MINUTE_S)


def _rfc1123(moment: datetime) -> str:
    """English whatever the locale, e.g. ``Sun, 22 Nov 2026 15:52:49 UTC``."""
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    date = f"{days[moment.weekday()]}, {moment.day:02d} {months[moment.month - 1]} {moment.year:04d}"
    return f"{date} {moment:%H:%M:%S} UTC"
