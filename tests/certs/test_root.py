"""Signing, cross-signing, user-supplied roots, and following chains; OpenSSL and cryptography's verifier as judges."""

from __future__ import annotations

import base64
import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from certs import keys
from certs.errors import (
    CertificateExpired,
    InvalidCsr,
    InvalidKey,
    InvalidRoot,
    NoSigningKey,
    UnknownAuthority,
    UntrustedChain,
)
from certs.keys import identity_of
from certs.root import Issuer, RootCA, desired_root, verify_chain
from certs.tokens import root_digest

NOW = datetime.datetime(2026, 11, 22, 15, 52, 29, tzinfo=datetime.UTC).timestamp()
DAY_S = 24 * 3600.0
NODE_KEY = keys.new_private_key()
CSR = keys.new_csr(NODE_KEY)
ROOT = RootCA.create(NOW)
OTHER = RootCA.create(NOW)


def leaf_of(chain_pem: bytes) -> x509.Certificate:
    return keys.load_certificates(chain_pem)[0]


def sign(root: RootCA, role: str = "swarm-worker", now: float = NOW, expiry_s: float = 90 * DAY_S) -> bytes:
    return root.sign(CSR, "node1", role, "cluster1", now, expiry_s)


def rotating() -> RootCA:
    """ROOT on its way to OTHER."""
    return RootCA(ROOT.bundle_pem, OTHER.key_pem, ROOT.cross_sign(OTHER.bundle_pem))


def openssl_accepts(tmp_path: Path, roots_pem: bytes, chain_pem: bytes) -> bool:
    (tmp_path / "roots.pem").write_bytes(roots_pem)
    certificates = keys.load_certificates(chain_pem)
    (tmp_path / "leaf.pem").write_bytes(keys.certificates_pem(certificates[:1]))
    (tmp_path / "rest.pem").write_bytes(keys.certificates_pem(certificates[1:]))
    untrusted = ["-untrusted", "rest.pem"] if certificates[1:] else []
    command = ["openssl", "verify", "-attime", str(int(NOW)), "-CAfile", "roots.pem", *untrusted, "leaf.pem"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_new_root_has_what_swarmkit_puts_into_one() -> None:
    certificate = ROOT.roots[0]
    start = datetime.datetime(2026, 11, 22, 15, 47, tzinfo=datetime.UTC)
    assert certificate.not_valid_before_utc == start
    assert certificate.not_valid_after_utc == start + datetime.timedelta(seconds=630_720_000)
    assert certificate.subject == certificate.issuer
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    critical = {type(e.value): e.critical for e in certificate.extensions}
    assert critical == {x509.KeyUsage: True, x509.BasicConstraints: True, x509.SubjectKeyIdentifier: False}
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, None)
    assert ROOT.key_pem is not None
    assert ROOT.key_pem.startswith(b"-----BEGIN EC PRIVATE KEY-----")


def test_the_issuer_is_encoded_as_stock_engines_encode_it() -> None:
    assert base64.b64encode(ROOT.issuer.subject_der) == b"MBMxETAPBgNVBAMTCHN3YXJtLWNh"
    assert ROOT.issuer == Issuer.of(ROOT.roots[0])


@pytest.mark.parametrize("role", ["swarm-manager", "swarm-worker"])
def test_a_node_certificate_has_what_swarmkit_puts_into_one(role: str) -> None:
    leaf = leaf_of(sign(ROOT, role))
    full_minute = datetime.datetime(2026, 11, 22, 15, 52, tzinfo=datetime.UTC)
    assert leaf.not_valid_before_utc == full_minute - datetime.timedelta(hours=1)
    assert leaf.not_valid_after_utc == full_minute + datetime.timedelta(days=90)
    assert leaf.subject.rfc4514_string() == f"CN=node1,OU={role},O=cluster1"
    assert keys.public_key_der(leaf) == NODE_KEY.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    values = {type(e.value): (e.critical, e.value) for e in leaf.extensions}
    assert [kind for kind, (critical, _) in values.items() if critical] == [x509.KeyUsage, x509.BasicConstraints]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [role, "node1"] + ["swarm-ca"] * (role == "swarm-manager")
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    assert identity_of(leaf).role == role


def test_an_expiry_below_an_hour_means_90_days() -> None:
    assert leaf_of(sign(ROOT, expiry_s=3599)).not_valid_after_utc == leaf_of(sign(ROOT)).not_valid_after_utc
    short = leaf_of(sign(ROOT, expiry_s=3600))
    assert short.not_valid_after_utc - short.not_valid_before_utc == datetime.timedelta(hours=2)


def test_openssl_and_the_cryptography_verifier_accept_a_node_certificate(tmp_path: Path) -> None:
    chain = sign(ROOT, "swarm-manager")
    assert openssl_accepts(tmp_path, ROOT.bundle_pem, chain)
    assert not openssl_accepts(tmp_path, OTHER.bundle_pem, chain)
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    verifier = PolicyBuilder().store(Store(ROOT.roots)).time(moment).build_client_verifier()
    assert len(verifier.verify(leaf_of(chain), []).chain) == 2


