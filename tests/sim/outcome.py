"""What one seed of a simulation did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Outcome:
    """virtual_s: how long it took in the simulated world. converged_s: of that, after the last fault.

    The rare things: lost: disks. forced: clusters made anew from one member. moved: machines that got another address.
    mixed: whether some members were of another make, or only followed. logs: how many readers of logs got all lines.
    """

    seed: int
    trace: str
    virtual_s: float
    events: int
    decided: int
    acknowledged: int
    reads: int
    converged_s: float
    lost: int
    forced: int
    moved: int
    mixed: bool
    logs: int
    ailments: dict[str, int]
    replaced: int
