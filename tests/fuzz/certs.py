"""Fuzz target: PEM, keys, certificates, requests, chains, join tokens and unlock keys, as others may send them.

Checked: only CertsError comes of them; what was written is read back; an authority that was accepted signs what its own
verification accepts, and shows its key to nobody.
"""

from __future__ import annotations

import contextlib
import ssl
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from certs import cfssl, keys, root, tls, tokens
from certs.errors import CertsError
from certs.root import RootCA
from certs.validity import validity_of
from tests.fuzz.feed import Feed

NOW = 1_795_359_300.0
DER, PKCS8 = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
LABELS = (
    "CERTIFICATE",
    "PRIVATE KEY",
    "EC PRIVATE KEY",
    "RSA PRIVATE KEY",
    "CERTIFICATE REQUEST",
    "ENCRYPTED PRIVATE KEY",
)
MOMENTS = (NOW, 0.0, 4e9, NOW + 30 * 365 * 86_400)
EXPIRIES_S = (0.0, 3_600.0, 1e7, 1e11, 1e18)


def _key_der(key: Any) -> bytes:
    data: bytes = key.private_bytes(DER, PKCS8, serialization.NoEncryption())
    return data


def _certificate(
    key: Any,
    signer: Any,
    names: list[x509.NameAttribute[Any]],
    extensions: tuple[x509.ExtensionType, ...] = (),
    end: datetime = datetime(2046, 1, 1, tzinfo=UTC),
) -> bytes:
    name = x509.Name(names)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(end)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signer, algorithm).public_bytes(DER)


def _parts() -> list[bytes]:
    """DER of good and of odd things, all well-formed."""
    first, second = (ec.derive_private_key(number, ec.SECP256R1()) for number in (7, 9))
    odd_keys: list[Any] = [
        ec.derive_private_key(5, curve()) for curve in (ec.SECP256K1, ec.SECP384R1, ec.BrainpoolP256R1)
    ]
    odd_keys += [ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32), _RSA]
    authority = RootCA.create(NOW, first, deterministic=True)
    other = RootCA.create(NOW, second, deterministic=True)
    leaf = authority.sign(keys.new_csr(second), "n1", "swarm-manager", "c1", NOW, 0.0)
    cross = authority.cross_sign(other.bundle_pem)
    common = x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca")
    ca = x509.BasicConstraints(ca=True, path_length=None)
    bits = x509.NameAttribute(NameOID.X500_UNIQUE_IDENTIFIER, b"\1\2", _type=_ASN1Type.BitString)
    names = x509.SubjectAlternativeName([x509.DNSName("swarm-manager"), x509.RFC822Name("a@b")])
    out = [
        keys.load_certificates(pem)[0].public_bytes(DER)
        for pem in (authority.bundle_pem, other.bundle_pem, leaf, cross)
    ]
    out += [_key_der(first), _key_der(second), x509.load_pem_x509_csr(keys.new_csr(first)).public_bytes(DER)]
    for key in odd_keys:
        out += [_key_der(key), _certificate(key, key, [common], (ca,))]
        with contextlib.suppress(ValueError, TypeError):
            algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
            csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm)
            out.append(csr.public_bytes(DER))
    out.append(_certificate(first, first, [], (ca,)))
    out.append(_certificate(first, first, [common, common, bits], (ca, names)))
    out.append(_certificate(first, first, [common], (ca,), datetime.max.replace(tzinfo=UTC, microsecond=0)))
    usage = x509.KeyUsage(True, True, True, True, True, True, True, False, False)
    out.append(_certificate(second, first, [common], (usage, names)))
    out.append(first.private_bytes(DER, PKCS8, serialization.BestAvailableEncryption(b"x" * 32)))
    return out


