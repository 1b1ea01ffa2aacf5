"""The steps of one task, as a table and as sequences of events."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import api, defaults
from swarm.agent.dependencies import Dependencies
from swarm.agent.events import CancelStep, Execute, Executed, Observed, Step
from swarm.agent.task import TaskRun, exit_error, next_move

STATES = sorted(api.TaskState.values())


def new_task(state: int = api.ASSIGNED, desired: int = api.RUNNING) -> api.Task:
    task = api.Task(id="t1", node_id="n1", desired_state=desired)  # type: ignore[arg-type]
    task.status.state = state  # type: ignore[assignment]
    return task


class TaskHarness:
    """Drives one TaskRun as the agent and the executor do."""

    def __init__(self, task: api.Task, synced: bool = True) -> None:
        self.run = TaskRun(task)
        self.dependencies = Dependencies()
        self.synced = synced
        self.now = 100.0

    def steps(self) -> list[str]:
        """What the executor is told now."""
        return [
            "cancel" if isinstance(effect, CancelStep) else effect.step.value
            for effect in self.run.advance(self.now, self.dependencies, self.synced)
        ]

    def end(
        self,
        step: Step,
        error: str = "",
        temporary: bool = False,
        cancelled: bool = False,
        container: api.ContainerStatus | None = None,
    ) -> list[str]:
        """A step ended; what the executor is told then."""
        self.run.executed(Executed("t1", step, error, temporary, cancelled, container), self.now, Random(1))
        return self.steps()

    def assign(self, desired: int) -> list[str]:
        """The manager changes the desired state."""
        task = api.Task()
        task.CopyFrom(self.run.task)
        task.desired_state = desired  # type: ignore[assignment]
        self.run.assign(task)
        return self.steps()

    @property
    def status(self) -> tuple[int, str, str]:
        """State, message and error."""
        status = self.run.task.status
        return status.state, status.message, status.err


def running_story() -> TaskHarness:
    story = TaskHarness(new_task())
    story.steps()
    story.end(Step.PREPARE)
    story.end(Step.START)
    return story


def test_a_task_is_prepared_started_and_waited_for() -> None:
    story = TaskHarness(new_task())
    assert story.steps() == ["prepare"]
    assert story.status == (api.PREPARING, "preparing", "")
    assert story.end(Step.PREPARE) == ["start"]
    assert story.status == (api.STARTING, "starting", "")
    assert story.end(Step.START) == ["wait"]
    assert story.status == (api.RUNNING, "started", "")
    assert story.end(Step.WAIT) == []
    assert story.status == (api.COMPLETE, "finished", "")


def test_a_task_with_desired_state_ready_pauses_there_until_it_is_wanted() -> None:
    story = TaskHarness(new_task(desired=api.READY))
    assert story.steps() == ["prepare"]
    assert story.end(Step.PREPARE) == []
    assert story.status == (api.READY, "prepared", "")
    assert story.assign(api.RUNNING) == ["start"]


def test_wanting_a_task_sooner_does_not_interrupt_its_preparation() -> None:
    story = TaskHarness(new_task(desired=api.READY))
    story.steps()
    assert story.assign(api.RUNNING) == []
    assert story.end(Step.PREPARE) == ["start"]


def test_a_container_that_fails_fails_its_task_with_the_exit_code() -> None:
    story = running_story()
    assert story.end(Step.WAIT, container=api.ContainerStatus(container_id="c", exit_code=7)) == []
    assert story.status == (api.FAILED, "started", "task: non-zero exit (7)")
    assert story.run.task.status.container.exit_code == 7


def test_an_error_before_starting_rejects_the_task() -> None:
    story = TaskHarness(new_task())
    story.steps()
    assert story.end(Step.PREPARE, "No such image: x") == []
    assert story.status == (api.REJECTED, "preparing", "No such image: x")


def test_an_error_from_starting_on_fails_the_task() -> None:
    story = TaskHarness(new_task())
    story.steps()
    story.end(Step.PREPARE)
    assert story.end(Step.START, "starting container failed: no") == []
    assert story.status == (api.FAILED, "starting", "starting container failed: no")


def test_a_temporary_error_keeps_the_state_and_tries_again_later_and_later() -> None:
    story = TaskHarness(new_task())
    story.steps()
    delays = []
    for _ in range(8):
        assert story.end(Step.PREPARE, "registry is away", temporary=True) == []
        assert story.status == (api.PREPARING, "preparing", "registry is away")
        due = story.run.deadline()
        assert due is not None
        delays.append(due - story.now)
        story.now = due
        assert story.steps() == ["prepare"]
    assert delays[0] <= defaults.TASK_RETRY_BASE_S < delays[3] <= delays[-1] <= defaults.TASK_RETRY_MAX_S
    assert story.end(Step.PREPARE) == ["start"]
    assert story.status == (api.STARTING, "starting", "")


def test_shutdown_interrupts_what_runs_and_then_stops_the_container() -> None:
    story = running_story()
    assert story.assign(api.SHUTDOWN) == ["cancel"]
    assert story.steps() == []
    assert story.end(Step.WAIT, cancelled=True) == ["shutdown"]
    assert story.end(Step.SHUTDOWN) == []
    assert story.status == (api.SHUTDOWN, "shutdown", "")


def test_a_container_that_ends_while_it_is_cancelled_counts_as_ended() -> None:
    story = running_story()
    assert story.assign(api.SHUTDOWN) == ["cancel"]
    assert story.end(Step.WAIT, container=api.ContainerStatus(exit_code=3)) == []
    assert story.status == (api.FAILED, "started", "task: non-zero exit (3)")


def test_a_cancelled_step_that_never_ends_is_given_up() -> None:
    story = running_story()
    assert story.assign(api.SHUTDOWN) == ["cancel"]
    story.now += defaults.CANCEL_WAIT_S
    assert story.run.deadline() == story.now
    assert story.steps() == ["shutdown"]
    assert story.end(Step.WAIT, cancelled=True) == []
    assert story.end(Step.SHUTDOWN) == []
    assert story.status == (api.SHUTDOWN, "shutdown", "")


def test_a_task_with_desired_state_remove_is_only_shut_down() -> None:
    story = running_story()
    assert story.assign(api.REMOVE) == ["cancel"]
    assert story.end(Step.WAIT, cancelled=True) == ["shutdown"]
    assert story.end(Step.SHUTDOWN) == []
    assert story.status[0] == api.SHUTDOWN


def test_a_task_no_longer_assigned_is_shut_down_and_removed() -> None:
    story = running_story()
    story.run.unassign()
    assert story.steps() == ["cancel"]
    assert story.end(Step.WAIT, cancelled=True) == ["shutdown"]
    assert story.end(Step.SHUTDOWN) == ["remove"]
    assert story.end(Step.REMOVE) == []
    assert story.run.gone


def test_a_removal_that_keeps_failing_is_given_up_in_the_end() -> None:
    story = running_story()
    story.run.unassign()
    story.steps()
    story.end(Step.WAIT, cancelled=True)
    story.end(Step.SHUTDOWN)
    for _ in range(defaults.TASK_REMOVE_ATTEMPTS_MAX):
        assert not story.run.gone
        story.end(Step.REMOVE, "busy")
        story.now = story.run.deadline() or story.now
        story.steps()
    assert story.run.gone


def test_a_desired_state_never_goes_back() -> None:
    story = running_story()
    story.assign(api.SHUTDOWN)
    assert story.assign(api.RUNNING) == []
    assert story.run.task.desired_state == api.SHUTDOWN


def test_a_changed_definition_updates_the_running_container() -> None:
    story = running_story()
    task = api.Task()
    task.CopyFrom(story.run.task)
    task.networks.add(addresses=["10.0.0.2/24"])
    story.run.assign(task)
    assert story.steps() == ["cancel"]
    assert story.end(Step.WAIT, cancelled=True) == ["update"]
    assert story.end(Step.UPDATE, "not possible") == ["wait"]
    assert story.status == (api.RUNNING, "started", "")


def test_the_same_assignment_again_does_nothing() -> None:
    story = running_story()
    task = api.Task()
    task.CopyFrom(story.run.task)
    task.status.state = api.ASSIGNED
    task.meta.version.index = 99
    story.run.dirty = False
    story.run.assign(task)
    assert story.steps() == []
    assert not story.run.dirty
    assert story.run.task.status.state == api.RUNNING


def test_a_fact_about_the_container_is_reported_once() -> None:
    story = running_story()
    facts = api.ContainerStatus(container_id="c", pid=42)
    story.run.news = False
    story.run.observed(Observed("t1", container=facts), 101.0)
    assert story.run.news
    assert story.run.task.status.container == facts
    story.run.news = False
    story.run.observed(Observed("t1", container=facts), 102.0)
    assert not story.run.news


def test_a_step_that_gives_itself_up_is_tried_again_after_a_pause() -> None:
    story = TaskHarness(new_task())
    story.steps()
    assert story.end(Step.PREPARE, cancelled=True) == []
    assert story.status == (api.PREPARING, "preparing", "")
    story.now = story.run.deadline() or 0.0
    assert story.steps() == ["prepare"]


def with_secret() -> api.Task:
    task = new_task()
    task.spec.container.secrets.add(secret_id="s1")
    return task


def test_a_missing_secret_rejects_the_task_once_the_manager_told_all() -> None:
    story = TaskHarness(with_secret(), synced=False)
    assert story.steps() == []
    assert story.status[0] == api.PREPARING
    story.synced = True
    assert story.steps() == []
    assert story.status == (api.REJECTED, "preparing", "secret s1 not found")


def test_a_task_gets_its_own_value_of_a_secret_that_differs_by_task() -> None:
    story = TaskHarness(with_secret())
    for secret_id, data in (("s1", b"shared"), ("s1.t1", b"own"), ("s2", b"other")):
        secret = api.Secret(id=secret_id)
        secret.spec.data = data
        story.dependencies.put(secret)
    effect = story.run.advance(1.0, story.dependencies, True)[0]
    assert isinstance(effect, Execute)
    assert {i: s.spec.data for i, s in effect.secrets.items()} == {"s1": b"own"}
    assert effect.secrets["s1"].id == "s1"
    assert "own" not in repr(effect)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("desired", [api.READY, api.RUNNING, api.COMPLETE, api.SHUTDOWN, api.REMOVE])
def test_every_move_goes_forward_and_stopping_wins(state: int, desired: int) -> None:
    move = next_move(state, desired)
    if move is None:
        assert state >= min(desired, api.COMPLETE)
        return
    assert move.then > state
    assert (move.step is Step.SHUTDOWN) == (desired >= api.SHUTDOWN)
    if move.step is None:
        assert move.then <= desired


def test_exit_errors_read_as_users_know_them() -> None:
    assert exit_error(137, "dockerexec: unhealthy container") == (
        "task: non-zero exit (137): dockerexec: unhealthy container"
    )


@given(st.binary(max_size=40))
def test_a_journal_record_that_cannot_be_read_gives_no_task(record: bytes) -> None:
    run = TaskRun.from_record(record)
    assert run is None or run.task.id


def test_a_journal_record_gives_back_the_task() -> None:
    story = running_story()
    story.run.unassign()
    again = TaskRun.from_record(story.run.record())
    assert again is not None
    assert again.task == story.run.task
    assert not again.assigned
    effects = again.advance(1.0, Dependencies(), False)
    assert [e.step for e in effects if isinstance(e, Execute)] == [Step.SHUTDOWN]


def _private_task(state: int) -> api.Task:
    task = new_task(state)
    task.spec.container.image = "private"
    task.spec.container.pull_options.registry_auth = "the login"
    return task


def _steps(run: TaskRun) -> list[Step]:
    return [e.step for e in run.advance(1.0, Dependencies(), True) if isinstance(e, Execute)]


def test_a_login_at_a_registry_is_not_journaled_and_awaited_where_it_is_needed() -> None:
    run = TaskRun(_private_task(api.PREPARING))
    assert b"the login" not in run.record()
    assert run.task.spec.container.pull_options.registry_auth == "the login"
    again = TaskRun.from_record(run.record())
    assert again is not None
    twice = TaskRun.from_record(again.record())
    assert twice is not None
    assert _steps(twice) == []
    twice.assign(_private_task(api.ASSIGNED))
    (effect,) = twice.advance(1.0, Dependencies(), True)
    assert isinstance(effect, Execute)
    assert effect.step is Step.PREPARE
    assert effect.task.spec.container.pull_options.registry_auth == "the login"


def test_a_task_that_runs_goes_on_without_its_login_and_does_not_take_it_for_news() -> None:
    again = TaskRun.from_record(TaskRun(_private_task(api.RUNNING)).record())
    assert again is not None
    assert _steps(again) == [Step.WAIT]
    again.assign(_private_task(api.ASSIGNED))
    assert (again.dirty, again.advance(1.0, Dependencies(), True)) == (False, [])
    assert again.task.spec.container.pull_options.registry_auth == "the login"
