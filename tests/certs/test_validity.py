"""When a certificate counts, when it may only be renewed, and what the message says about clocks."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.keys import pem_blocks
from certs.tls import Credentials, member_context
from certs.validity import clock_difference, format_duration, own_certificate_error, validity_of

if TYPE_CHECKING:
    from tests.conftest import Authority

DAY = timedelta(days=1)
WINDOW_S = 30 * 86400.0


class Manager:
    """Drives certs.validity.validity_of with certificates of any lifetime, as a manager of the same root does."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.context = member_context(authority.issue(), authority.pem)

    def issue(self, days: float, ended_days_ago: float, intermediates: bytes = b"") -> Credentials:
        end = self.authority.now - timedelta(days=ended_days_ago)
        return self.authority.issue(
            "n1", "swarm-worker", not_before=end - timedelta(days=days), not_after=end, intermediates=intermediates
        )

    def judge(self, credentials: Credentials, at: datetime | None = None) -> tuple[bool, bool, str]:
        """(counts, renewable, reason)."""
        chain = [block.body for block in pem_blocks(credentials.certificate_pem)]
        found = validity_of(chain, self.context, (at or self.authority.now).timestamp(), WINDOW_S)
        return not found.error, found.renewable, found.error


@pytest.fixture(scope="module")
def judge(authority: Authority) -> Manager:
    return Manager(authority)


def test_a_certificate_counts_while_it_is_valid(judge: Manager) -> None:
    assert judge.judge(judge.issue(90, -1)) == (True, False, "")


def test_an_expired_one_may_be_renewed_and_the_reason_names_node_dates_and_clock(judge: Manager) -> None:
    root_time = judge.authority.now + 100 * DAY
    credentials = judge.authority.issue("n1", not_after=root_time - 2 * DAY)
    counts, renewable, reason = judge.judge(credentials, root_time)
    assert (counts, renewable) == (False, True)
    assert reason.startswith(
        "x509: certificate has expired or is not yet valid: the certificate of node n1 expired at "
    )
    assert f"2d before this manager's clock ({root_time:%Y-%m-%dT%H:%M:%SZ})" in reason
    assert reason.endswith(": it can only be renewed")


@pytest.mark.parametrize(
    ("life_days", "late_days", "renewable"),
    [(90, 29, True), (90, 31, False), (1, 0.9, True), (1, 1.1, False), (1 / 12, 1, False), (400, 40, False)],
)
def test_the_window_is_as_long_as_the_life_and_a_month_at_most(
    judge: Manager, life_days: float, late_days: float, renewable: bool
) -> None:
    later = judge.authority.now + 1000 * DAY  # the root is older than any certificate
    end = later - timedelta(days=late_days)
    credentials = judge.authority.issue("n1", not_before=end - timedelta(days=life_days), not_after=end)
    counts, may_renew, reason = judge.judge(credentials, later)
    assert (counts, may_renew) == (False, renewable)
    assert ("leave the swarm and join again" in reason) == (not renewable)


def test_one_from_the_future_does_not_count_and_cannot_be_renewed(judge: Manager) -> None:
    early = judge.authority.now - timedelta(hours=4, minutes=30, seconds=30)
    counts, renewable, reason = judge.judge(judge.authority.issue("n1"), early)
    assert (counts, renewable) == (False, False)
    assert "node n1 is valid from" in reason
    assert f"3h30m ahead of this manager's clock ({early:%Y-%m-%dT%H:%M:%SZ})" in reason


def test_a_certificate_that_ended_before_its_root_began_is_not_renewable(judge: Manager) -> None:
    counts, renewable, reason = judge.judge(judge.issue(90, 1))  # the root is as old as the test
    assert (counts, renewable) == (False, False)
    assert reason


def test_an_expired_root_is_refused(judge: Manager) -> None:
    far = judge.authority.now + 7301 * DAY
    credentials = judge.authority.issue("n1", not_before=far - DAY, not_after=far + DAY)
    assert judge.judge(credentials, far) == (False, False, "x509: certificate signed by unknown authority")


def test_what_cannot_be_read_does_not_count(judge: Manager) -> None:
    assert not validity_of([b"0\x03\x02\x01\x05"], judge.context, 0.0, WINDOW_S).renewable
    assert validity_of([b"0\x03\x02\x01\x05"], judge.context, 0.0, WINDOW_S).error == "malformed certificate"


def test_a_node_knows_what_is_wrong_with_its_own(authority: Authority) -> None:
    certificate, now = authority.issue().certificate_pem, authority.now.timestamp()
    assert own_certificate_error(certificate, now) == ""
    late, early = (
        own_certificate_error(certificate, now + 91 * 86400),
        own_certificate_error(certificate, now - 2 * 3600 - 30),
    )
    assert "this node's certificate expired at" in late
    assert "1d before this node's clock" in late
    assert "1h ahead of this node's clock" in early


def test_clocks_are_named_when_they_differ() -> None:
    assert clock_difference(1000.0, 1059.0, "m1") == ""
    assert clock_difference(0.0, 7500.0, "m1") == (
        "the clocks differ: this node's says 1970-01-01T00:00:00Z, that of m1 says 1970-01-01T02:05:00Z, 2h5m ahead"
    )
    assert clock_difference(90000.0, 0.0, "m1").endswith("1d1h behind")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59, "59s"), (70, "1m10s"), (3600, "1h"), (7500, "2h5m"), (266400, "3d2h")]
)
def test_durations_are_written_in_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e10))
def test_every_duration_has_a_text(seconds: float) -> None:
    assert format_duration(seconds)
