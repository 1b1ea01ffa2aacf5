"""A manager whose process stood still: it judges nobody by the time that it did not see pass."""

from __future__ import annotations

import pytest

from swarm import api, defaults
from swarm.rpc import WORKER_ROLE, Peer, Reply, StreamData
from tests.fuzz.house import CLUSTER, House, furnish

WORKER = Peer("n2", WORKER_ROLE, CLUSTER, "10.0.0.2:4000")


class Stalled:
    """Drives a House with worker n2 in session, whose manager may stand still."""

    def __init__(self) -> None:
        self.house = House(furnish())
        self.session_id = self.register()

    def register(self) -> str:
        """The worker opens a session."""
        answers = self.house.call("Dispatcher/Session", api.SessionRequest(), WORKER)
        answers += [word for word in self.pass_time(1.0) if word.stream == self.house.stream]
        message = next(word.message for word in answers if isinstance(word, StreamData))
        assert isinstance(message, api.SessionMessage)
        return message.session_id

    def pass_time(self, seconds: float) -> list[StreamData]:
        """The manager is woken whenever it wants to be."""
        house, out = self.house, []
        end = house.now + seconds
        while (due := house.manager.deadline()) is not None and due <= end:
            house.now = max(house.now, due)
            out += house.settle()
        house.now = end
        return [word for word in out if isinstance(word, StreamData)]

    def stall(self, seconds: float) -> None:
        """It stands still; then its deadlines are due before anything is read."""
        self.house.now += seconds
        self.house.tell(None)
        self.house.settle()

    def beat(self) -> None:
        """A heartbeat, which must be answered."""
        request = api.HeartbeatRequest(session_id=self.session_id)
        (answer,) = self.house.call("Dispatcher/Heartbeat", request, WORKER)
        assert isinstance(answer, Reply)

    @property
    def state(self) -> api.NodeStatus.State:
        """Of the worker, as the store has it."""
        node = self.house.store.get(api.Node, "n2")
        assert node is not None
        return node.status.state


@pytest.mark.parametrize("seconds", [5.0, 16.0, 20.0, 30.0, 300.0, 2 * defaults.ORPHAN_TASKS_AFTER_S])
def test_a_leader_that_stood_still_reads_the_heartbeats_that_wait_before_it_judges(seconds: float) -> None:
    manager = Stalled()
    for _ in range(3):
        manager.pass_time(4.0)
        manager.beat()
        manager.stall(seconds)
        assert manager.state == api.NodeStatus.READY
        manager.pass_time(2.0)
        manager.beat()
    assert manager.state == api.NodeStatus.READY


def test_a_node_that_is_gone_is_down_soon_after_a_stall() -> None:
    manager = Stalled()
    manager.stall(20.0)
    manager.pass_time(defaults.RETURN_S + 2.0)
    assert manager.state == api.NodeStatus.DOWN


def test_no_pass_runs_before_what_waits_is_read_and_soon_after_all_do() -> None:
    manager = Stalled()
    house = manager.house
    passes = house.manager.status().passes
    manager.stall(20.0)
    house.call("Control/CreateConfig", api.CreateConfigRequest(spec=_config("early")))
    assert house.manager.status().passes == passes
    manager.pass_time(2 * defaults.STALL_SETTLE_S)
    assert [config.spec.annotations.name for config in house.store.all(api.Config)][-1] == "early"


def test_a_manager_that_stalls_all_the_time_still_works() -> None:
    manager = Stalled()
    house = manager.house
    house.call("Control/CreateConfig", api.CreateConfigRequest(spec=_config("late")))
    for _ in range(10):
        manager.pass_time(0.1)
        manager.stall(5.0)
    assert "late" in [config.spec.annotations.name for config in house.store.all(api.Config)]


def _config(name: str) -> api.ConfigSpec:
    return api.ConfigSpec(annotations=api.Annotations(name=name), data=b"x")
