"""TLS contexts: which peers a server admits, which servers a client trusts, and certificates replaced while in use."""

from __future__ import annotations

import contextlib
import os
import ssl
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.errors import InvalidKey
from certs.keys import pem_blocks
from certs.tls import (
    ClientTls,
    Credentials,
    UntrustedCertificate,
    client_context,
    member_context,
    server_context,
    verify_chain,
)

if TYPE_CHECKING:
    from tests.conftest import Authority


def chain_of(credentials: Credentials) -> list[bytes]:
    return [block.body for block in pem_blocks(credentials.certificate_pem)]


def check(authority: Authority, credentials: Credentials, name: str = "swarm-manager", after_s: float = 0.0) -> None:
    verify_chain(chain_of(credentials), authority.pem, name, authority.now.timestamp() + after_s)


def test_a_manager_of_the_cluster_is_trusted_under_both_its_names(authority: Authority) -> None:
    credentials = authority.issue()
    check(authority, credentials)
    check(authority, credentials, "swarm-ca")


def test_a_manager_of_another_root_is_not_trusted(authority: Authority, other_authority: Authority) -> None:
    with pytest.raises(UntrustedCertificate, match="signed by unknown authority"):
        check(authority, other_authority.issue())


def test_a_chain_over_a_cross_signed_root_is_trusted_as_go_does(
    authority: Authority, other_authority: Authority
) -> None:
    credentials = other_authority.issue(intermediates=authority.cross_sign(other_authority))
    check(authority, credentials)
    check(other_authority, credentials)


def test_an_intermediate_that_is_not_a_ca_is_not_trusted(authority: Authority, other_authority: Authority) -> None:
    credentials = other_authority.issue(intermediates=authority.cross_sign(other_authority, ca=False))
    with pytest.raises(UntrustedCertificate, match="unknown authority"):
        check(authority, credentials)


def test_a_worker_cannot_pose_as_a_manager(authority: Authority) -> None:
    with pytest.raises(UntrustedCertificate, match="valid for swarm-worker, node1, not swarm-manager"):
        check(authority, authority.issue(role="swarm-worker"))


@pytest.mark.parametrize(("days", "word"), [(-1, "before"), (91, "after")])
def test_a_certificate_counts_only_in_its_time(authority: Authority, days: int, word: str) -> None:
    with pytest.raises(UntrustedCertificate, match=f"has expired or is not yet valid.* is {word} "):
        check(authority, authority.issue(), after_s=days * 86400.0)


def test_an_expired_root_is_not_trusted(authority: Authority) -> None:
    credentials = authority.issue(not_after=authority.now + timedelta(days=9000))
    with pytest.raises(UntrustedCertificate, match="unknown authority"):
        check(authority, credentials, after_s=8000 * 86400.0)


def test_a_certificate_for_clients_only_is_refused_from_a_server(authority: Authority) -> None:
    with pytest.raises(UntrustedCertificate, match="incompatible key usage"):
        check(authority, authority.issue(usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)))


@pytest.mark.parametrize("chain", [[], [b""], [b"\x30\x03abc"], [b"\x30\x00"] * 11])
def test_a_broken_chain_is_refused(authority: Authority, chain: list[bytes]) -> None:
    with pytest.raises(UntrustedCertificate):
        verify_chain(chain, authority.pem, "swarm-manager", authority.now.timestamp())


def test_contexts_leave_no_file_open(authority: Authority) -> None:
    credentials = authority.issue()
    before = os.listdir("/proc/self/fd")
    server_context(credentials, authority.pem)
    client_context(authority.client(credentials))
    assert os.listdir("/proc/self/fd") == before


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    mixed = Credentials(authority.issue().certificate_pem, authority.issue().key_pem)
    with pytest.raises(InvalidKey, match="KEY_VALUES_MISMATCH"):
        server_context(mixed, authority.pem)


def test_an_encrypted_key_is_refused_without_asking_for_a_pass_phrase(authority: Authority) -> None:
    credentials = Credentials(
        authority.issue().certificate_pem,
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    with pytest.raises(InvalidKey):
        server_context(credentials, authority.pem)


def test_a_servers_context_needs_roots(authority: Authority) -> None:
    with pytest.raises(UntrustedCertificate):
        server_context(authority.issue(), b"nothing")


def test_a_server_asks_for_client_certificates_without_requiring_them(authority: Authority) -> None:
    context = server_context(authority.issue(), authority.pem)
    assert context.verify_mode == ssl.CERT_OPTIONAL
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A handshake in memory, and a first byte by which a client learns what the server thinks of it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="swarm-manager")
    for _ in range(4):
        for side in (theirs, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert ours.version() is not None


def test_a_server_with_both_roots_takes_peers_that_a_stock_leader_certified_in_a_rotation(
    authority: Authority, other_authority: Authority
) -> None:
    # OpenSSL takes the cross-signed root of stock peers for self-signed, so the old root alone does not do
    renewed = other_authority.issue(intermediates=authority.cross_sign(other_authority))
    for credentials in (authority.issue(), renewed):
        both = server_context(authority.issue(), authority.pem + other_authority.pem)
        shake_hands(both, client_context(authority.client(credentials)))
    with pytest.raises(ssl.SSLError, match=r"self.signed"):
        shake_hands(server_context(authority.issue(), authority.pem), client_context(authority.client(renewed)))


def test_secrets_do_not_show(authority: Authority) -> None:
    assert "PRIVATE" not in repr(ClientTls("swarm-manager", None, authority.issue()))


def test_a_root_that_another_one_signed_is_still_a_root(authority: Authority, other_authority: Authority) -> None:
    """A company may give a cluster an intermediate of its own as root; its own issuer is not needed."""
    root = authority.cross_sign(other_authority)
    server = server_context(other_authority.issue(), root)
    shake_hands(server, client_context(ClientTls("swarm-manager", root, other_authority.issue())))
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client_context(ClientTls("swarm-manager", root, authority.issue())))


@pytest.mark.parametrize("days", [(-100, -10), (10, 100)])
def test_only_contexts_for_members_leave_validity_periods_to_the_caller(
    authority: Authority, days: tuple[int, int]
) -> None:
    start, end = (authority.now + timedelta(days=number) for number in days)
    client = client_context(authority.client(authority.issue(not_before=start, not_after=end)))
    shake_hands(member_context(authority.issue(), authority.pem), client)
    with pytest.raises(ssl.SSLError):
        shake_hands(server_context(authority.issue(), authority.pem), client)


def test_a_context_for_members_still_requires_the_right_root(authority: Authority, other_authority: Authority) -> None:
    with pytest.raises(ssl.SSLError):
        shake_hands(
            member_context(authority.issue(), authority.pem),
            client_context(authority.client(other_authority.issue())),
        )


def test_a_chain_with_a_certificate_that_cannot_be_read_is_not_trusted(authority: Authority) -> None:
    good = chain_of(authority.issue())[0]
    spoiled = good.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x4d", 1)
    for chain in ([spoiled], [good, spoiled]):
        with pytest.raises(UntrustedCertificate, match="malformed"):
            verify_chain(chain, authority.pem, "swarm-manager", authority.now.timestamp())
