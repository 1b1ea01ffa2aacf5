"""Read barriers: a leader proves by one round of heartbeats that it still leads.

A read notes the commit index and waits until a majority has answered heartbeats that carry the number of its round;
the leader led when the round began, so nothing newer can have been decided elsewhere. Reads that arrive during a round
share the next one. (Ongaro, dissertation, 6.4; etcd/raft: read_only.go)
"""

from __future__ import annotations

from collections.abc import Callable

from swarm.raft.membership import Membership

_ROUND_BYTES = 8


class ReadIndex:
    """The open reads of one leadership, as (index, tag)."""

    def __init__(self, raft_id: int, membership: Membership, broadcast_heartbeat: Callable[[], None]) -> None:
        """broadcast_heartbeat: sends heartbeats that carry ``context``."""
        self._raft_id = raft_id
        self._membership = membership
        self._broadcast_heartbeat = broadcast_heartbeat
        self._round = 0
        self._acks: set[int] = set()
        self._in_round: list[tuple[int, int]] = []
        self._waiting: list[tuple[int, int]] = []
        self.confirmed: list[tuple[int, int]] = []
        """Reads that may be answered once their index is applied."""

    @property
    def context(self) -> bytes:
        """What heartbeats carry: the number of the round; nothing while there is none."""
        return self._round.to_bytes(_ROUND_BYTES, "big") if self._in_round else b""

    def add(self, index: int, tag: int) -> None:
        """Confirm leadership for this read, which must see everything up to index."""
        self._waiting.append((index, tag))
        if not self._in_round:
            self._begin_round()

    def acknowledge(self, raft_id: int, context: bytes) -> None:
        """A follower answered a heartbeat that carried this context."""
        if self._in_round and context == self.context:
            self._acks.add(raft_id)
            self._finish_round()

    def membership_changed(self) -> None:
        """Fewer voters may be enough now."""
        if self._in_round:
            self._finish_round()

    def _begin_round(self) -> None:
        self._in_round, self._waiting = self._waiting, []
        self._round += 1
        self._acks = {self._raft_id}
        if self._membership.alone(self._raft_id):
            self._finish_round()
        else:
            self._broadcast_heartbeat()

    def _finish_round(self) -> None:
        acks = sum(1 for raft_id in self._membership.voters if raft_id in self._acks)
        if acks < self._membership.quorum:
            return
        self.confirmed += self._in_round
        self._in_round = []
        if self._waiting:
            self._begin_round()

    def take_ready(self, applied: int) -> list[tuple[int, int]]:
        """Remove and return the confirmed reads whose index is applied."""
        ready = [read for read in self.confirmed if read[0] <= applied]
        self.confirmed = [read for read in self.confirmed if read[0] > applied]
        return ready

    def open(self) -> list[int]:
        """Tags of all reads that are not answered."""
        return [tag for _, tag in self.confirmed + self._in_round + self._waiting]

    def check(self) -> None:
        """Assert what must always hold."""
        assert self._in_round or not self._waiting
