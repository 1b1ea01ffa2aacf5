"""Tasks: read and remove (swarmkit: manager/controlapi/task.go)."""

from __future__ import annotations

from collections.abc import Iterator

from swarm import api
from swarm.manager.controlapi.common import (
    Test,
    annotation_tests,
    find_one,
    is_one_of,
    runtime_of,
    select,
)
from swarm.manager.tasks import is_task_dirty, task_name
from swarm.store.store import View
from swarm.store.tx import Tx


def get_task(view: View, request: api.GetTaskRequest) -> api.GetTaskResponse:
    """GetTask."""
    return api.GetTaskResponse(task=find_one(view, api.Task, request.task_id))


def remove_task(tx: Tx, request: api.RemoveTaskRequest) -> api.RemoveTaskResponse:
    """RemoveTask."""
    tx.remove(api.Task, find_one(tx, api.Task, request.task_id).id)
    return api.RemoveTaskResponse()


def list_tasks(view: View, request: api.ListTasksRequest) -> api.ListTasksResponse:
    """ListTasks. up_to_date keeps only tasks of services that still exist and whose spec they still fit."""
    filters = request.filters
    tests: list[Test] = annotation_tests(filters, task_name, lambda task: task.service_annotations.labels)
    services, nodes = list(filters.service_ids), list(filters.node_ids)
    runtimes, states = list(filters.runtimes), list(filters.desired_states)
    if services:
        tests.append(lambda task: is_one_of(task.service_id, services))
    if nodes:
        tests.append(lambda task: is_one_of(task.node_id, nodes))
    if runtimes:
        tests.append(lambda task: is_one_of(runtime_of(task.spec), runtimes))
    if states:
        tests.append(lambda task: is_one_of(task.desired_state, states))
    if filters.up_to_date:
        tests.append(lambda task: _is_up_to_date(view, task))
    return api.ListTasksResponse(tasks=select(_candidates(view, services, nodes), tests))


def _candidates(view: View, services: list[str], nodes: list[str]) -> Iterator[api.Task]:
    """A superset of the tasks asked for, through an index where one helps."""
    # The indexes leave out tasks without a service or node, which a filter may ask for by an empty string.
    if services and "" not in services:
        for service_id in services:
            yield from view.find(api.Task, "service", service_id)
    elif nodes and "" not in nodes:
        for node_id in nodes:
            yield from view.find(api.Task, "node", node_id)
    else:
        yield from view.all(api.Task)


def _is_up_to_date(view: View, task: api.Task) -> bool:
    service = view.get(api.Service, task.service_id)
    return service is not None and not is_task_dirty(service, task, view.get(api.Node, task.node_id))
