"""Where members of the group seem to be found, until somebody has looked: addresses are adopted when they are proven.

Theory of operation. A member that cannot be reached at its address, and calls from another one, claims by that to be
found there; a leader is told by the others where they find it. Behind NAT, on hosts with several addresses and from a
member that lies such an address is wrong. So the process dials it first and asks whether this very node serves there:

    note -> due (dialled, at most once at a time and once in PEER_DIAL_PAUSE_S for a member) -> settle

One that fails is forgotten, and dialled again when it is claimed again.

(swarmkit: manager/state/raft/transport/peer.go handleAddressChange)
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm import defaults
from swarm.address import at_host, host_of, ip_of, is_unspecified


@dataclass(slots=True)
class _Claim:
    addr: str
    dialled: bool = False


class Claims:
    """By raft ID. now: seconds since the epoch."""

    def __init__(self) -> None:
        self._open: dict[int, _Claim] = {}
        self._not_before: dict[int, float] = {}
        self._told: dict[tuple[int, str], None] = {}

    def note(self, raft_id: int, addr: str) -> None:
        """The newest claim counts, but a dial under way is waited for."""
        claim = self._open.get(raft_id)
        if claim is None or not claim.dialled:
            self._open[raft_id] = _Claim(addr)

    def due(self, now: float) -> list[tuple[int, str]]:
        """The members and addresses to dial now; each is to be settled."""
        found = []
        for raft_id, claim in self._open.items():
            if not claim.dialled and now >= self._not_before.get(raft_id, now):
                claim.dialled = True
                self._not_before[raft_id] = now + defaults.PEER_DIAL_PAUSE_S
                found.append((raft_id, claim.addr))
        return found

    def settle(self, raft_id: int, addr: str) -> bool:
        """A dial has ended; returns whether its outcome counts still."""
        claim = self._open.get(raft_id)
        if claim is None or not claim.dialled or claim.addr != addr:
            return False
        del self._open[raft_id]
        return True

    def is_news(self, raft_id: int, addr: str) -> bool:
        """Whether nobody was told yet that this member is not found there."""
        if (raft_id, addr) in self._told:
            return False
        if len(self._told) >= defaults.PEER_DIAL_FAILURES_TOLD_MAX:
            self._told.clear()
        self._told[raft_id, addr] = None
        return True

    def drop(self, raft_id: int) -> None:
        """It is known where this member is, or it is none any more; what a dial under way finds counts no more."""
        self._open.pop(raft_id, None)
        self._told = {key: None for key in self._told if key[0] != raft_id}

    def keep_only(self, raft_ids: dict[int, None]) -> None:
        """Forget who is gone."""
        for raft_id in [*self._open, *self._not_before]:
            if raft_id not in raft_ids:
                self.drop(raft_id)
                self._not_before.pop(raft_id, None)


def with_host(addr: str, host: str) -> str:
    """``addr`` ("ip:port") with an unspecified address replaced by ``host``: what the leader sees of a joiner."""
    return at_host(host, addr) if is_unspecified(host_of(addr)) else addr


def moved_to(host: str, addr: str) -> str:
    """``addr`` ("ip:port") at another host; empty if others cannot find anybody there, whoever says so.

    This host itself would answer on a loopback address, and takes every node to be there.
    """
    ip = ip_of(host)
    if ip is None or ip.is_unspecified or ip.is_multicast or (ip.is_link_local and ip.version == 6):
        return ""
    known = ip_of(host_of(addr))
    if ip.is_loopback and not (known is not None and known.is_loopback):
        return ""
    return at_host(str(ip), addr)