def one(data: bytes) -> None:
    """The whole of one input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # what is disallowed, but still read
        _one(Feed(data))


def _one(feed: Feed) -> None:
    action = feed.below(10)
    if action == 0:
        texts(feed)
    elif action == 1:
        blocks(feed.rest())
    elif action == 2:
        authority(feed)
    elif action == 3:
        chain(feed)
    elif action == 4:
        external(feed)
    else:
        readers(feed)


def part(feed: Feed) -> bytes:
    """DER: a known thing, changed in a few places, or any bytes."""
    number = feed.byte()
    if number >= 240:
        return feed.some()
    der = bytearray(_PARTS[number % len(_PARTS)])
    for _ in range(feed.byte() % 4):
        place = feed.below(65_536) % max(len(der), 1)
        how = feed.byte()
        if how < 200:
            der[place : place + 1] = bytes([feed.byte()])
        elif how < 230:
            der[place : place + feed.byte()] = feed.some()
        else:
            del der[place:]
            break
    return bytes(der)


def pem(feed: Feed) -> bytes:
    """One to three blocks, or any bytes."""
    if feed.byte() >= 250:
        return feed.some()
    out = b""
    for _ in range(1 + feed.byte() % 3):
        headers = {"kek-version": "3"} if feed.byte() > 250 else {}
        out += keys.PemBlock(feed.choice(LABELS) if feed.byte() > 128 else "CERTIFICATE", part(feed), headers).encode()
    return out + (feed.some() if feed.byte() > 250 else b"")


def refused(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or None when it is refused as it should be."""
    try:
        return function(*arguments)
    except CertsError:
        return None


def texts(feed: Feed) -> None:
    """Tokens and unlock keys."""
    text = feed.rest().decode("utf-8", "replace")
    for candidate in (text, f"SWMTKN-1-{text}", f"SWMTKN-1-{'0' * 50}-{text}", f"SWMTKN-2-1-{text}-{'1' * 25}"):
        token = refused(tokens.parse_join_token, candidate)
        if token is not None and token.fips == (token.version == 2):
            again = tokens.join_token(token.root_digest, int(token.secret, 36), token.fips)
            assert again.lower() == candidate.lower()
            assert token.secret not in repr(token).replace(token.root_digest, "")
        assert tokens.same_token(candidate, text) == (candidate == text != "")
    for candidate in (text, f"SWMKEY-1-{text}"):
        key = refused(tokens.parse_unlock_key, candidate)
        assert key is None or tokens.parse_unlock_key(tokens.unlock_key_text(key)) == key


def blocks(data: bytes) -> None:
    """PEM as text."""
    plain = keys.normalize_pem(data)
    assert keys.normalize_pem(plain) == plain
    found = keys.pem_blocks(data)
    assert [(block.label, block.body) for block in keys.pem_blocks(plain)] == [
        (block.label, block.body) for block in found
    ]
    block = keys.PemBlock("CERTIFICATE", data)
    assert keys.pem_blocks(b"before\n" + block.encode() + b"behind") == [block]
    refused(keys.load_certificates, data)
    refused(keys.load_private_key, data)


def readers(feed: Feed) -> None:
    """Each reader with each thing."""
    bundle = pem(feed)
    der = part(feed)
    key = refused(keys.load_private_key, bundle)
    if key is not None:
        again = keys.load_private_key(keys.private_key_pem(key))
        assert again.public_key() == key.public_key()
    csr = refused(keys.load_csr, keys.PemBlock("CERTIFICATE REQUEST", der).encode())
    refused(keys.load_csr, bundle)
    for certificate in (bundle, der):
        identity = refused(keys.identity_of, certificate)
        if identity is not None:
            assert all(isinstance(name, str) for name in (identity.node_id, identity.role, identity.org))
    for certificate in refused(keys.load_certificates, bundle) or []:
        refused(keys.identity_of, certificate)
    signed = refused(
        _AUTHORITY.sign,
        keys.PemBlock("CERTIFICATE REQUEST", der).encode(),
        "n1",
        "swarm-worker",
        "c1",
        NOW,
        feed.choice(EXPIRIES_S),
    )
    if signed is not None:
        assert csr is not None
        assert keys.identity_of(signed).node_id == "n1"
        _AUTHORITY.verify(signed, NOW)
    if feed.byte() > 200:
        credentials = tls.Credentials(bundle, keys.PemBlock("PRIVATE KEY", der).encode())
        context = refused(tls.server_context, credentials, bundle)
        assert context is None or isinstance(context, ssl.SSLContext)


