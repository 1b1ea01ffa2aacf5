"""When certificates are renewed."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from certs.renewal import (
    BACKOFF_MAX_S,
    RENEW_NOW_DELAY_S,
    Event,
    Failed,
    Renew,
    Renewal,
    Renewed,
    RenewNow,
    RightRole,
    backoff_s,
)

SEEDS = st.integers(0, 2**32)


def renewal(seed: int = 1, start_s: float = 0.0, end_s: float = 1000.0) -> Renewal:
    return Renewal(start_s, end_s, Random(seed))


def due(machine: Renewal) -> float:
    deadline = machine.deadline()
    assert deadline is not None
    return deadline


def fresh(now: float, role: str = "swarm-worker") -> Renewed:
    return Renewed(now, now + 1000.0, role)


@given(SEEDS)
def test_a_certificate_is_renewed_between_50_and_80_percent_of_its_life(seed: int) -> None:
    machine = renewal(seed)
    assert 500.0 <= due(machine) <= 800.0
    assert machine.handle(None, 499.0) == []
    assert machine.handle(None, due(machine)) == [Renew()]


def test_nodes_do_not_come_back_together() -> None:
    assert len({due(renewal(seed)) for seed in range(100)}) == 100


def test_only_one_attempt_runs_at_a_time() -> None:
    machine = renewal()
    machine.handle(None, 800.0)
    assert machine.deadline() is None
    assert machine.handle(None, 900.0) == []
    assert machine.handle(RenewNow(), 900.0) == []


def test_after_a_renewal_the_next_one_is_planned_from_the_new_validity() -> None:
    machine = renewal()
    machine.handle(None, 800.0)
    assert machine.handle(fresh(800.0), 801.0) == []
    assert 1300.0 <= due(machine) <= 1600.0


def test_an_expired_certificate_is_renewed_at_once() -> None:
    assert renewal().handle(None, 5000.0) == [Renew()]


def test_a_manager_gets_a_renewal_after_a_short_pause() -> None:
    machine = renewal()
    assert machine.handle(RenewNow(), 10.0) == []
    assert due(machine) == 10.0 + RENEW_NOW_DELAY_S
    assert machine.handle(None, 10.0 + RENEW_NOW_DELAY_S) == [Renew()]


def test_requests_in_a_row_are_one_renewal() -> None:
    machine = renewal()
    for moment in (10.0, 10.1, 10.2):
        machine.handle(RenewNow(), moment)
    machine.handle(None, 10.5)
    machine.handle(fresh(11.0), 11.0)
    assert due(machine) > 500.0


def test_a_request_during_an_attempt_makes_another_one() -> None:
    machine = renewal()
    machine.handle(None, 800.0)
    machine.handle(RenewNow(), 801.0)
    machine.handle(fresh(802.0), 802.0)
    assert due(machine) == 802.0 + RENEW_NOW_DELAY_S


@given(SEEDS, st.integers(1, 40))
def test_failures_are_backed_off_up_to_an_hour(seed: int, failures: int) -> None:
    machine = renewal(seed)
    now = 800.0
    for count in range(1, failures + 1):
        assert machine.handle(None, now) == [Renew()]
        machine.handle(Failed(), now)
        assert RENEW_NOW_DELAY_S <= due(machine) - now <= min(BACKOFF_MAX_S, 5.0 + 5.0 * 2 ** (count - 1))
        now = due(machine)


def test_a_certificate_with_the_wrong_role_is_a_failure() -> None:
    machine = renewal()
    machine.handle(RenewNow("swarm-manager"), 10.0)
    machine.handle(None, 10.5)
    machine.handle(fresh(11.0), 11.0)
    assert 11.0 < due(machine) <= 21.0
    assert machine.handle(None, due(machine)) == [Renew()]
    machine.handle(fresh(30.0, "swarm-manager"), 30.0)
    assert due(machine) >= 530.0


def test_a_certificate_requested_before_the_role_changed_is_not_a_failure() -> None:
    """A demoted manager must have its certificate as a worker before it may join its group again."""
    machine = Renewal(0.0, 1000.0, Random(1))
    assert machine.handle(RenewNow(), 100.0) == []
    assert machine.handle(None, 100.0 + RENEW_NOW_DELAY_S) == [Renew()]
    assert machine.handle(RenewNow("swarm-worker"), 101.0) == []
    assert machine.handle(fresh(102.0, "swarm-manager"), 102.0) == []
    assert due(machine) == 102.0 + RENEW_NOW_DELAY_S


def test_a_role_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    machine = renewal()
    machine.handle(RenewNow("swarm-manager"), 100.0)
    assert machine.handle(None, 101.0) == [Renew()]
    machine.handle(fresh(102.0), 102.0)
    assert due(machine) < 200.0, "it came with the old role, so there is another attempt soon"
    machine.handle(RightRole(), 103.0)
    assert due(machine) >= 102.0 + 500.0
    machine.handle(RenewNow(), 104.0)
    machine.handle(RightRole(), 104.1)
    assert due(machine) == 104.0 + RENEW_NOW_DELAY_S, "of the role nothing was said"


def test_failures_are_backed_off_whatever_the_role_is() -> None:
    machine = renewal()
    machine.handle(RenewNow(), 100.0)
    assert machine.handle(None, 101.0) == [Renew()]
    machine.handle(Failed(), 102.0)
    soon = due(machine)
    machine.handle(RightRole(), 103.0)
    assert due(machine) == soon


def test_success_forgets_earlier_failures() -> None:
    machine = renewal()
    now = 800.0
    for _ in range(12):
        machine.handle(None, now)
        machine.handle(Failed(), now)
        now = due(machine)
    machine.handle(None, now)
    machine.handle(fresh(now), now)
    machine.handle(None, due(machine))
    machine.handle(Failed(), now + 1000.0)
    assert due(machine) - (now + 1000.0) <= 10.0


EVENTS = st.one_of(
    st.none(), st.just(Failed()), st.builds(RenewNow, st.sampled_from(["", "swarm-manager"])), st.just("renewed")
)


@given(SEEDS, st.lists(st.tuples(st.floats(0, 2000), EVENTS), max_size=40))
def test_whatever_happens_there_is_an_attempt_running_or_planned(
    seed: int, steps: list[tuple[float, Event | str | None]]
) -> None:
    machine = renewal(seed)
    now = 0.0
    for wait_s, step in steps:
        now += wait_s
        running = machine.deadline() is None
        if step == "renewed":
            step = fresh(now)
        assert not isinstance(step, str)
        if not running and isinstance(step, Failed | Renewed):
            continue
        effects = machine.handle(step, now)
        deadline = machine.deadline()
        assert (deadline is None) == (effects == [Renew()] or (running and not isinstance(step, Failed | Renewed)))
        assert deadline is None or deadline > now or effects == [Renew()]


def test_without_failures_there_is_no_delay() -> None:
    assert backoff_s(0, 1.0, 1.0, 30.0, Random(1)) == 0.0


def test_a_new_certificate_that_is_due_at_once_is_not_renewed_without_a_pause() -> None:
    """The clock of who issued it is far behind: the next one would be due at once, too, and so on without an end."""
    machine = renewal()
    now = due(machine)
    assert machine.handle(None, now) == [Renew()]
    attempts = 0
    end = now + 3600.0
    while now < end:
        assert machine.handle(Renewed(now - 1000.0, now, "swarm-worker"), now) == []
        assert due(machine) >= now + RENEW_NOW_DELAY_S
        now = due(machine)
        assert machine.handle(None, now) == [Renew()]
        attempts += 1
    assert attempts < 30, "pauses grow"
