"""The executor against a stock engine: the whole life of tasks, and what happens when something dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine_api.engine.client import EngineClient
from engine_api.executor.executor import Event, Executor
from engine_api.executor.logs import LogSink
from engine_api.executor.payloads import is_tmpfs
from integration.engine_fixture import EngineProcess
from swarm import api
from swarm.agent.events import CancelStep, Execute, Executed, LogsEnded, Observed, PublishLogs, Step, StopLogs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

NODE = "node1id"
LOOP = "trap 'exit 3' TERM; while true; do sleep 0.05; done"


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    process = EngineProcess()
    try:
        process.open()
        yield process
    finally:
        process.close()


class Sink:
    """Collects what would go to the managers."""

    def __init__(self) -> None:
        self.lines: list[api.LogMessage] = []
        self.closed = asyncio.Event()
        self.grown = asyncio.Event()

    async def send(self, message: api.PublishLogsMessage) -> None:
        self.lines += message.messages
        self.grown.set()
        if message.close:
            self.closed.set()

    async def close(self) -> None:
        assert self.closed.is_set()


class ExecutorHarness:
    """Drives an Executor on a stock engine, and keeps its events."""

    def __init__(self, client: EngineClient, directory: Path) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.sinks: defaultdict[str, Sink] = defaultdict(Sink)
        self.secrets = directory / "tasks"
        self.executor = Executor(
            client, NODE, self.events.put_nowait, directory=self.secrets, open_sink=self._open, prefer_offline=True
        )

    async def _open(self, subscription_id: str) -> LogSink:
        return self.sinks[subscription_id]

    def begin(self, task: api.Task, step: Step, **payloads: dict[str, api.Secret] | dict[str, api.Config]) -> None:
        self.executor.perform(Execute(task.id, step, task, **payloads))  # type: ignore[arg-type]

    async def end(self, step: Step) -> Executed:
        while True:
            event = await self.events.get()
            if isinstance(event, Executed):
                assert event.step is step
                return event

    async def do(self, task: api.Task, *steps: Step, **payloads: dict[str, api.Secret]) -> Executed:
        for step in steps:
            self.begin(task, step, **payloads)
            ended = await self.end(step)
        return ended

    async def run(self, task: api.Task, **payloads: dict[str, api.Secret]) -> Executed:
        assert not (await self.do(task, Step.PREPARE, **payloads)).error
        return await self.do(task, Step.START, **payloads)


@asynccontextmanager
async def harness(engine: EngineProcess) -> AsyncIterator[ExecutorHarness]:
    client = EngineClient(engine.host)
    made = ExecutorHarness(client, engine.directory / "run")
    try:
        yield made
    finally:
        await made.executor.close()
        await client.close()


_numbers = iter(range(1, 1000))


def make_task(script: str = LOOP, **container: object) -> api.Task:
    number = next(_numbers)
    task = api.Task(id=f"task{number}id", slot=1, node_id=NODE, service_id=f"service{number}id")
    task.service_annotations.name = f"web{number}"
    task.spec.container.CopyFrom(
        api.ContainerSpec(image="busybox:latest", command=["sh", "-c"], args=[script], **container)  # type: ignore[arg-type]
    )
    return task


def name_of(task: api.Task) -> str:
    return f"{task.service_annotations.name}.1.{task.id}"


async def test_a_task_runs_and_leaves_nothing_behind(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task()
        started = await b.run(task)
        assert started.error == ""
        assert started.container is not None
        assert started.container.pid > 0
        assert name_of(task) in engine.docker("ps", "--format", "{{.Names}}")
        again = await b.do(task, Step.PREPARE, Step.START)
        assert (again.error, again.container) == ("", started.container)
        stopped = await b.do(task, Step.SHUTDOWN)
        assert stopped.container is not None
        assert (stopped.container.pid, stopped.container.exit_code) == (0, 3)
        assert name_of(task) in engine.docker("ps", "-a", "--format", "{{.Names}}")
        assert (await b.do(task, Step.REMOVE, Step.REMOVE)).error == ""
        assert name_of(task) not in engine.docker("ps", "-a", "--format", "{{.Names}}")


async def test_exit_codes_are_reported_as_stock_reports_them(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        good, bad = make_task("exit 0"), make_task("exit 7")
        for task in (good, bad):
            assert (await b.do(task, Step.PREPARE)).error == ""
        assert (await b.do(good, Step.START, Step.WAIT)).error == ""
        b.begin(bad, Step.START)
        await b.end(Step.START)
        failed = await b.do(bad, Step.WAIT)
        assert failed.error == "task: non-zero exit (7)"
        assert failed.container is not None
        assert failed.container.exit_code == 7


async def test_a_killed_container_is_seen_at_once(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task()
        started = await b.run(task)
        b.begin(task, Step.WAIT)
        assert started.container is not None
        await asyncio.to_thread(engine.docker, "kill", started.container.container_id)
        begin = time.monotonic()
        assert (await b.end(Step.WAIT)).error == "task: non-zero exit (137)"
        print(f"killed container reported {1000 * (time.monotonic() - begin):.1f} ms after docker kill returned")


async def test_a_removed_container_is_seen(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task()
        await b.run(task)
        b.begin(task, Step.WAIT)
        await asyncio.to_thread(engine.docker, "rm", "-f", name_of(task))
        assert (await b.end(Step.WAIT)).error in ("task: non-zero exit (137)", "dockerexec: container destroyed")


async def test_a_wait_can_be_given_up_and_the_container_goes_on(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task()
        await b.run(task)
        b.begin(task, Step.WAIT)
        b.executor.perform(CancelStep(task.id))
        assert (await b.end(Step.WAIT)).cancelled
        assert name_of(task) in engine.docker("ps", "--format", "{{.Names}}")


async def test_another_process_goes_on_where_the_first_one_died(engine: EngineProcess) -> None:
    task = make_task()
    async with harness(engine) as first:
        started = await first.run(task)
        first.begin(task, Step.WAIT)
    async with harness(engine) as second:
        await second.executor.sweep([task.id])
        again = await second.do(task, Step.START)
        assert (again.error, again.container) == ("", started.container)
        await asyncio.to_thread(engine.docker, "kill", name_of(task))
        assert (await second.do(task, Step.WAIT)).error == "task: non-zero exit (137)"


async def test_secrets_and_configs_live_in_memory_with_their_owner_and_mode(engine: EngineProcess) -> None:
    def file(name: str, uid: str, gid: str, mode: int) -> api.FileTarget:
        return api.FileTarget(name=name, uid=uid, gid=gid, mode=mode)

    secrets = [
        api.SecretReference(secret_id="s1", secret_name="password", file=file("password", "0", "0", 0o444)),
        api.SecretReference(secret_id="s2", secret_name="key", file=file("/etc/app/key", "33", "44", 0o400)),
    ]
    configs = [
        api.ConfigReference(config_id="c1", config_name="app", file=file("app.conf", "0", "0", 0o440)),
        api.ConfigReference(config_id="c2", config_name="runtime", runtime=api.RuntimeTarget()),
    ]
    task = make_task(secrets=secrets, configs=configs, read_only=True, env=["LEVEL=high"])
    payloads = {
        "s1": api.Secret(id="s1", spec=api.SecretSpec(data=b"hunter2\0\xff")),
        "s2": api.Secret(id="s2", spec=api.SecretSpec(data=b"")),
    }
    golang = api.Driver(name="golang")
    text = b'{{.Service.Name}} {{env "LEVEL"}} {{config "app.conf" | len}}'
    config = {"c1": api.Config(id="c1", spec=api.ConfigSpec(data=text, templating=golang))}
    async with harness(engine) as b:
        for step in (Step.PREPARE, Step.START):
            b.begin(task, step, secrets=payloads, configs=config)
            assert (await b.end(step)).error == ""
        assert is_tmpfs(b.secrets)
        assert b.secrets.stat().st_mode & 0o777 == 0o700
        look = "stat -c '%n %u:%g %a %s' /run/secrets/password /etc/app/key /app.conf; "
        look += "cat /app.conf; echo; mount | grep secrets"
        seen = engine.docker("exec", name_of(task), "sh", "-c", look).splitlines()
        assert seen[:4] == [
            "/run/secrets/password 0:0 444 9",
            "/etc/app/key 33:44 400 0",
            "/app.conf 0:0 440 " + str(len(seen[3])),
            f"{task.service_annotations.name} high {len(text)}",
        ]
        assert re.match(r"tmpfs on /run/secrets/password type tmpfs \(ro,.*\)", seen[4])
        raw = engine.docker("exec", name_of(task), "od", "-An", "-tx1", "/run/secrets/password")
        assert raw.split() == [f"{byte:02x}" for byte in b"hunter2\0\xff"]
        assert "hunter2" not in engine.docker("inspect", name_of(task))
        assert (await b.do(task, Step.SHUTDOWN)).error == ""
        assert not (b.secrets / task.id).exists()
        assert b"hunter2" not in b"".join(p.read_bytes() for p in (engine.directory / "data").rglob("*") if p.is_file())


async def test_host_ports_are_bound_and_reported(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task("httpd -f -p 80 -h /")
        for target, published in ((80, 8080), (81, 0)):
            task.endpoint.ports.add(target_port=target, published_port=published, publish_mode=api.PortConfig.HOST)
        task.endpoint.ports.add(target_port=82, published_port=8082)
        started = await b.run(task)
        assert started.ports is not None
        bound = {port.target_port: port.published_port for port in started.ports.ports}
        assert bound[80] == 8080
        assert bound[81] > 1024
        assert 82 not in bound


def health(command: str, retries: int = 1) -> api.HealthConfig:
    config = api.HealthConfig(test=["CMD-SHELL", command], retries=retries)
    config.interval.FromMilliseconds(100)
    config.timeout.FromMilliseconds(2000)
    return config


async def test_a_task_is_started_when_it_is_healthy(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task(f"sleep 1; touch /ok; {LOOP}", healthcheck=health("test -e /ok", retries=100))
        await b.do(task, Step.PREPARE)
        b.begin(task, Step.START)
        assert isinstance(await b.events.get(), Observed)
        begun = time.monotonic()
        assert (await b.end(Step.START)).error == ""
        assert time.monotonic() - begun > 0.5
        assert "(healthy)" in engine.docker("ps", "--filter", f"name={name_of(task)}", "--format", "{{.Status}}")


async def test_an_unhealthy_task_is_stopped_and_fails(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task("while true; do sleep 0.1; done", healthcheck=health("false"))
        task.spec.container.stop_grace_period.FromSeconds(0)
        failed = await b.run(task)
        assert failed.error == "task: non-zero exit (137): dockerexec: unhealthy container"
        assert failed.container is not None
        assert failed.container.exit_code == 137


async def test_a_task_that_becomes_unhealthy_fails(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task("touch /ok; while true; do sleep 0.1; done", healthcheck=health("test -e /ok"))
        task.spec.container.stop_grace_period.FromSeconds(0)
        assert (await b.run(task)).error == ""
        b.begin(task, Step.WAIT)
        await asyncio.to_thread(engine.docker, "exec", name_of(task), "rm", "/ok")
        assert (await b.end(Step.WAIT)).error == "task: non-zero exit (137): dockerexec: unhealthy container"


REFUSED: list[tuple[str, Callable[[api.ContainerSpec], None], str]] = [
    (
        "image",
        lambda spec: spec.MergeFrom(api.ContainerSpec(image="nosuch.invalid/img:1")),
        "No such image: nosuch.invalid/img:1",
    ),
    (
        "bind source",
        lambda spec: spec.mounts.extend([api.Mount(type=api.Mount.BIND, source="/nonexistent", target="/x")]),
        'invalid mount config for type "bind": bind source path does not exist: /nonexistent',
    ),
    (
        "relative target",
        lambda spec: spec.mounts.extend([api.Mount(type=api.Mount.VOLUME, source="v", target="x")]),
        "invalid mount target, must be an absolute path: x",
    ),
    ("template", lambda spec: spec.env.append("A={{.Service.Labels.nope}}"), "map has no entry for key"),
]


@pytest.mark.parametrize(("what", "spoil", "text"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_what_cannot_be_prepared_is_refused_for_good(
    engine: EngineProcess, what: str, spoil: Callable[[api.ContainerSpec], None], text: str
) -> None:
    async with harness(engine) as b:
        task = make_task()
        spoil(task.spec.container)
        refused = await b.do(task, Step.PREPARE)
        assert text in refused.error
        assert not refused.temporary


async def test_a_program_that_does_not_exist_fails_at_start(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task()
        task.spec.container.command[:] = ["/no/such/program"]
        task.spec.container.secrets.add(secret_id="s").file.CopyFrom(api.FileTarget(name="s", uid="0", gid="0"))
        failed = await b.run(task, secrets={"s": api.Secret(id="s", spec=api.SecretSpec(data=b"x"))})
        assert failed.error.startswith("starting container failed: ")
        assert "no such file or directory" in failed.error
        assert not failed.temporary
        assert not (b.secrets / task.id).exists()
        assert (await b.do(task, Step.REMOVE)).error == ""


async def test_the_whole_spec_reaches_the_container(engine: EngineProcess) -> None:
    task = make_task(
        hostname="h-{{.Task.Slot}}",
        env=["NODE={{.Node.Hostname}}"],
        dir="/tmp",
        user="root",
        groups=["1000"],
        stop_signal="SIGUSR1",
        hosts=["1.2.3.4 a.b"],
        sysctls={"net.core.somaxconn": "99"},
        capability_add=["CAP_NET_ADMIN"],
        capability_drop=["CAP_CHOWN"],
        ulimits=[api.ContainerSpec.Ulimit(name="nofile", soft=100, hard=200)],
        labels={"cl": "cv"},
        mounts=[
            api.Mount(
                type=api.Mount.TMPFS, target="/t", tmpfs_options=api.Mount.TmpfsOptions(size_bytes=1 << 20, mode=0o1770)
            ),
            api.Mount(
                type=api.Mount.VOLUME,
                source="v-{{.Task.Slot}}",
                target="/data",
                volume_options=api.Mount.VolumeOptions(labels={"a": "b"}, driver_config=api.Driver(name="local")),
            ),
        ],
    )
    task.spec.container.init.value = True
    task.spec.resources.limits.memory_bytes = 64 << 20
    task.spec.container.pidsLimit = 50
    async with harness(engine) as b:
        assert (await b.run(task)).error == ""
        script = "hostname; echo $NODE; pwd; ulimit -Hn; "
        script += "cat /proc/sys/net/core/somaxconn; grep a.b /etc/hosts; id -G"
        seen = engine.docker("exec", name_of(task), "sh", "-c", script).split("\n")
        description = await b.executor.describe()
        assert seen[:7] == ["h-1", description.hostname, "/tmp", "200", "99", "1.2.3.4\ta.b", "0 1000"]
        # not with ulimit: under load runc sometimes runs a program with the hard limit as its soft one
        limits = json.loads(engine.docker("inspect", "-f", "{{json .HostConfig.Ulimits}}", name_of(task)))
        assert limits == [{"Name": "nofile", "Soft": 100, "Hard": 200}]
        assert "a:b" in engine.docker("volume", "inspect", "-f", "{{.Labels}}", "v-1")
        await b.do(task, Step.REMOVE)


async def test_a_container_of_another_owner_is_not_taken_over(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task()
        await asyncio.to_thread(engine.docker, "create", "--name", name_of(task), "busybox")
        assert "already in use" in (await b.do(task, Step.PREPARE)).error
        await asyncio.to_thread(engine.docker, "rm", name_of(task))


async def test_an_engine_restart_loses_no_exit(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        goes_on, ends = make_task(), make_task()
        for task in (goes_on, ends):
            started = await b.run(task)
            b.begin(task, Step.WAIT)
        engine.kill()
        waiting = make_task()
        refused = asyncio.create_task(b.end(Step.PREPARE))
        b.begin(waiting, Step.PREPARE)
        assert (await refused).temporary
        assert started.container is not None
        os.kill(started.container.pid, signal.SIGKILL)  # ends while no daemon looks
        await asyncio.to_thread(engine.start)
        ended = await b.end(Step.WAIT)
        assert (ended.task_id, ended.error) == (ends.id, "task: non-zero exit (137)")
        assert (await b.do(waiting, Step.PREPARE)).error == ""
        await asyncio.to_thread(engine.docker, "kill", name_of(goes_on))
        ended = await b.end(Step.WAIT)
        assert (ended.task_id, ended.error) == (goes_on.id, "task: non-zero exit (137)")


def subscription(task: api.Task, number: int, **options: object) -> PublishLogs:
    message = api.SubscriptionMessage(id=f"subscription{number}")
    message.options.CopyFrom(api.LogSubscriptionOptions(**options))  # type: ignore[arg-type]
    return PublishLogs(message, (task,))


async def test_logs_are_published_with_context_and_streams(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task("echo out; echo err >&2; exec sleep 100")
        task.log_driver.name = "json-file"
        task.log_driver.options["labels"] = "com.docker.swarm.service.name"
        await b.run(task)
        b.executor.perform(subscription(task, 1, follow=True))
        while len(lines := b.sinks["subscription1"].lines) < 2:
            await b.sinks["subscription1"].grown.wait()
            b.sinks["subscription1"].grown.clear()
        assert sorted((line.stream, line.data) for line in lines) == [
            (api.LOG_STREAM_STDOUT, b"out\n"),
            (api.LOG_STREAM_STDERR, b"err\n"),
        ]
        assert lines[0].context == api.LogContext(service_id=task.service_id, node_id=NODE, task_id=task.id)
        assert [(attr.key, attr.value) for attr in lines[0].attrs] == [
            ("com.docker.swarm.service.name", task.service_annotations.name)
        ]
        assert abs(lines[0].timestamp.ToSeconds() - time.time()) < 30
        b.executor.perform(StopLogs("subscription1"))
        await b.sinks["subscription1"].closed.wait()
        b.executor.perform(subscription(task, 2, streams=[api.LOG_STREAM_STDERR]))
        b.executor.perform(subscription(make_task(), 3))
        for number in (2, 3):
            await b.sinks[f"subscription{number}"].closed.wait()
        assert [line.data for line in b.sinks["subscription2"].lines] == [b"err\n"]
        assert b.sinks["subscription3"].lines == []
        ended = [await b.events.get() for _ in range(3)]
        assert all(isinstance(event, LogsEnded) for event in ended)


async def test_a_terminal_has_lines_too(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        task = make_task("echo one; echo two >&2", tty=True)
        await b.run(task)
        await b.do(task, Step.WAIT)
        b.executor.perform(subscription(task, 1, tail=-2))
        await b.sinks["subscription1"].closed.wait()
        assert [line.data for line in b.sinks["subscription1"].lines] == [b"two\r\n"]


async def test_the_node_describes_itself(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        description = await b.executor.describe()
        assert description.platform == api.Platform(architecture="x86_64", os="linux")
        assert description.resources.nano_cpus % 10**9 == 0
        assert description.resources.memory_bytes > 0
        plugins = [(plugin.type, plugin.name) for plugin in description.engine.plugins]
        assert plugins == sorted(plugins)
        assert {("Network", "overlay"), ("Volume", "local"), ("Log", "json-file")} <= set(plugins)


async def test_sweep_and_leave_remove_containers_and_secrets(engine: EngineProcess) -> None:
    async with harness(engine) as b:
        keep, forget = make_task(), make_task()
        for task in (keep, forget):
            reference = api.SecretReference(
                secret_id="s", secret_name="s", file=api.FileTarget(name="s", uid="0", gid="0")
            )
            task.spec.container.secrets.append(reference)
            await b.run(task, secrets={"s": api.Secret(id="s", spec=api.SecretSpec(data=b"x"))})
        await b.executor.sweep(set())
        names = engine.docker("ps", "-a", "--format", "{{.Names}}")
        assert name_of(keep) in names, "a task whose steps this executor has performed is no remnant"
        assert name_of(forget) in names
    async with harness(engine) as b:  # the daemon was started again
        await b.executor.sweep({keep.id})
        names = engine.docker("ps", "-a", "--format", "{{.Names}}")
        assert name_of(keep) in names
        assert name_of(forget) not in names
        assert [entry.name for entry in b.secrets.iterdir()] == [keep.id]
        await b.executor.remove_all(NODE)
        assert engine.docker("ps", "-aq", "--filter", f"label=com.docker.swarm.node.id={NODE}") == ""
        assert not is_tmpfs(b.secrets)
