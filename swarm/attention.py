"""How much of the time a machine has seen pass: what it slept through must not count against others.

A process may stand still: it is stopped, its machine is suspended or starved, its clock jumps. When it goes on, all its
deadlines are due at once, and what the others sent meanwhile still waits in its sockets. So a machine notes when it is
to be woken at the latest. If it is woken more than STALL_S later, nobody has observed the time between: the machine
moves the deadlines of others by it, and what waits is read before anything is decided. (Raft does the same for
elections, swarm/raft/timer.py.)
"""

from __future__ import annotations

from swarm import defaults


class Attention:
    """When a machine expects to look at the clock again."""

    def __init__(self) -> None:
        self.due: float | None = None
        """When it is to be woken at the latest, in seconds since the epoch; None: it waits for nobody."""

    def missed_s(self, now: float) -> float:
        """The machine looks now: for how many seconds it had stood still, usually 0."""
        return now - self.due if self.due is not None and now - self.due > defaults.STALL_S else 0.0
