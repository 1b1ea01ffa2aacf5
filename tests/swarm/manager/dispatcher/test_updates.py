"""Which statuses of agents are taken."""

from __future__ import annotations

import pytest

from swarm import api
from swarm.manager.dispatcher.updates import is_news


@pytest.mark.parametrize(
    ("known", "reported", "news"),
    [
        (api.ASSIGNED, api.RUNNING, True),
        (api.RUNNING, api.PREPARING, False),
        (api.RUNNING, api.FAILED, True),
        (api.SHUTDOWN, api.FAILED, False),
        (api.COMPLETE, api.SHUTDOWN, False),
        (api.FAILED, api.COMPLETE, False),
    ],
)
def test_a_task_goes_forward_until_it_has_ended(known: api.TaskState, reported: api.TaskState, news: bool) -> None:
    assert is_news(api.TaskStatus(state=known), api.TaskStatus(state=reported)) == news


def test_later_details_of_how_a_task_ended_are_accepted() -> None:
    known, reported = api.TaskStatus(state=api.FAILED), api.TaskStatus(state=api.FAILED, err="task: non-zero exit (7)")
    assert is_news(known, reported)
    assert not is_news(reported, reported)
