"""Every method of CA and NodeCA with certificates of every age and kind: one table says what each of them gets.

    ok          answered
    stranger    as without a certificate: a token is wanted
    superseded  the key is refused, because the node has used a newer one
    denied      PermissionDenied for another reason
    demoted     Unavailable: the node is no manager any more
    handshake   there is no connection

A refusal changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.keys import key_fingerprint, load_leaf, new_csr, new_private_key, private_key_pem
from certs.root import NODE_BACKDATE_S
from certs.tls import Credentials, member_context
from swarm import api
from swarm.api import rpc
from swarm.api.methods import AnyMethod
from swarm.errors import Code, SwarmError
from swarm.grpc.authorize import forwarding_metadata
from swarm.grpc.peer import peer_of
from swarm.manager.certificates import NO_TOKEN
from swarm.rpc import Peer
from swarm.store.tx import Tx
from tests.security.attacked_manager import (
    DAY_S,
    MANAGER_ROLE,
    OTHER_MANAGER,
    OTHER_WORKER,
    REMOVED,
    WAIT_S,
    WORKER,
    WORKER_ROLE,
    AttackedManager,
    Pki,
)

JOINER = "joiner1"
LIFE_S = 7200.0 + NODE_BACKDATE_S
JUST_LAPSED_S = 7200.0 + 600.0
OLDER_S = 1800.0

COLUMNS = ("renew", "renew with a token", "own status", "other's status", "joiner's status", "root", "unlock key")
GOOD = dict.fromkeys(COLUMNS, "ok")


def row(verdict: str, **others: str) -> dict[str, str]:
    """The same verdict in all columns but the root, which anybody gets, and these (with _ for other characters)."""
    named = {
        key.replace("_", " ").replace("others", "other's").replace("joiners", "joiner's"): others[key] for key in others
    }
    assert set(named) <= set(COLUMNS), named
    return {**dict.fromkeys(COLUMNS, verdict), "root": "ok", **named}


WORKERS = row("ok", others_status="denied", unlock_key="denied")
STRANGERS = row("denied", renew="stranger", renew_with_a_token="ok", joiners_status="ok")
REFUSED = row("superseded", own_status="denied", others_status="denied", joiners_status="ok", unlock_key="denied")
REFUSED_MANAGER = {**REFUSED, "unlock key": "superseded"}
VOID = row("denied")
HANDSHAKE = dict.fromkeys(COLUMNS, "handshake")

EXPECTED: dict[str, dict[str, str]] = {
    "no certificate": STRANGERS,
    "worker's": WORKERS,
    "manager's": GOOD,
    "worker's superseded": REFUSED,
    "manager's superseded": REFUSED_MANAGER,
    "worker's superseded and lapsed": REFUSED,
    "manager's superseded and lapsed": REFUSED,
    "worker's of before it became a manager": REFUSED,
    "worker's of before it became a manager, lapsed": REFUSED,
    "worker's lapsed": WORKERS,
    "manager's lapsed": {**GOOD, "unlock key": "denied"},
    "worker's lapsed for too long": VOID,
    "worker's not yet valid": VOID,
    "manager's not yet valid": VOID,
    "lapsed, and the key is not known": row("denied", own_status="ok", joiners_status="ok"),
    "of a key that is newer than the store": WORKERS,
    "demoted manager's": {**WORKERS, "unlock key": "demoted"},
    "removed node's": row("denied", renew="stranger", renew_with_a_token="ok", joiners_status="ok"),
    "another cluster's": row("denied", renew="stranger", renew_with_a_token="ok", joiners_status="ok"),
    "another root's": HANDSHAKE,
    "old root's during a rotation": WORKERS,
    "new root's during a rotation": WORKERS,
    "old root's after a rotation": HANDSHAKE,
    "for servers only": HANDSHAKE,
    "root's own": HANDSHAKE,
    "worker's through a manager": WORKERS,
    "worker's through a stock manager": WORKERS,
    "stranger's through a manager": STRANGERS,
    "worker's superseded through a manager": REFUSED,
    "worker's superseded and lapsed through a manager": REFUSED,
    "worker's lapsed through a manager": WORKERS,
    "worker's through a demoted manager": {**dict.fromkeys(COLUMNS, "demoted")},
    "worker's through a worker": STRANGERS,
    "worker's through a lapsed manager": {**VOID},
}


@dataclass
class Card:
    """What a caller shows: a certificate, and what it says of whom it speaks for. node_id: whose status is its own."""

    credentials: Credentials | None
    node_id: str = WORKER
    metadata: tuple[tuple[str, str], ...] = ()


class Deck:
    """Makes callers, and puts on record what managers know of their nodes."""

    def __init__(self, attacked: AttackedManager) -> None:
        self.attacked = attacked
        self.pki = attacked.pki
        self._nodes: list[Callable[[Tx], None]] = []

    def issue(self, node_id: str, role: str, age_s: float = 0.0) -> Credentials:
        return self.pki.issue(node_id, role, made_at=time.time() - age_s)

    def known(self, node_id: str, credentials: Credentials, role: int | None = None) -> Credentials:
        """The node was seen to use this key. role: which it has by now."""
        leaf = load_leaf(credentials.certificate_pem)

        def change(tx: Tx) -> None:
            node = tx.edit(api.Node, node_id)
            node.authority.key = key_fingerprint(leaf)
            node.authority.certified_from.FromSeconds(int(leaf.not_valid_before_utc.timestamp()))
            if role is not None:
                node.role = node.spec.desired_role = role  # type: ignore[assignment]

        self._nodes.append(change)
        return credentials

    def superseded(self, node_id: str, role: str, age_s: float, now: int | None = None) -> Credentials:
        old = self.issue(node_id, role, age_s)
        self.known(node_id, self.issue(node_id, role), now)
        return old

    async def deal(self, kind: str) -> Card:
        """The caller of this row; afterwards everything is on record."""
        card = self._deal(kind)
        self.known(OTHER_WORKER, self.issue(OTHER_WORKER, WORKER_ROLE))

        def change(tx: Tx) -> None:
            joiner = api.Node(id=JOINER, role=api.WORKER)
            joiner.certificate.status.state = api.IssuanceStatus.ISSUED
            tx.create(joiner)
            for node in self._nodes:
                node(tx)

        await self.attacked.write(change)
        return card

    def _deal(self, kind: str) -> Card:
        plain, _, through = kind.partition(" through a ")
        if through:
            return self._forwarded(plain, through)
        if kind.startswith(("worker's", "manager's", "lapsed", "of a key", "demoted")):
            return self._member(kind)
        return self._outsider(kind)

    def _member(self, kind: str) -> Card:
        manages = kind.startswith("manager's")
        node_id, role = (OTHER_MANAGER, MANAGER_ROLE) if manages else (WORKER, WORKER_ROLE)
        age_s = JUST_LAPSED_S if "lapsed" in kind else 0.0
        if "superseded" in kind:
            return Card(self.superseded(node_id, role, age_s or OLDER_S), node_id)
        if "before it became" in kind:
            return Card(self.superseded(node_id, role, age_s or OLDER_S, api.MANAGER), node_id)
        if "too long" in kind:
            return Card(self.known(node_id, self.issue(node_id, role, 7200.0 + LIFE_S + 600.0)), node_id)
        if "not yet" in kind:
            return Card(self.known(node_id, self.issue(node_id, role, -DAY_S)), node_id)
        if kind.startswith("lapsed"):
            return Card(self.issue(node_id, role, age_s), node_id)
        if kind.startswith("of a key"):
            self.known(node_id, self.issue(node_id, role, OLDER_S))
            return Card(self.issue(node_id, role), node_id)
        if kind.startswith("demoted"):
            return Card(self.known(WORKER, self.issue(WORKER, MANAGER_ROLE)))
        return Card(self.known(node_id, self.issue(node_id, role, age_s)), node_id)

    def _outsider(self, kind: str) -> Card:
        current = self.known(WORKER, self.issue(WORKER, WORKER_ROLE, OLDER_S))
        match kind:
            case "no certificate":
                return Card(None)
            case "removed node's":
                return Card(self.pki.issue(REMOVED, WORKER_ROLE))
            case "another cluster's":
                return Card(self.pki.issue(WORKER, WORKER_ROLE, org="anothercluster"))
            case "another root's":
                return Card(Pki().issue(WORKER, WORKER_ROLE))
            case "for servers only":
                return Card(self._for_servers())
            case "root's own":
                assert self.pki.root.key_pem is not None
                return Card(Credentials(self.pki.root.bundle_pem, self.pki.root.key_pem))
            case _:
                return self._rotation(kind, current)

    def _rotation(self, kind: str, current: Credentials) -> Card:
        new = Pki()
        roots = new.root.bundle_pem if "after" in kind else self.pki.root.bundle_pem + new.root.bundle_pem
        self.attacked.context = member_context(self.attacked.own, roots)
        if kind.startswith("old"):
            return Card(current)
        return Card(self.known(WORKER, new.issue(WORKER, WORKER_ROLE)))

    def _for_servers(self) -> Credentials:
        key, root = new_private_key(), self.pki.root
        assert root.key_pem is not None
        model = load_leaf(self.issue(WORKER, WORKER_ROLE).certificate_pem)
        builder = (
            x509.CertificateBuilder(subject_name=model.subject, issuer_name=model.issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(model.not_valid_before_utc)
            .not_valid_after(model.not_valid_after_utc + timedelta(hours=1))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        signer = serialization.load_pem_private_key(root.key_pem, None)
        signed = builder.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
        return Credentials(signed.public_bytes(serialization.Encoding.PEM), private_key_pem(key))

    def _forwarded(self, plain: str, through: str) -> Card:
        inner = self._outsider("no certificate") if plain == "stranger's" else self._member(plain)
        peer = Peer(addr="10.0.0.9:4000")
        if inner.credentials is not None:
            peer = peer_of(inner.credentials.certificate_pem, "10.0.0.9:4000")
        metadata = forwarding_metadata(peer)
        if "lapsed" in plain:
            metadata += (("sideswarm_cert_lapsed", "true"),)
        if through == "stock manager":
            metadata = tuple(pair for pair in metadata if not pair[0].startswith("sideswarm"))
        forwarder = {
            "demoted manager": lambda: self.issue(OTHER_WORKER, MANAGER_ROLE, 60.0),
            "worker": lambda: self.issue(OTHER_WORKER, WORKER_ROLE, 60.0),
            "lapsed manager": lambda: self.issue(OTHER_MANAGER, MANAGER_ROLE, JUST_LAPSED_S),
        }.get(through, self.attacked.manager)()
        return Card(forwarder, inner.node_id, metadata)


class Calls:
    """Makes the calls of one row."""

    def __init__(self, attacked: AttackedManager, card: Card) -> None:
        self._attacked = attacked
        self._card = card

    def request(self, column: str) -> tuple[AnyMethod, object]:
        token = self._attacked.cluster.root_ca.join_tokens.worker if "token" in column else ""
        asked = {"own status": self._card.node_id, "other's status": OTHER_WORKER, "joiner's status": JOINER}
        if "renew" in column:
            return rpc.ISSUE_NODE_CERTIFICATE, api.IssueNodeCertificateRequest(
                csr=new_csr(new_private_key()), token=token
            )
        if column in asked:
            return rpc.NODE_CERTIFICATE_STATUS, api.NodeCertificateStatusRequest(node_id=asked[column])
        if column == "root":
            return rpc.GET_ROOT_CA_CERTIFICATE, api.GetRootCACertificateRequest()
        return rpc.GET_UNLOCK_KEY, api.GetUnlockKeyRequest()

    async def verdict(self, column: str) -> str:
        """What becomes of the call; a refusal must change nothing."""
        method, request = self.request(column)
        before = self._state()
        try:
            connection = await self._attacked.connect(self._card.credentials)
        except (SwarmError, OSError):
            return "handshake"
        try:
            await connection.unary(method, request, WAIT_S, self._card.metadata)
        except SwarmError as error:
            assert self._state() == before, column
            return _name_of(error)
        finally:
            connection.close()
        return "ok"

    def _state(self) -> list[bytes]:
        store = self._attacked.process.store
        return [obj.SerializeToString(deterministic=True) for obj in (*store.all(api.Node), *store.all(api.Cluster))]


def _name_of(error: SwarmError) -> str:
    if error.message == NO_TOKEN:
        return "stranger"
    if error.code == Code.PERMISSION_DENIED:
        return "superseded" if "the certificate is superseded" in error.message else "denied"
    if error.code == Code.UNAVAILABLE:
        return "demoted" if "was demoted" in error.message else "handshake"
    return str(error)


@pytest.mark.parametrize("kind", EXPECTED)
async def test_each_certificate_gets_from_the_authority_what_the_table_says(
    attacked: AttackedManager, kind: str
) -> None:
    card = await Deck(attacked).deal(kind)
    calls = Calls(attacked, card)
    order = sorted(COLUMNS, key=lambda column: "renew" in column)  # a renewal changes what is on record
    assert {column: await calls.verdict(column) for column in order} == EXPECTED[kind]
