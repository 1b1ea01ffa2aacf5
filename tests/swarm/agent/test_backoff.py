"""When an agent tries which manager again."""

from __future__ import annotations

from swarm import api, defaults
from swarm.agent.events import Connect, Connected, ConnectionLost
from swarm.errors import Aborted, Unavailable
from swarm.rpc import Call
from tests.swarm.agent.test_agent import M1, AgentHarness, only


def test_the_next_session_carries_the_last_session_id_and_tries_again_later_and_later() -> None:
    driver = AgentHarness()
    driver.register()
    driver.fail("Session", Aborted("node must disconnect"))
    only(driver.connect(), Call)
    longest = []
    for _ in range(40):
        driver.fail("Session", Unavailable("no"))
        deadline = driver.agent.deadline()
        assert deadline is not None
        longest.append(deadline - driver.now)
        request = only(driver.connect(), Call).request
        assert isinstance(request, api.SessionRequest)
        assert request.session_id == "sid"
    assert longest[0] <= 0.3
    assert 4.0 < max(longest) <= defaults.SESSION_BACKOFF_MAX_S


def test_managers_that_cannot_be_reached_are_passed_over_without_a_pause_until_none_is_left() -> None:
    driver = AgentHarness()
    driver.register()
    driver.remotes.learn([("m3", "10.0.0.3:2377")])
    for _ in range(6):  # a long back-off: these were reached, and said no
        driver.fail("Session", Unavailable("no"))
        driver.connect()
    driver.fail("Session", Unavailable("no"))
    for _ in range(10):
        tried = []
        for left in (2, 1, 0):
            connect = only(driver.due(), Connect)
            tried.append(connect.node_id)
            driver.tell(ConnectionLost(connect.connection, "connection refused"))
            pause = (driver.agent.deadline() or 0.0) - driver.now
            assert pause <= (defaults.SESSION_BACKOFF_BASE_S if left else defaults.SESSION_BACKOFF_MAX_S)
        assert sorted(tried) == ["m1", "m2", "m3"]
    assert pause > defaults.SESSION_BACKOFF_BASE_S


def test_a_manager_that_was_reached_after_others_were_not_may_be_tried_again() -> None:
    driver = AgentHarness()
    driver.register()
    driver.remotes.observe(M1, 1000)
    driver.fail("Session", Unavailable("no"))
    for _ in range(20):
        connect = only(driver.due(), Connect)
        if connect.node_id == "m1":
            driver.tell(ConnectionLost(connect.connection, "connection refused"))
        else:
            driver.tell(Connected(connect.connection))
            driver.fail("Session", Unavailable("no"))
    assert {effect.node_id for effect in driver.seen[-60:] if isinstance(effect, Connect)} == {"m1", "m2"}


def test_the_back_off_starts_over_after_a_good_session() -> None:
    driver = AgentHarness()
    driver.connect()
    for _ in range(6):
        driver.fail("Session", Unavailable("no"))
        driver.connect()
    driver.session_message()
    driver.fail("Session", None)
    deadline = driver.agent.deadline()
    assert deadline is not None
    assert deadline - driver.now <= defaults.SESSION_BACKOFF_BASE_S
