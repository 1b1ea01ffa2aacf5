"""What the worker begins, keeps and removes when the assigned tasks differ from those that it has."""

from __future__ import annotations

from random import Random

from swarm import api
from swarm.agent.events import Execute, Executed, Journal, Step
from swarm.agent.worker import Worker, WorkerEffect
from tests.swarm.agent.agent_world import make_task

COMPLETE = api.AssignmentsMessage.COMPLETE
INCREMENTAL = api.AssignmentsMessage.INCREMENTAL


def message(kind: int, *updates: api.Task | api.Secret, removes: tuple[str, ...] = ()) -> api.AssignmentsMessage:
    out = api.AssignmentsMessage(type=kind)  # type: ignore[arg-type]
    for item in updates:
        change = out.changes.add(action=api.AssignmentChange.UPDATE)
        target = change.assignment.task if isinstance(item, api.Task) else change.assignment.secret
        target.CopyFrom(item)  # type: ignore[arg-type]
    for task_id in removes:
        out.changes.add(action=api.AssignmentChange.REMOVE).assignment.task.id = task_id
    return out


def steps(effects: list[WorkerEffect]) -> list[str]:
    return [f"{e.task_id} {e.step.value}" for e in effects if isinstance(e, Execute)]


def journal(effects: list[WorkerEffect]) -> tuple[list[str], list[str]]:
    records = [e for e in effects if isinstance(e, Journal)]
    return [i for r in records for i in r.puts], [i for r in records for i in r.drops]


def new_worker(records: dict[str, bytes] | None = None) -> Worker:
    return Worker(Random(1), records or {})


def finish(worker: Worker, task_id: str, *done: Step) -> list[WorkerEffect]:
    effects: list[WorkerEffect] = []
    for step in done:
        worker.executed(Executed(task_id, step), 2.0)
        effects += worker.settle(2.0)
    return effects


def test_assigned_tasks_are_started_and_journaled_before_their_steps() -> None:
    worker = new_worker()
    worker.apply(message(COMPLETE, make_task("t1", "n1"), make_task("t2", "n1")))
    effects = worker.settle(1.0)
    assert isinstance(effects[0], Journal)
    assert journal(effects) == (["t1", "t2"], [])
    assert steps(effects) == ["t1 prepare", "t2 prepare"]
    assert worker.take_changed() == ["t1", "t2"]
    assert worker.settle(1.0) == []


def test_what_a_complete_message_does_not_name_is_removed() -> None:
    worker = new_worker()
    worker.apply(message(COMPLETE, make_task("t1", "n1"), make_task("t2", "n1")))
    worker.settle(1.0)
    finish(worker, "t1", Step.PREPARE, Step.START, Step.WAIT)
    worker.apply(message(COMPLETE, make_task("t2", "n1")))
    assert steps(worker.settle(3.0)) == ["t1 shutdown"]
    assert worker.assigned() == ["t2"]
    assert worker.status("t1") is None
    effects = finish(worker, "t1", Step.SHUTDOWN, Step.REMOVE)
    assert steps(effects) == ["t1 remove"]
    assert journal(effects)[1] == ["t1"]


def test_an_incremental_message_touches_only_what_it_names() -> None:
    worker = new_worker()
    worker.apply(message(COMPLETE, make_task("t1", "n1"), make_task("t2", "n1")))
    worker.settle(1.0)
    worker.apply(message(INCREMENTAL, make_task("t3", "n1"), removes=("t1",)))
    worker.settle(1.0)
    assert worker.assigned() == ["t2", "t3"]


def test_a_task_that_is_assigned_again_while_it_is_removed_starts_over() -> None:
    worker = new_worker()
    worker.apply(message(COMPLETE, make_task("t1", "n1")))
    worker.settle(1.0)
    worker.apply(message(COMPLETE))
    worker.settle(1.0)
    worker.apply(message(COMPLETE, make_task("t1", "n1")))
    worker.settle(1.0)
    worker.executed(Executed("t1", Step.PREPARE, cancelled=True), 2.0)
    effects = worker.settle(2.0) + finish(worker, "t1", Step.SHUTDOWN, Step.REMOVE)
    assert steps(effects) == ["t1 shutdown", "t1 remove", "t1 prepare"]
    assert journal(effects)[1] == []
    assert worker.assigned() == ["t1"]


def test_after_a_restart_steps_are_repeated_from_the_journal() -> None:
    worker = new_worker()
    worker.apply(message(COMPLETE, make_task("t1", "n1"), make_task("t2", "n1")))
    effects = worker.settle(1.0) + finish(worker, "t1", Step.PREPARE, Step.START)
    records: dict[str, bytes] = {}
    for effect in effects:
        if isinstance(effect, Journal):
            records.update(effect.puts)
    again = new_worker(records)
    assert steps(again.settle(9.0)) == ["t1 wait", "t2 prepare"]
    status = again.status("t1")
    assert status is not None
    assert (status.state, status.message) == (api.RUNNING, "started")


def test_after_a_restart_a_step_that_needs_a_secret_waits_for_the_first_message() -> None:
    task = make_task("t1", "n1", ["s1"])
    secret = api.Secret(id="s1")
    worker = new_worker()
    worker.apply(message(COMPLETE, task, secret))
    first = worker.settle(1.0)[0]
    assert isinstance(first, Journal)
    again = new_worker(dict(first.puts))
    assert steps(again.settle(2.0)) == []
    again.apply(message(COMPLETE, task, secret))
    effects = again.settle(3.0)
    assert steps(effects) == ["t1 prepare"]
    assert b"payload" not in first.puts["t1"]


def test_a_removal_goes_on_after_a_restart() -> None:
    worker = new_worker()
    worker.apply(message(COMPLETE, make_task("t1", "n1")))
    worker.settle(1.0)
    worker.apply(message(COMPLETE))
    effect = worker.settle(1.0)[0]
    assert isinstance(effect, Journal)
    again = new_worker(dict(effect.puts))
    assert again.assigned() == []
    assert steps(again.settle(2.0)) == ["t1 shutdown"]


def test_a_journal_record_that_cannot_be_read_is_dropped() -> None:
    worker = new_worker({"t1": b"\x01garbage"})
    assert journal(worker.settle(1.0)) == ([], ["t1"])
    assert worker.empty


def test_leaving_removes_everything() -> None:
    worker = new_worker()
    worker.apply(message(COMPLETE, make_task("t1", "n1")))
    worker.settle(1.0)
    worker.leave()
    worker.settle(1.0)
    worker.executed(Executed("t1", Step.PREPARE), 2.0)
    assert steps(worker.settle(2.0)) == ["t1 shutdown"]
    finish(worker, "t1", Step.SHUTDOWN, Step.REMOVE)
    assert worker.empty


def test_a_volume_that_must_go_is_reported_as_unpublished() -> None:
    worker = new_worker()
    remove = api.AssignmentsMessage(type=INCREMENTAL)
    remove.changes.add(action=api.AssignmentChange.REMOVE).assignment.volume.id = "v1"
    worker.apply(remove)
    assert worker.take_unpublished_volumes() == ["v1"]
    assert worker.take_unpublished_volumes() == []
