"""A stolen worker is not a stolen cluster: what a worker's certificate opens of other nodes' affairs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random

import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from swarm import api, defaults
from swarm.api import rpc
from swarm.api.methods import AnyMethod, Method, Req, Res
from swarm.errors import SwarmError
from swarm.io.grpc.client import ClientConnection
from swarm.store.tx import Tx
from tests.security.absurd import fill
from tests.security.attacked_manager import (
    OTHER_WORKER,
    SECRET_VALUES,
    WAIT_S,
    WORKER,
    WORKER_ROLE,
    AttackedManager,
    session_of,
    settled,
)

FAILURES = ("manager.failed", "service.failed", "stage.failed", "write.failed", "read.failed", "rpc.handler_failed")


async def thief(attacked: AttackedManager) -> tuple[ClientConnection, str]:
    """A connection with worker1's certificate, and its session."""
    connection = await attacked.connect(attacked.worker())
    return connection, await session_of(connection)


async def assignments(connection: ClientConnection, session_id: str) -> api.AssignmentsMessage:
    stream = connection.stream(rpc.ASSIGNMENTS, api.AssignmentsRequest(session_id=session_id))
    message = await anext(stream)
    await stream.aclose()
    assert isinstance(message, api.AssignmentsMessage)
    return message


def tasks_in(message: api.AssignmentsMessage) -> list[str]:
    return [change.assignment.task.id for change in message.changes if change.assignment.HasField("task")]


def report(session_id: str, task_id: str, **status: object) -> api.UpdateTaskStatusRequest:
    request = api.UpdateTaskStatusRequest(session_id=session_id)
    request.updates.add(task_id=task_id, status=api.TaskStatus(**status))  # type: ignore[arg-type]
    return request


async def refusal(call: ClientConnection, method: Method[Req, Res], request: Req) -> str:
    with pytest.raises(SwarmError) as refused:
        await call.unary(method, request, timeout_s=WAIT_S)
    return refused.value.message


def state(attacked: AttackedManager, task_id: str) -> int:
    task = attacked.process.store.get(api.Task, task_id)
    assert task is not None
    return task.status.state


# --- what it sees -----------------------------------------------------------------------------------------------


async def test_a_worker_sees_its_own_tasks_and_their_secrets_only(attacked: AttackedManager) -> None:
    connection, session_id = await thief(attacked)
    message = await assignments(connection, session_id)
    assert tasks_in(message) == ["task-mine"]
    secrets = [change.assignment.secret for change in message.changes if change.assignment.HasField("secret")]
    assert [(secret.id, secret.spec.data) for secret in secrets] == [("secret-mine", SECRET_VALUES["mine"])]
    assert SECRET_VALUES["other"] not in message.SerializeToString()


async def test_a_worker_that_names_a_foreign_secret_in_a_report_does_not_get_it(attacked: AttackedManager) -> None:
    """Only the store says what a task needs: nothing that a node reports enters the task's specification."""
    connection, session_id = await thief(attacked)
    request = report(session_id, "task-mine", state=api.RUNNING)
    request.updates[0].status.message = "secret-other"
    await connection.unary(rpc.UPDATE_TASK_STATUS, request)
    message = await assignments(connection, session_id)
    assert b"secret-other" not in b"".join(c.assignment.secret.SerializeToString() for c in message.changes)
    assert SECRET_VALUES["other"] not in message.SerializeToString()


async def test_a_change_of_another_nodes_tasks_is_not_told(attacked: AttackedManager) -> None:
    connection, session_id = await thief(attacked)
    stream = connection.stream(rpc.ASSIGNMENTS, api.AssignmentsRequest(session_id=session_id))
    await anext(stream)
    told = asyncio.ensure_future(anext(stream))

    def change(tx: Tx, task_id: str) -> None:
        tx.edit(api.Task, task_id).desired_state = api.SHUTDOWN

    await attacked.write(lambda tx: change(tx, "task-other"))
    await attacked.write(lambda tx: change(tx, "task-mine"))
    message = await told
    assert isinstance(message, api.AssignmentsMessage)
    assert tasks_in(message) == ["task-mine"]


async def test_the_session_tells_a_worker_of_itself_alone(attacked: AttackedManager) -> None:
    connection = await attacked.connect(attacked.worker())
    message = await anext(connection.stream(rpc.SESSION, api.SessionRequest()))
    assert isinstance(message, api.SessionMessage)
    assert message.node.id == WORKER
    told = message.SerializeToString()
    root = attacked.cluster.root_ca
    for secret in (
        root.ca_key,
        root.join_tokens.worker.encode(),
        root.join_tokens.manager.encode(),
        OTHER_WORKER.encode(),
    ):
        assert secret
        assert secret not in told


# --- what it may say --------------------------------------------------------------------------------------------


