"""A thief who copies nodes' keys and certificates, and comes with them when the nodes have newer ones.

What is superseded is judged by the nodes alone, and not by what managers have on record: a node was told that its
session is established, with a key that it got after the stolen one. From then on nobody may give the thief a
certificate, whether his copy is still valid or has lapsed. When the faults are over he gets no session either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from swarm import api
from swarm.api import rpc
from swarm.errors import SwarmError
from swarm.grpc.peer import peer_of
from swarm.node.events import RenewCertificateNow
from swarm.rpc import Call, Peer, StreamData, StreamEnd
from tests.sim.kernel import Future, Script
from tests.sim.keys import new_key
from tests.sim.network import Answer, Connection

if TYPE_CHECKING:
    from tests.sim.world import Node, World

HOST = "10.9.0.1"
CALL_LIMIT_S = 10.0
_FIRST_KEY = 1_000_000
_SHARE_OF_WORLDS = 0.5


class Holders:
    """Which keys each node got, oldest first, and up to which of them it was seen to use them."""

    def __init__(self) -> None:
        self._keys: dict[str, list[bytes]] = {}
        self._used: dict[str, int] = {}

    def got(self, node_id: str, key: bytes) -> None:
        """It is on the node's disk."""
        keys = self._keys.setdefault(node_id, [])
        if key not in keys:
            keys.append(key)

    def established(self, node_id: str, key: bytes) -> None:
        """The node has a session for which it showed this key."""
        keys = self._keys.get(node_id, [])
        if key in keys:
            self._used[node_id] = max(self._used.get(node_id, 0), keys.index(key))

    def superseded(self, node_id: str, key: bytes) -> bool:
        """Whether the node has used a newer one."""
        keys = self._keys.get(node_id, [])
        return key in keys and keys.index(key) < self._used.get(node_id, 0)


@dataclass
class _Guise:
    """The thief as the network sees him, with one of his copies (tests.sim.network.Caller)."""

    identity: Peer
    connections: dict[int, Connection]
    host: str = HOST
    alive: bool = True


class Thief:
    """Steals and tries while ``world.faulty``, in some worlds."""

    def __init__(self, world: World) -> None:
        self.tries = 0
        self._world = world
        self._kernel = world.kernel
        self._rng = Random(f"{world.kernel.seed}/thief")
        self._copies: list[Peer] = []
        self._keys = 0

    def start(self) -> None:
        """From now on."""
        if self._rng.random() < _SHARE_OF_WORLDS:
            self._world.scope.run(self._live())

    def _live(self) -> Script:
        while self._world.faulty:
            yield self._kernel.sleep(self._rng.expovariate(0.5))
            nodes = [node for node in self._world.alive() if not node.gone and node.disk.key_file is not None]
            if nodes and self._rng.random() < 0.5:
                self._steal(self._rng.choice(nodes))
            stale, managing = self._stale(), self._world.managing()
            if stale and managing:
                yield from self._ask(self._rng.choice(stale), self._rng.choice(managing))

    def _steal(self, node: Node) -> None:
        peer = peer_of(node.disk.certificate_pem, f"{HOST}:40000")
        if peer not in self._copies:
            self._copies.append(peer)
            self._kernel.say("stolen from", node.name)
        if node.process is not None and self._rng.random() < 0.5:
            node.process.driver.put(RenewCertificateNow())

    def _stale(self) -> list[Peer]:
        holders = self._world.holders
        return [peer for peer in self._copies if holders.superseded(peer.node_id, peer.key)]

    def _ask(self, copy: Peer, node: Node) -> Script:
        """For a certificate, with a key of the thief's own."""
        self.tries += 1
        self._keys += 1
        lapsed = self._rng.random() < 0.5
        peer = replace(copy, certificate_error="x509: too late", renewable=True) if lapsed else copy
        csr = new_key(_FIRST_KEY + self._keys).csr
        self._world.checkers.stolen[csr] = copy.node_id
        request = api.IssueNodeCertificateRequest(csr=csr)
        self._kernel.say("thief asks", node.name, copy.node_id, "lapsed" if lapsed else "")
        try:
            connection = yield self._connect(peer, node)
            try:
                yield from connection.unary(rpc.ISSUE_NODE_CERTIFICATE, request, CALL_LIMIT_S)
            finally:
                connection.close()
        except SwarmError as error:
            self._kernel.say("thief is refused:", error)
            return
        raise AssertionError(f"a superseded key of node {copy.node_id} got a certificate")

    def _connect(self, peer: Peer, node: Node) -> Future:
        return self._world.network.dial(_Guise(peer, {}), f"{node.host}:2377", CALL_LIMIT_S)

    # --- when the faults are over ----------------------------------------------------------------------------------

    def gets_nothing(self) -> Script:
        """Every superseded copy is tried with every manager: no certificate, no session."""
        for copy in self._stale():
            for node in self._world.managing():
                yield from self._ask(copy, node)
                yield from self._open_session(copy, node)

    def _open_session(self, copy: Peer, node: Node) -> Script:
        heard = Future()

        def listen(answer: Answer) -> None:
            if isinstance(answer, StreamEnd):
                heard.fail(answer.error or SwarmError("ended"))
            else:
                heard.resolve(answer)

        try:
            connection = yield self._connect(copy, node)
        except SwarmError:
            return
        connection.open(Call(1, rpc.SESSION.name, api.SessionRequest()), listen)
        self._kernel.within(heard, CALL_LIMIT_S)
        try:
            answer = yield heard
        except SwarmError as error:
            self._kernel.say("thief gets no session:", error)
            return
        finally:
            connection.close()
        assert not isinstance(answer, StreamData), f"a superseded key of node {copy.node_id} got a session"
