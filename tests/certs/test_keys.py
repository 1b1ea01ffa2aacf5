"""Keys, requests, PEM and identities."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs import keys
from certs.errors import InvalidCertificate, InvalidCsr, InvalidKey
from certs.keys import Identity, PemBlock, identity_of


def certificate(
    *names: tuple[x509.ObjectIdentifier, str], extension: x509.ExtensionType | None = None
) -> x509.Certificate:
    key = keys.new_private_key()
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=1))
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


NODE = (
    (NameOID.ORGANIZATION_NAME, "cluster1"),
    (NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager"),
    (NameOID.COMMON_NAME, "node1"),
)


@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
def test_an_identity_is_read_from_pem_and_from_der(encoding: serialization.Encoding) -> None:
    assert identity_of(certificate(*NODE).public_bytes(encoding)) == Identity("node1", "swarm-manager", "cluster1")


def test_an_identity_is_read_from_the_first_certificate_of_a_chain() -> None:
    chain = keys.certificates_pem([certificate(*NODE), certificate((NameOID.COMMON_NAME, "swarm-ca"))])
    assert identity_of(chain).node_id == "node1"


def test_a_certificate_without_a_role_has_no_identity() -> None:
    with pytest.raises(InvalidCertificate, match="0 values for its role"):
        identity_of(certificate(NODE[0], NODE[2]))


def test_a_certificate_with_two_roles_has_no_identity() -> None:
    with pytest.raises(InvalidCertificate, match="2 values for its role"):
        identity_of(certificate(*NODE, (NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-worker")))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x30\x03abc", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_bytes_that_are_not_a_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidCertificate):
        identity_of(data)


def test_a_new_request_has_an_empty_subject_and_a_p256_key() -> None:
    key = keys.new_private_key()
    csr = keys.load_csr(keys.new_csr(key))
    public = csr.public_key()
    assert list(csr.subject) == []
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
    assert public.public_numbers() == key.public_key().public_numbers()


def test_a_request_with_a_broken_signature_is_refused() -> None:
    block = keys.pem_blocks(keys.new_csr(keys.new_private_key()))[0]
    broken = PemBlock(block.label, block.body[:-1] + bytes([block.body[-1] ^ 1])).encode()
    with pytest.raises(InvalidCsr):
        keys.load_csr(broken)


def test_a_private_key_survives_extra_pem_headers() -> None:
    key = keys.new_private_key()
    block = keys.pem_blocks(keys.private_key_pem(key))[0]
    text = PemBlock(block.label, block.body, {"kek-version": "0", "raft-dek": "x="}).encode()
    assert text.startswith(b"-----BEGIN PRIVATE KEY-----\nkek-version: 0\nraft-dek: x=\n\n")
    assert keys.load_private_key(text).private_numbers() == key.private_numbers()


def test_keys_of_other_kinds_are_refused() -> None:
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(InvalidKey, match="malformed private key"):
        keys.load_private_key(pem)


def test_our_pem_is_the_pem_of_openssl() -> None:
    pem = certificate(*NODE).public_bytes(serialization.Encoding.PEM)
    assert keys.normalize_pem(b"text before\r\n" + pem.replace(b"\n", b"\r\n")) == pem


HEADER_NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1)
HEADER_VALUES = st.text("abcdefghijklmnopqrstuvwxyz0123456789+/=", min_size=1)


@given(st.binary(max_size=200), st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=4))
def test_pem_blocks_round_trip(body: bytes, headers: dict[str, str]) -> None:
    block = PemBlock("PRIVATE KEY", body, headers)
    assert keys.pem_blocks(b"x\n" + block.encode() * 2) == [block, block]


@given(st.binary(max_size=300))
def test_no_bytes_break_the_pem_reader(data: bytes) -> None:
    assert isinstance(keys.pem_blocks(b"-----BEGIN A-----\n" + data + b"\n-----END A-----\n"), list)


def test_a_pem_block_does_not_show_its_key() -> None:
    assert "secret" not in repr(PemBlock("PRIVATE KEY", b"secret", {"raft-dek": "secret"}))


# each is still DER, but a part that the library reads late makes no sense
SPOILED = {
    "version": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x4d"),
    "key": (b"\x03\x42\x00\x04", b"\x03\x42\x00\x09"),
    "name": (b"\x0c\x05node1", b"\x0c\x05nod\xff\xff"),
    "end": (b"\x17\x0d260102", b"\x17\x0d269902"),
}


@pytest.mark.parametrize("part", SPOILED)
def test_a_certificate_with_a_part_that_cannot_be_read_is_refused_when_it_is_loaded(part: str) -> None:
    good = certificate(*NODE).public_bytes(serialization.Encoding.DER)
    spoiled = good.replace(*SPOILED[part], 1)
    assert spoiled != good
    with pytest.raises(InvalidCertificate):
        keys.load_certificate(spoiled)
    with pytest.raises(InvalidCertificate):
        keys.load_certificates(PemBlock("CERTIFICATE", spoiled).encode())
    with pytest.raises(InvalidCertificate):
        identity_of(spoiled)


def test_a_certificate_for_a_kind_of_name_that_nobody_uses_is_refused_when_it_is_loaded() -> None:
    x400_address = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x02\xa3\x00")
    odd = certificate(*NODE, extension=x400_address).public_bytes(serialization.Encoding.DER)
    with pytest.raises(InvalidCertificate):
        keys.load_certificate(odd)


def test_a_request_of_an_unknown_version_is_refused() -> None:
    der = keys.pem_blocks(keys.new_csr(keys.new_private_key()))[0].body
    spoiled = der.replace(b"\x02\x01\x00", b"\x02\x01\x4d", 1)
    with pytest.raises(InvalidCsr):
        keys.load_csr(PemBlock("CERTIFICATE REQUEST", spoiled).encode())


def test_an_unterminated_block_does_not_hide_the_next_one() -> None:
    good = PemBlock("CERTIFICATE", b"body")
    lost = b"-----BEGIN CERTIFICATE-----\nAAAA\n"
    assert keys.pem_blocks(lost + good.encode() + b"-----END CERTIFICATE-----\n" + lost) == [good]
    assert keys.pem_blocks(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END PRIVATE KEY-----\n") == []


@pytest.mark.parametrize(
    "text", [b"-----BEGIN A-----\n", b"-----BEGIN A-----\n-----END B-----\n", b"-----END A-----\n"]
)
def test_pem_is_read_in_one_go_whatever_is_in_it(text: bytes) -> None:
    count = 4_000_000 // len(text)  # comparing each with each would take hours
    assert keys.pem_blocks(text * count) == []
