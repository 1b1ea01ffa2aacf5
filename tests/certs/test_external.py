"""External authorities: what they are asked, what their answers mean, and HTTPS to a real one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certs import cfssl, external, keys
from certs.errors import CertsError, ExternalRefused, ExternalUnusable
from certs.root import RootCA
from certs.tls import Credentials
from integration.cfssl import Authority, make_root, serving

ORG, NODE, MANAGER, WORKER = "cluster1", "node1", "swarm-manager", "swarm-worker"
TIMEOUT_S = 5.0


class ExternalCa:
    """Drives certs.external.sign against an authority that has the key of the root."""

    def __init__(self) -> None:
        certificate, key = make_root("company")
        self.root = RootCA(certificate, key)
        loaded = keys.load_private_key(key)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self.authority = Authority(certificate, loaded)
        self.credentials = self.member(MANAGER)
        self.key = keys.new_private_key()
        self.csr = keys.new_csr(self.key)
        self.url = ""

    def member(self, role: str) -> Credentials:
        key = keys.new_private_key()
        certificate = self.root.sign(keys.new_csr(key), "manager1", role, ORG, time.time(), 3600.0)
        return Credentials(certificate, keys.private_key_pem(key))

    async def ask(self, *urls: str, body: bytes | None = None, credentials: Credentials | None = None) -> bytes:
        body = body or cfssl.node_request(self.csr, NODE, WORKER, ORG)
        roots, who = self.root.bundle_pem, credentials or self.credentials
        return await external.sign(urls or (self.url,), body, roots, who, TIMEOUT_S)


@pytest.fixture
def outside() -> Iterator[ExternalCa]:
    setting = ExternalCa()
    with serving(setting.authority) as setting.url:
        yield setting


def unused_url() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"https://127.0.0.1:{taken.getsockname()[1]}/sign"


async def test_a_node_certificate_is_what_was_asked_for(outside: ExternalCa) -> None:
    chain = await outside.ask()
    cfssl.check_node_certificate(chain, outside.csr, NODE, WORKER, ORG, outside.root, time.time())
    leaf = keys.load_certificates(chain)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [WORKER, NODE]
    assert outside.authority.issued == 1


async def test_the_next_server_is_asked_when_one_is_away_or_out_of_order(outside: ExternalCa) -> None:
    with serving(Authority(outside.root.bundle_pem, outside.authority.key, flaky=True)) as flaky:
        assert await outside.ask(unused_url(), flaky, outside.url)
    assert outside.authority.issued == 1


async def test_the_last_failure_is_reported_with_the_name_of_its_server(outside: ExternalCa) -> None:
    with pytest.raises(ExternalUnusable, match="no external CA URLs"):
        await external.sign((), b"{}", outside.root.bundle_pem, outside.credentials, TIMEOUT_S)
    away = unused_url()
    with pytest.raises(ExternalUnusable) as refusal:
        await outside.ask(away)
    assert str(refusal.value).startswith(f"{away}: ")
    assert "refused" in str(refusal.value).lower()
    outside.authority.flaky = True
    with pytest.raises(ExternalUnusable, match="unexpected status code in CSR response: 500 - out of order"):
        await outside.ask()


async def test_a_server_that_another_root_signed_is_not_believed(outside: ExternalCa) -> None:
    other, key = make_root("other")
    loaded = keys.load_private_key(key)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    imposter = Authority(other, loaded)
    with serving(imposter, trusted_pem=outside.root.bundle_pem) as url:
        with pytest.raises(ExternalUnusable, match="x509: "):
            await outside.ask(url)
        with pytest.raises(ExternalUnusable):
            await external.find_reachable((url,), outside.root.bundle_pem, outside.credentials, TIMEOUT_S)
    assert imposter.issued == 0


async def test_only_managers_of_the_same_cluster_get_certificates(outside: ExternalCa) -> None:
    with pytest.raises(ExternalRefused, match="client certificate OU must be"):
        await outside.ask(credentials=outside.member(WORKER))
    with pytest.raises(ExternalRefused, match="subject org does not match"):
        await outside.ask(body=cfssl.node_request(outside.csr, NODE, WORKER, "another"))
    assert outside.authority.issued == 0


async def test_one_reachable_server_is_enough_and_the_log_says_why_others_are_not(outside: ExternalCa) -> None:
    roots, who = outside.root.bundle_pem, outside.credentials
    with structlog.testing.capture_logs() as lines:
        urls = ("http://127.0.0.1/", unused_url(), outside.url)
        await external.find_reachable(urls, roots, who, TIMEOUT_S)
    assert [line["number"] for line in lines] == [1, 2]
    assert lines[0]["error"] == "invalid HTTP scheme"
    with pytest.raises(ExternalUnusable):
        await external.find_reachable(urls[:2], roots, who, TIMEOUT_S)


async def test_nothing_goes_out_in_the_clear(outside: ExternalCa) -> None:
    with pytest.raises(ExternalUnusable, match="invalid HTTP scheme"):
        await outside.ask(outside.url.replace("https:", "http:"))
    for url in ("", "https://", "https://[::1", "https://host:port/", "ftp://host/"):
        with pytest.raises(ExternalUnusable):
            await outside.ask(url)


def test_passwords_in_addresses_are_not_shown() -> None:
    assert external.shown("https://user:word@host:1/path?key=secret#x") == "https://host:1/path"
    assert "word" not in external.shown("https://user:word@[host/")


async def test_a_new_root_is_cross_signed(outside: ExternalCa) -> None:
    new = RootCA.create(time.time())
    body = cfssl.cross_sign_request(new)
    chain = await outside.ask(body=body)  # the profile is not allowed: an ordinary certificate
    with pytest.raises(CertsError):
        cfssl.check_cross_signed(chain, new, outside.root)
    outside.authority.cross_signs = True
    chain = await outside.ask(body=body)
    cfssl.check_cross_signed(chain, new, outside.root)
    leaf = RootCA(outside.root.bundle_pem, new.key_pem, chain).sign(outside.csr, NODE, WORKER, ORG, time.time(), 3600.0)
    assert outside.root.verify(leaf, time.time()) == new.verify(leaf, time.time()) == new.issuer
    with pytest.raises(CertsError):
        cfssl.check_cross_signed(chain, RootCA.create(time.time()), outside.root)


def test_a_cross_sign_request_carries_all_names_of_the_root() -> None:
    key = keys.new_private_key()
    oid = x509.NameOID
    parts = ((oid.COUNTRY_NAME, "NL"), (oid.ORGANIZATION_NAME, "A"), (oid.ORGANIZATIONAL_UNIT_NAME, "B"))
    name = x509.Name([x509.NameAttribute(*part) for part in (*parts, (oid.COMMON_NAME, "root"))])
    like = keys.load_certificates(RootCA.create(time.time()).bundle_pem)[0]
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7)
    builder = builder.not_valid_before(like.not_valid_before_utc).not_valid_after(like.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = keys.certificates_pem([builder.sign(key, hashes.SHA256())])
    request = json.loads(cfssl.cross_sign_request(RootCA(pem, keys.private_key_pem(key))))
    assert request["subject"] == {"CN": "root", "names": [{"C": "NL", "O": "A", "OU": "B"}], "SerialNumber": ""}
    assert request["profile"] == "CA"
    assert request["extensions"] == [{"id": "2.5.29.19", "critical": True, "value": "30030101ff"}]
    csr = keys.load_csr(request["certificate_request"].encode())
    assert csr.subject == name
    assert csr.public_key() == key.public_key()


@pytest.mark.parametrize(
    ("status", "answer", "kind", "text"),
    [
        (500, "oops", ExternalUnusable, "unexpected status code in CSR response: 500 - oops"),
        (200, "oops", ExternalUnusable, "unable to parse JSON response"),
        (200, "[]", ExternalUnusable, "unable to parse JSON response"),
        (200, {"success": False, "errors": []}, ExternalRefused, "certificate signing request failed"),
        (200, {"success": True}, ExternalRefused, "certificate signing request failed"),
        (
            200,
            {"success": False, "errors": [{"code": 9, "message": "no"}]},
            ExternalRefused,
            r"response errors: \[{9 no}\]",
        ),
        (200, {"success": True, "result": "x"}, ExternalRefused, "invalid result type"),
        (200, {"success": True, "result": {}}, ExternalRefused, "invalid result certificate field type"),
    ],
)
def test_answers_without_a_certificate_say_why(status: int, answer: Any, kind: type[CertsError], text: str) -> None:
    body = answer if isinstance(answer, str) else json.dumps(answer)
    with pytest.raises(kind, match=text):
        cfssl.read_answer(status, body.encode())


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.booleans() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_answer_breaks_the_reader(body: bytes) -> None:
    with pytest.raises((ExternalUnusable, ExternalRefused)):
        cfssl.read_answer(200, body)


async def test_a_certificate_for_somebody_else_is_not_taken(outside: ExternalCa) -> None:
    chain = await outside.ask()
    other = RootCA.create(time.time())
    now = time.time()
    for node, role, org, csr, trust in (
        ("node2", WORKER, ORG, outside.csr, outside.root),
        (NODE, MANAGER, ORG, outside.csr, outside.root),
        (NODE, WORKER, "another", outside.csr, outside.root),
        (NODE, WORKER, ORG, keys.new_csr(keys.new_private_key()), outside.root),
        (NODE, WORKER, ORG, outside.csr, other),
    ):
        with pytest.raises(CertsError):
            cfssl.check_node_certificate(chain, csr, node, role, org, trust, now)
    with pytest.raises(ExternalRefused):
        cfssl.check_node_certificate(b"", outside.csr, NODE, WORKER, ORG, outside.root, now)