async def test_another_nodes_session_opens_nothing(attacked: AttackedManager) -> None:
    victim, victims_session = await attacked.connect(attacked.worker(OTHER_WORKER)), ""
    victims_session = await session_of(victim)
    connection, _ = await thief(attacked)
    calls: list[tuple[AnyMethod, Message]] = [
        (rpc.HEARTBEAT, api.HeartbeatRequest(session_id=victims_session)),
        (rpc.UPDATE_TASK_STATUS, report(victims_session, "task-other", state=api.FAILED)),
        (rpc.UPDATE_VOLUME_STATUS, api.UpdateVolumeStatusRequest(session_id=victims_session)),
    ]
    for method, request in calls:
        assert await refusal(connection, method, request) == "session invalid"
    with pytest.raises(SwarmError, match="session invalid"):
        await assignments(connection, victims_session)
    with pytest.raises(SwarmError, match="session invalid"):
        await anext(connection.stream(rpc.TASKS, api.TasksRequest(session_id=victims_session)))
    await victim.unary(rpc.HEARTBEAT, api.HeartbeatRequest(session_id=victims_session))
    message = await anext(connection.stream(rpc.SESSION, api.SessionRequest(session_id=victims_session)))
    assert isinstance(message, api.SessionMessage)
    assert message.session_id != victims_session
    assert message.node.id == WORKER


async def test_a_worker_reports_of_its_own_tasks_only(attacked: AttackedManager) -> None:
    connection, session_id = await thief(attacked)
    request = report(session_id, "task-mine", state=api.RUNNING)
    request.updates.extend(report(session_id, "task-other", state=api.FAILED).updates)
    text = await refusal(connection, rpc.UPDATE_TASK_STATUS, request)
    assert text == "cannot update a task not assigned this node"
    assert state(attacked, "task-other") == state(attacked, "task-mine") == api.ASSIGNED


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (api.TaskStatus(state=9999), "unknown task state 9999"),  # type: ignore[arg-type]
        (api.TaskStatus(state=api.RUNNING, timestamp={"seconds": 2**62}), "time of the task status"),
        (api.TaskStatus(state=api.RUNNING, timestamp={"seconds": -(2**62)}), "time of the task status"),
        (api.TaskStatus(state=api.RUNNING, timestamp={"nanos": -1}), "time of the task status"),
        (api.TaskStatus(state=api.RUNNING, container={"container_id": "x" * 3_000_000}), "is too long"),
        (api.TaskStatus(state=api.RUNNING, port_status={"ports": [{"name": "x" * 100}] * 1000}), "is too long"),
    ],
)
async def test_a_status_that_would_harm_its_readers_is_refused(
    attacked: AttackedManager, status: api.TaskStatus, text: str
) -> None:
    connection, session_id = await thief(attacked)
    request = api.UpdateTaskStatusRequest(session_id=session_id)
    request.updates.add(task_id="task-mine", status=status)
    async with attacked.served_meanwhile():
        assert text in await refusal(connection, rpc.UPDATE_TASK_STATUS, request)
    assert state(attacked, "task-mine") == api.ASSIGNED


async def test_long_texts_of_a_status_are_cut(attacked: AttackedManager) -> None:
    connection, session_id = await thief(attacked)
    long = "x" * 1_000_000
    request = report(session_id, "task-mine", state=api.FAILED, message=long, err=long)
    await connection.unary(rpc.UPDATE_TASK_STATUS, request)
    task = attacked.process.store.get(api.Task, "task-mine")
    assert task is not None
    assert len(task.status.message) == len(task.status.err) == defaults.STATUS_TEXT_CHARS_MAX


async def test_a_description_too_long_to_keep_is_refused(attacked: AttackedManager) -> None:
    connection = await attacked.connect(attacked.worker())
    request = api.SessionRequest()
    request.description.hostname = "x" * defaults.NODE_DESCRIPTION_BYTES_MAX
    with pytest.raises(SwarmError, match="description is too long"):
        await anext(connection.stream(rpc.SESSION, request))


async def test_sessions_feeds_and_listeners_of_a_node_are_few(attacked: AttackedManager) -> None:
    connection, session_id = await thief(attacked)
    request = api.AssignmentsRequest(session_id=session_id)
    feeds = [connection.stream(rpc.ASSIGNMENTS, request) for _ in range(12)]
    for feed in feeds:
        await anext(feed)
    listen = api.ListenSubscriptionsRequest()
    listeners = [asyncio.ensure_future(anext(connection.stream(rpc.LISTEN_SUBSCRIPTIONS, listen))) for _ in range(12)]
    extra = 8 + 12 - defaults.LOG_LISTENERS_PER_NODE_MAX
    await settled(lambda: sum(listener.done() for listener in listeners) == 12 - defaults.LOG_LISTENERS_PER_NODE_MAX)
    assert len(attacked.server._calls) == 1 + 12 + 12 - extra
    connection.close()
    await asyncio.wait(listeners)
    assert all(isinstance(listener.exception(), SwarmError) for listener in listeners)


# --- logs -------------------------------------------------------------------------------------------------------