def test_during_a_rotation_both_old_and_new_roots_are_led_to(tmp_path: Path) -> None:
    root = rotating()
    chain = sign(root)
    assert len(keys.load_certificates(chain)) == 2
    assert openssl_accepts(tmp_path, ROOT.bundle_pem, chain)
    assert openssl_accepts(tmp_path, OTHER.bundle_pem, chain)
    assert ROOT.verify(chain, NOW) == OTHER.verify(chain, NOW) == root.issuer == OTHER.issuer
    assert root.issuer != ROOT.issuer


def test_a_rotation_keeps_the_digest_of_the_old_root() -> None:
    assert rotating().digest == ROOT.digest == root_digest(ROOT.bundle_pem)


def test_a_cross_signed_root_without_key_identifiers_is_followed_too() -> None:
    other, key = OTHER.roots[0], keys.load_private_key(ROOT.key_pem or b"")
    builder = x509.CertificateBuilder(other.issuer, other.subject, other.public_key(), 1)
    builder = builder.not_valid_before(other.not_valid_before_utc).not_valid_after(other.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    stock = builder.sign(key, hashes.SHA256())
    chain = [leaf_of(sign(OTHER)), stock]
    assert verify_chain(chain, ROOT.roots, NOW) is stock


def test_a_cross_signed_root_keeps_names_key_and_validity() -> None:
    crossed, other = leaf_of(ROOT.cross_sign(OTHER.bundle_pem)), OTHER.roots[0]
    assert crossed.subject == other.subject
    assert Issuer.of(crossed) == OTHER.issuer
    assert crossed.not_valid_before_utc == other.not_valid_before_utc
    assert crossed.not_valid_after_utc == other.not_valid_after_utc


def test_a_chain_of_strangers_is_refused() -> None:
    with pytest.raises(UnknownAuthority, match="x509: certificate signed by unknown authority"):
        OTHER.verify(sign(ROOT), NOW)


def test_a_node_certificate_cannot_sign_others() -> None:
    impostor = RootCA.create(NOW, NODE_KEY)
    forged = leaf_of(impostor.sign(CSR, "node2", "swarm-manager", "cluster1", NOW, DAY_S))
    with pytest.raises(UntrustedChain):
        verify_chain([forged, leaf_of(sign(ROOT))], ROOT.roots, NOW)


def test_links_out_of_order_are_refused() -> None:
    leaf, crossed = keys.load_certificates(sign(rotating()))
    with pytest.raises(UntrustedChain, match=r"certificates do not form a chain: \(1 - swarm-ca\)"):
        verify_chain([crossed, leaf], ROOT.roots, NOW)


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(UntrustedChain, match="no certificates to validate"):
        ROOT.verify(b"", NOW)


def test_an_expired_certificate_is_refused_with_its_dates() -> None:
    with pytest.raises(CertificateExpired, match=r"\(1 - node1\) not valid after Sat, 20 Feb 2027 15:52:00 UTC, and"):
        ROOT.verify(sign(ROOT), NOW + 91 * DAY_S)


def test_a_certificate_of_the_future_is_refused() -> None:
    with pytest.raises(CertificateExpired, match="not valid before"):
        ROOT.verify(sign(ROOT), NOW - 2 * 3600, allow_expired=True)


def test_an_expired_certificate_is_accepted_where_asked_for() -> None:
    assert ROOT.verify(sign(ROOT), NOW + 91 * DAY_S, allow_expired=True) == ROOT.issuer


def test_an_expired_certificate_of_a_stranger_is_refused_even_then() -> None:
    with pytest.raises(UnknownAuthority):
        OTHER.verify(sign(ROOT), NOW + 91 * DAY_S, allow_expired=True)


def test_a_root_without_its_key_cannot_sign() -> None:
    root = RootCA(ROOT.bundle_pem, None)
    assert not root.can_sign
    with pytest.raises(NoSigningKey):
        sign(root)
    with pytest.raises(NoSigningKey):
        root.cross_sign(OTHER.bundle_pem)


def test_a_bad_request_is_refused() -> None:
    with pytest.raises(InvalidCsr):
        ROOT.sign(b"no request", "n", "swarm-worker", "c", NOW, DAY_S)


def test_the_key_of_another_root_is_refused() -> None:
    with pytest.raises(InvalidKey, match="certificate key mismatch"):
        RootCA(ROOT.bundle_pem, OTHER.key_pem)


def test_an_intermediate_of_strangers_is_refused() -> None:
    third = RootCA.create(NOW)
    with pytest.raises(InvalidRoot, match="invalid intermediate chain: x509"):
        RootCA(ROOT.bundle_pem, OTHER.key_pem, third.cross_sign(OTHER.bundle_pem))


def test_only_authorities_are_cross_signed() -> None:
    with pytest.raises(InvalidRoot, match="certificate not a CA"):
        ROOT.cross_sign(sign(ROOT))
    with pytest.raises(InvalidRoot, match="could not parse new CA certificate"):
        ROOT.cross_sign(b"")


def test_a_deterministic_authority_signs_the_same_bytes_twice() -> None:
    key = ec.derive_private_key(7, ec.SECP256R1())
    first, second = (RootCA.create(NOW, key, deterministic=True) for _ in range(2))
    assert first.bundle_pem == second.bundle_pem
    assert sign(first) == sign(second)
    assert sign(ROOT) != sign(ROOT)


def test_a_root_does_not_show_its_key() -> None:
    assert "PRIVATE" not in repr(ROOT)


# --- roots of users ------------------------------------------------------------------------------------------------


def user_root(key: keys.PrivateKey, days: int = 3650, digest: hashes.HashAlgorithm | None = None) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ours & co")])
    start = datetime.datetime.fromtimestamp(NOW, datetime.UTC) - datetime.timedelta(hours=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5)
    builder = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return keys.certificates_pem([builder.sign(key, digest or hashes.SHA256())])  # type: ignore[arg-type]


RSA_KEY = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    "key",
    [RSA_KEY, ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP521R1())],
    ids=["rsa", "p256", "p521"],
)
def test_a_root_of_the_user_signs_and_is_cross_signed(tmp_path: Path, key: keys.PrivateKey) -> None:
    root = desired_root(b"some text\n" + user_root(key), keys.private_key_pem(key), NOW)
    assert openssl_accepts(tmp_path, root.bundle_pem, sign(root))
    crossing = RootCA(ROOT.bundle_pem, root.key_pem, ROOT.cross_sign(root.bundle_pem))
    assert openssl_accepts(tmp_path, ROOT.bundle_pem, sign(crossing))


