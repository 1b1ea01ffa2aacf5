"""What a stock leader has stored beyond our limit of replicas: no more tasks than that are made, and none is taken."""

from __future__ import annotations

from random import Random

import pytest

from swarm import api
from swarm.manager.orchestrator.jobs import JobsStage
from swarm.manager.orchestrator.replicated import ReplicatedStage
from swarm.manager.stage import Stage
from swarm.store.store import Store
from swarm.store.tx import Tx

NOW = 1000.0
LIMIT = 5
ABSURD = (1 << 63) - 1


class Lab:
    """A store with one service, and the stage that makes its tasks."""

    def __init__(self, service: api.Service, stage: Stage) -> None:
        self.store, self.stage, self._rng = Store(), stage, Random(1)
        service.id, service.spec.task.container.image = "s1", "app:1"
        tx = self._tx()
        tx.create(service)
        self._commit(tx)
        stage.rebuild(self.store, NOW)

    def _tx(self) -> Tx:
        return Tx(self.store, NOW, self._rng)

    def _commit(self, tx: Tx) -> None:
        for change in self.store.apply(tx.actions(), self.store.index + 1):
            self.stage.note(change.kind, change.object_id)

    def run(self) -> int:
        """Passes until nothing changes; how many tasks there are then."""
        while True:
            tx = self._tx()
            self.stage.run(tx)
            if not tx.actions():
                return sum(task.desired_state <= api.COMPLETE for task in self.store.all(api.Task))
            self._commit(tx)

    def scale(self, replicas: int) -> None:
        tx = self._tx()
        tx.edit(api.Service, "s1").spec.replicated.replicas = replicas
        self._commit(tx)


@pytest.mark.parametrize("wanted", [LIMIT, LIMIT + 1, ABSURD])
def test_no_more_tasks_are_made_than_the_limit_allows(wanted: int) -> None:
    service = api.Service()
    service.spec.replicated.replicas = wanted
    lab = Lab(service, ReplicatedStage(strict=True, replicas_max=LIMIT))
    assert lab.run() == LIMIT
    lab.scale(2)
    assert lab.run() == 2
    lab.scale(wanted)
    assert lab.run() == LIMIT


def test_tasks_that_a_stock_leader_made_beyond_the_limit_stay() -> None:
    service = api.Service()
    service.spec.replicated.replicas = 8
    lab = Lab(service, ReplicatedStage(strict=True))
    assert lab.run() == 8
    lab.stage = ReplicatedStage(strict=True, replicas_max=LIMIT)
    lab.stage.rebuild(lab.store, NOW)
    lab.scale(ABSURD)
    assert lab.run() == 8


def test_a_job_makes_no_more_tasks_than_the_limit_allows() -> None:
    service = api.Service()
    service.spec.replicated_job.total_completions = service.spec.replicated_job.max_concurrent = ABSURD
    service.job_status.SetInParent()
    assert Lab(service, JobsStage(strict=True, replicas_max=LIMIT)).run() == LIMIT
