"""What a member's log holds from write to write, what its mark may say meanwhile, and whether both agree at a start.

Decisions only: swarm/io/disk/log_guard.py performs them on files, and the simulator on its disks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from swarm.raft.confirmed import Confirmed
from swarm.raft.events import Persist


class Ledger:
    """Of a log that is open. One transaction: begin, what it is about, remaining, and committed if it is on disk."""

    def __init__(self) -> None:
        self._now = Confirmed()  # what the log holds
        self._next = Confirmed()  # what it will hold after this transaction
        self._kept: tuple[int, int] | None = None  # index and term of the last entry that this transaction keeps

    def opened(self, found: Confirmed) -> None:
        """The log is open, and holds this."""
        self._now = self._next = found

    def begin(self) -> None:
        """A transaction begins; what an earlier one that failed was about is void."""
        self._next, self._kept = self._now, None

    def note(self, persist: Persist) -> None:
        """This is part of the transaction."""
        if persist.replaces_log:
            self.keep_until(0, 0)
        self._next = self._next.after(persist)

    def keep_until(self, index: int, term: int) -> None:
        """Entries after this one are deleted or replaced."""
        if self._kept is None or index < self._kept[0]:
            self._kept = index, term

    def owned_by(self, raft_id: int) -> None:
        """The log gets another owner, 0: none and all is deleted."""
        if raft_id:
            self._next = replace(self._next, raft_id=raft_id)
        else:
            self._next = Confirmed()
            self.keep_until(0, 0)

    def remaining(self, marked: Confirmed) -> Confirmed:
        """What of the mark stays true whether the transaction comes about or not.

        If that is less than the mark says, the mark must say it, and be synchronised, before the commit.
        """
        return marked if self._kept is None else marked.until(self._next, *self._kept)

    def committed(self) -> Confirmed:
        """The transaction is on disk. Returns what the mark is to say now, before anybody is told."""
        self._now = self._next
        return self._now


def doubt(expected: Confirmed, trouble: str, marked: bool, found: Confirmed, term_at: Callable[[int], int]) -> str:
    """Why a log must not be used that holds ``found``, for users; empty: it may be.

    expected: what its mark says. trouble: why that cannot be told. marked: whether there must be a mark. term_at: of an
    entry, 0 if it is gone.
    """
    if trouble and marked:
        return f"{trouble}: so it cannot be told whether the log is whole"
    lost = expected.lost_in(found, term_at)
    return f"part of the log is lost: {lost}" if lost else ""