def test_a_rsa_root_cross_signs_its_successor(tmp_path: Path) -> None:
    root = desired_root(user_root(RSA_KEY), keys.private_key_pem(RSA_KEY), NOW)
    crossing = RootCA(root.bundle_pem, OTHER.key_pem, root.cross_sign(OTHER.bundle_pem))
    assert openssl_accepts(tmp_path, root.bundle_pem, sign(crossing))


P256 = ec.generate_private_key(ec.SECP256R1())
SMALL_RSA = rsa.generate_private_key(65537, 1024)
ODD_CURVE = ec.generate_private_key(ec.SECP256K1())


@pytest.mark.parametrize(
    ("certificate", "key", "text"),
    [
        (user_root(P256, days=300), keys.private_key_pem(P256), "CA certificate expires too soon"),
        (user_root(P256) + ROOT.bundle_pem, keys.private_key_pem(P256), "cannot contain multiple certificates"),
        (user_root(P256), keys.private_key_pem(RSA_KEY), "certificate key mismatch"),
        (user_root(P256), b"no key", "malformed private key"),
        (user_root(SMALL_RSA), keys.private_key_pem(SMALL_RSA), "unsupported RSA key parameters"),
        (user_root(ODD_CURVE), keys.private_key_pem(ODD_CURVE), "unsupported ECDSA key parameters"),
        (user_root(RSA_KEY, digest=hashes.SHA3_256()), b"", "unsupported signature algorithm"),
        (sign(ROOT), keys.private_key_pem(NODE_KEY), "certificate not a CA"),
        (b"", b"", "no valid root CA certificates found"),
        (keys.PemBlock("CERTIFICATE", b"abc").encode(), b"", "invalid root certificates: malformed certificate"),
    ],
)
def test_an_unfit_root_of_the_user_is_refused(certificate: bytes, key: bytes, text: str) -> None:
    with pytest.raises((InvalidRoot, InvalidKey), match=text) as caught:
        desired_root(certificate, key, NOW)
    assert caught.value.code == 3


def test_a_root_of_the_future_is_refused() -> None:
    with pytest.raises(InvalidRoot, match="x509: certificate has expired or is not yet valid"):
        desired_root(user_root(P256), keys.private_key_pem(P256), NOW - 2 * DAY_S)


def test_a_root_with_an_unsupported_kind_of_key_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5).not_valid_before(moment)
    builder = builder.not_valid_after(moment + datetime.timedelta(days=900))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = keys.certificates_pem([builder.sign(key, None)])
    with pytest.raises(InvalidRoot, match="unsupported signature algorithm: Ed25519"):
        desired_root(pem, b"", NOW)


def test_a_certificate_that_never_expires_ends_with_the_calendar() -> None:
    leaf = leaf_of(sign(ROOT, expiry_s=1e18))
    assert leaf.not_valid_after_utc == datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
def test_a_root_that_cannot_be_written_again_is_not_cross_signed() -> None:
    der = bytearray(keys.pem_blocks(OTHER.bundle_pem)[0].body)
    der[der.index(b"\xa0\x03\x02\x01\x02") + 7] |= 0x80  # the serial number is negative now
    with pytest.raises(InvalidRoot, match="could not cross-sign"):
        ROOT.cross_sign(keys.PemBlock("CERTIFICATE", bytes(der)).encode())
