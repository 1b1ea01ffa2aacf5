"""When a node renews its certificate, and how it backs off after a failure.

Theory of operation. A node renews its certificate at a random moment between 50 and 80 % of its lifetime, so that nodes
that joined together do not renew together. A manager can request renewal at once (Session: another role, root
rotation). One attempt runs at a time: Renew goes out, Renewed or Failed comes back. After a failure, or when the new
certificate has another role than requested, the next attempt follows after a random delay that grows to an hour. It is
dropped if the managers meanwhile want the role that the certificate already has.

    waiting --due or RenewNow--> renewing --Renewed--> waiting
                                    └------Failed----> backing off --due--> renewing

(swarmkit: ca/renewer.go)
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

RENEW_AFTER_LIFE_MIN = 0.5
RENEW_AFTER_LIFE_MAX = 0.8
RENEW_NOW_DELAY_S = 0.5
BACKOFF_BASE_S = 5.0
BACKOFF_FACTOR_S = 5.0
BACKOFF_MAX_S = 3600.0


@dataclass(frozen=True, slots=True)
class RenewNow:
    """A manager or the user wants a new certificate. role: the role that it must have; empty for any."""

    role: str = ""


@dataclass(frozen=True, slots=True)
class RightRole:
    """The current certificate has the role that the managers want: stop waiting for another one."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """A new certificate is in use: its validity period (seconds since the epoch) and its role."""

    valid_from_s: float
    valid_until_s: float
    role: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Effect: ask a manager for a new certificate, then report Renewed or Failed."""


Event = RenewNow | RightRole | Renewed | Failed


def backoff_s(failures: int, base_s: float, factor_s: float, max_s: float, rng: Random) -> float:
    """A random delay below base + factor * 2 ** (failures - 1) seconds, at most ``max_s``; 0 without failures."""
    if failures <= 0:
        return 0.0
    doublings = min(failures - 1, 60)
    return rng.uniform(0.0, min(max_s, base_s + factor_s * 2**doublings))


class Renewal:
    """A Machine: Event in, Renew out. It starts from the current certificate's validity (seconds since the epoch)."""

    def __init__(self, valid_from_s: float, valid_until_s: float, rng: Random) -> None:
        self._rng = rng
        self._failures = 0
        self._role = ""
        self._renewing = False
        self._again = False
        self._planned_s = self._planned(valid_from_s, valid_until_s)
        self._due_s = self._planned_s

    def handle(self, event: Event | None, now: float) -> list[Renew]:
        """Handle one event; None means that the deadline has passed."""
        match event:
            case RenewNow(role):
                self._role = role or self._role
                self._again = True
                if not self._renewing:
                    self._due_s = min(self._due_s, now + RENEW_NOW_DELAY_S)
            case RightRole():
                self._expect_nothing()
            case Failed():
                self._renewing = False
                self._back_off(now)
            case Renewed(valid_from_s, valid_until_s, role):
                self._renewing = False
                self._due_s = self._planned_s = self._planned(valid_from_s, valid_until_s)
                self._judge_after(self._failures, role, now)
            case None:
                pass
        if self._renewing or now < self._due_s:
            return []
        self._renewing, self._again = True, False
        return [Renew()]

    def deadline(self) -> float | None:
        """When the next attempt is due, in seconds since the epoch; None while one is running."""
        return None if self._renewing else self._due_s

    def _planned(self, valid_from_s: float, valid_until_s: float) -> float:
        share = self._rng.uniform(RENEW_AFTER_LIFE_MIN, RENEW_AFTER_LIFE_MAX)
        return valid_from_s + (valid_until_s - valid_from_s) * share

    def _expect_nothing(self) -> None:
        """Stop waiting for another role, and drop the attempts planned for it."""
        if self._role:
            self._role = ""
            self._failures = 0
            if not self._again:
                self._due_s = self._planned_s

    def _judge_after(self, failures: int, role: str, now: float) -> None:
        """Clocks may differ by so much that the new certificate is due at once; so would be the next one, and so on."""
        self._judge(role, now)
        if self._due_s <= now:
            self._failures = failures
            self._back_off(now)

    def _judge(self, role: str, now: float) -> None:
        """Check whether the new certificate is what was requested; a request that came meanwhile needs another one."""
        if self._role and role != self._role:
            if self._again:  # this certificate was requested before that role was: it says nothing about the next one
                self._due_s = min(self._due_s, now + RENEW_NOW_DELAY_S)
            else:
                self._back_off(now)
            return
        self._role = ""
        self._failures = 0
        if self._again:
            self._due_s = min(self._due_s, now + RENEW_NOW_DELAY_S)

    def _back_off(self, now: float) -> None:
        self._failures += 1
        delay_s = backoff_s(self._failures, BACKOFF_BASE_S, BACKOFF_FACTOR_S, BACKOFF_MAX_S, self._rng)
        self._due_s = now + max(delay_s, RENEW_NOW_DELAY_S)