def authority(feed: Feed) -> None:
    """Bundle, key and intermediates of a root."""
    bundle, key_pem, intermediates = pem(feed), pem(feed), pem(feed) if feed.flag() else b""
    now = feed.choice(MOMENTS)
    refused(root.desired_root, bundle, key_pem, now)
    made = refused(RootCA, bundle, key_pem if feed.flag() else None, intermediates)
    if made is None:
        return
    assert made.issuer.subject_der
    if made.key_pem:
        assert made.key_pem.decode("latin-1") not in repr(made)
        signed = made.sign(keys.new_csr(_LEAF_KEY), "n1", "swarm-worker", "c1", now, feed.choice(EXPIRIES_S[:3]))
        moment = datetime.fromtimestamp(now, UTC)
        involved = [*made.roots, *keys.load_certificates(intermediates)]
        if all(it.not_valid_before_utc <= moment <= it.not_valid_after_utc for it in involved):
            made.verify(signed, now, feed.flag())
        refused(made.cross_sign, _AUTHORITY.bundle_pem)
    refused(_AUTHORITY.cross_sign, bundle)


def external(feed: Feed) -> None:
    """What an external authority answers."""
    csr, certificates, now = keys.new_csr(_LEAF_KEY), pem(feed), feed.choice(MOMENTS)
    refused(cfssl.check_node_certificate, certificates, csr, "n1", "swarm-worker", "c1", _AUTHORITY, now)
    refused(cfssl.check_cross_signed, certificates, _AUTHORITY, _AUTHORITY)
    made = refused(RootCA, certificates, pem(feed))
    if made is not None and made.can_sign:
        assert cfssl.cross_sign_request(made)
    refused(cfssl.read_answer, 200 + feed.below(3), feed.rest())


def chain(feed: Feed) -> None:
    """What a peer presents, against roots that may be odd themselves."""
    presented, roots = pem(feed), pem(feed) if feed.flag() else _AUTHORITY.bundle_pem
    now, name = feed.choice(MOMENTS), feed.choice(("swarm-manager", "swarm-ca", "", "\xe9"))
    refused(_AUTHORITY.verify, presented, now, feed.flag())
    ders = [part(feed) for _ in range(feed.byte() % 4)]
    refused(tls.verify_chain, ders, roots, name, now)
    refused(tls.verify_chain, ders * 4, roots, name, now)
    if ders:
        found = validity_of(ders, _CONTEXT, now, 86_400.0)
        assert not (found.renewable and not found.error)
    certificates = refused(keys.load_certificates, presented)
    anchors = refused(keys.load_certificates, roots)
    if certificates is not None and anchors is not None:
        refused(root.verify_chain, certificates, anchors, feed.choice((None, *MOMENTS)), feed.flag())


_RSA = rsa.generate_private_key(65537, 1024)
_LEAF_KEY = ec.derive_private_key(13, ec.SECP256R1())
_AUTHORITY = RootCA.create(NOW, ec.derive_private_key(7, ec.SECP256R1()), deterministic=True)
_CONTEXT = tls.server_context(
    tls.Credentials(
        _AUTHORITY.sign(keys.new_csr(_LEAF_KEY), "n1", "swarm-manager", "c1", NOW, 0.0), keys.private_key_pem(_LEAF_KEY)
    ),
    _AUTHORITY.bundle_pem,
)
_PARTS = _parts()


def seeds() -> list[bytes]:
    """Inputs to begin with."""
    out = [b"\0SWMTKN-1-" + b"0" * 50 + b"-" + b"1" * 25, b"\0" + b"0" * 43, b"\1" + _AUTHORITY.bundle_pem]
    for number in range(len(_PARTS)):
        one_block = bytes((0, 0, 0, 0, number, 0))
        out.append(b"\5" + one_block + bytes((number, 0, number % 5, 201)))
        out.append(b"\4" + one_block + bytes((0, *one_block[1:], 4)) + b'{"success":true,"result":{"certificate":"x"}}')
        out.append(b"\2" + one_block + bytes((0, 0, 0, 200, 1, 4 + number % 2, 0)) + b"\0\0\1\0")
        out.append(b"\3" + one_block + b"\0\0\0\0\2" + bytes((number, 0, 2, 0)))
    return out
