"""How fast a group of ours ticks: as fast as the round trips to its members allow.

A tick should be no shorter than the way to a member and back, and elections wait ten of them (the Raft paper, 5.6:
broadcast time << election timeout). What counts for this member is the way to its leader, whose silence it has to
judge, and to the nearest members that make a majority with it, which it would need as the leader. So a single member
that is far away is patient itself and slows down nobody else.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from swarm import defaults
from swarm.raft.progress import quorum


class RoundTrips:
    """Round trips as they were measured, by Raft id, and the tick that follows from them."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._tick_s = defaults.RAFT_FAST_TICK_S

    def measured(self, raft_id: int, round_trip_s: float) -> None:
        """A message to this member was answered after so many seconds."""
        samples = self._samples.setdefault(raft_id, deque(maxlen=defaults.RAFT_ROUND_TRIP_SAMPLES))
        samples.append(round_trip_s)

    def tick_s(self, others: Iterable[int], leader: int) -> float:
        """Seconds for a tick. others: Raft ids of the other members; leader: of who leads, or any other number.

        It grows at once, in steps, and shrinks again only when half of it would do: a group does not change its time
        with every breath of the network. The median of a few measurements is taken: a hiccup is no distance.
        """
        others = list(others)
        for raft_id in [raft_id for raft_id in self._samples if raft_id not in others]:
            del self._samples[raft_id]
        ways = {raft_id: median(samples) for raft_id, samples in self._samples.items()}
        needed = quorum(len(others) + 1) - 1
        way_s = max([ways.get(leader, 0.0), *sorted(ways.values())[:needed]])
        step = defaults.RAFT_FAST_TICK_S
        wanted = min(max(math.ceil(way_s / step), 1) * step, defaults.RAFT_TICK_S)
        if wanted > self._tick_s or wanted <= self._tick_s / 2:
            self._tick_s = wanted
        return self._tick_s