async def asked(
    attacked: AttackedManager, node_id: str, task_id: str
) -> tuple[ClientConnection, str, asyncio.Future[api.SubscribeLogsMessage]]:
    """Somebody reads the logs of a task: the node's connection, the subscription, and the first line to come."""
    reader, worker = await attacked.connect(attacked.manager()), await attacked.connect(attacked.worker(node_id))
    listening = worker.stream(rpc.LISTEN_SUBSCRIPTIONS, api.ListenSubscriptionsRequest())
    message = asyncio.ensure_future(anext(listening))
    await settled(lambda: bool(attacked.server._calls))
    request = api.SubscribeLogsRequest()
    request.selector.task_ids.append(task_id)
    request.options.follow = True
    lines = reader.stream(rpc.SUBSCRIBE_LOGS, request)
    first = asyncio.ensure_future(anext(lines))
    subscription = await message
    assert isinstance(subscription, api.SubscriptionMessage)
    attacked.kept += [listening, lines, first]
    return worker, subscription.id, first


def line(node_id: str, task_id: str, seconds: int = 1000) -> api.LogMessage:
    message = api.LogMessage(data=b"line")
    message.context.node_id, message.context.task_id = node_id, task_id
    message.timestamp.seconds = seconds
    return message


async def publish(connection: ClientConnection, subscription_id: str, message: api.LogMessage) -> str:
    """What becomes of a publication of one line."""

    async def messages() -> AsyncIterator[api.PublishLogsMessage]:
        yield api.PublishLogsMessage(subscription_id=subscription_id, messages=[message])

    try:
        await connection.client_stream(rpc.PUBLISH_LOGS, messages(), timeout_s=WAIT_S)
    except SwarmError as error:
        return error.message
    return ""


async def test_another_nodes_log_subscription_cannot_be_served(attacked: AttackedManager) -> None:
    victim, subscription_id, first = await asked(attacked, OTHER_WORKER, "task-other")
    connection = await attacked.connect(attacked.worker())
    for forged in (line(WORKER, "task-other"), line(OTHER_WORKER, "task-other")):
        assert await publish(connection, subscription_id, forged) == "unknown subscription ID"
    assert not first.done()
    assert await publish(victim, subscription_id, line(OTHER_WORKER, "task-other")) == ""
    assert b"line" in (await first).SerializeToString()


@pytest.mark.parametrize(
    ("forged", "text"),
    [
        (line(OTHER_WORKER, "task-mine"), "invalid NodeID"),
        (line(WORKER, "task-other"), f"task task-other does not run on node {WORKER}"),
        (line(WORKER, "task-mine", 2**62), "timestamp of a log line"),
        (line(WORKER, "task-mine", -(2**62)), "timestamp of a log line"),
    ],
)
async def test_lines_in_the_name_of_others_and_out_of_time_are_refused(
    attacked: AttackedManager, forged: api.LogMessage, text: str
) -> None:
    connection, subscription_id, first = await asked(attacked, WORKER, "task-mine")
    async with attacked.served_meanwhile():
        assert text in await publish(connection, subscription_id, forged)
    assert not first.done()


# --- nonsense ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_what_makes_no_sense_stops_neither_the_manager_nor_a_stage(attacked: AttackedManager, seed: int) -> None:
    """Absurd descriptions and reports of many nodes, with services that have to be placed on them."""
    rng = Random(seed)
    manager = await attacked.connect(attacked.manager())
    await manager.unary(rpc.CREATE_SERVICE, api.CreateServiceRequest(spec=picky_service()))
    with capture_logs() as logs:
        for number in range(8):
            await absurd_node(attacked, f"node{number}", rng)
        await manager.unary(rpc.LIST_TASKS, api.ListTasksRequest())
    assert [entry for entry in logs if entry["event"] in FAILURES] == []
    assert not attacked.process.failed.done()


def picky_service() -> api.ServiceSpec:
    spec = api.ServiceSpec()
    spec.annotations.name = "picky"
    spec.task.container.image = "busybox"
    spec.task.placement.constraints.extend(["node.platform.os != windows", "engine.labels.a != b"])
    spec.task.placement.preferences.add().spread.spread_descriptor = "engine.labels.a"
    spec.task.resources.reservations.generic.add().discrete_resource_spec.kind = "gpu"
    spec.replicated.replicas = 10
    return spec


async def absurd_node(attacked: AttackedManager, node_id: str, rng: Random) -> None:
    """A node that joins, says absurd things, and goes."""
    node = api.Node(id=node_id)
    node.spec.membership = api.NodeSpec.ACCEPTED
    await attacked.write(lambda tx: tx.create(node))
    connection = await attacked.connect(attacked.pki.issue(node_id, WORKER_ROLE))
    request = api.SessionRequest()
    fill(request, rng, (node_id, "gpu", "linux", WORKER))
    request.session_id = ""
    message = await anext(connection.stream(rpc.SESSION, request))
    assert isinstance(message, api.SessionMessage)
    for task in [*attacked.process.store.find(api.Task, "node", node_id), *attacked.process.store.all(api.Task)][:5]:
        update = api.UpdateTaskStatusRequest(session_id=message.session_id)
        fill(update.updates.add(), rng, (node_id, task.id))
        update.updates[0].task_id = task.id
        with contextlib.suppress(SwarmError):  # whether it is taken is not the point
            await connection.unary(rpc.UPDATE_TASK_STATUS, update, timeout_s=WAIT_S)
    connection.close()
