"""docker-py drives a swarm of ours as it drives a stock one: the same calls, the same results."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import pytest
from docker.errors import APIError, InvalidArgument, NotFound
from docker.types import (
    ConfigReference,
    DNSConfig,
    EndpointSpec,
    Healthcheck,
    Resources,
    RestartPolicy,
    RollbackConfig,
    SecretReference,
    ServiceMode,
    UpdateConfig,
)

from integration.course import masked
from integration.lab import Host, Lab
from integration.waiting import until

pytestmark = pytest.mark.timeout(240)
RUN = ["sh", "-c", 'trap "exit 0" TERM; echo hello; sleep 9999 & wait']
SECOND_NS = 1_000_000_000


class Story:
    """Drives a swarm through docker-py, and keeps what each call gave; an error counts by its class and text."""

    def __init__(self, manager: Host, worker: Host) -> None:
        self.rows: list[tuple[str, str]] = []
        self.manager, self.worker = manager, worker
        self.client = docker.DockerClient(base_url=manager.api)
        self.other = docker.DockerClient(base_url=worker.api)

    def tell(self, name: str, call: Callable[[], Any]) -> Any:
        """Make the call and note what came back."""
        try:
            value = call()
        except (APIError, InvalidArgument, NotFound) as error:
            self.rows.append((name, masked(f"{type(error).__name__}: {error}")))
            return None
        shown = value if isinstance(value, (dict, list, str, bool, int, type(None))) else type(value).__name__
        self.rows.append((name, masked(json.dumps(shown, sort_keys=True))))
        return value

    def running(self, service: Any, count: int, image: str = "") -> None:
        """Wait until so many tasks of the service (with that image) run."""

        def seen() -> int:
            tasks = service.tasks(filters={"desired-state": "running"})
            images = [t["Spec"]["ContainerSpec"]["Image"] for t in tasks if t["Status"]["State"] == "running"]
            return len([name for name in images if name.startswith(image)])

        until(seen, lambda found: found == count, what=f"{count} tasks of {service.name}")


def _no_swarm(story: Story) -> None:
    client = story.client
    story.tell("nodes, no swarm", client.nodes.list)
    story.tell("services, no swarm", client.services.list)
    story.tell("leave, no swarm", client.swarm.leave)
    story.tell("leave by force, no swarm", lambda: client.swarm.leave(force=True))
    story.tell("init, bad address", lambda: client.swarm.init(advertise_addr="nosuch0"))


def _swarm(story: Story) -> None:
    client, address = story.client, story.manager.ip
    story.tell("init", lambda: client.swarm.init(advertise_addr=address, task_history_retention_limit=4))
    story.tell("init again", lambda: client.swarm.init(advertise_addr=address))
    story.tell("reload", client.swarm.reload)
    story.tell("attrs", lambda: sorted(client.swarm.attrs))
    story.tell("ids", lambda: [client.swarm.id, client.swarm.short_id[:0], client.swarm.version > 0])
    story.tell("update", lambda: client.swarm.update(task_history_retention_limit=5, labels={"py": "1"}))
    story.tell("spec after the update", lambda: [client.swarm.reload(), client.swarm.attrs["Spec"]][1])
    story.tell("unlock key", client.swarm.get_unlock_key)
    story.tell("unlock", lambda: client.swarm.unlock("x"))
    tokens = client.swarm.attrs["JoinTokens"]
    story.tell("rotate", lambda: client.swarm.update(rotate_worker_token=True))
    client.swarm.reload()
    fresh = client.swarm.attrs["JoinTokens"]
    story.tell("rotated", lambda: [fresh[role] != tokens[role] for role in ("Worker", "Manager")])
    remote = [f"{address}:2377"]
    story.tell("join, old token", lambda: story.other.swarm.join(remote, tokens["Worker"]))
    story.tell("join", lambda: story.other.swarm.join(remote, fresh["Worker"]))
    story.tell("join again", lambda: story.other.swarm.join(remote, fresh["Worker"]))
    story.tell("nodes of a worker", story.other.nodes.list)
    story.tell("swarm of a worker", story.other.swarm.reload)


def _nodes(story: Story) -> None:
    client = story.client
    until(lambda: [node.attrs["Status"]["State"] for node in client.nodes.list()], lambda found: found == ["ready"] * 2)
    story.tell("managers", lambda: [n.attrs["Spec"] for n in client.nodes.list(filters={"role": "manager"})])
    node = client.nodes.list(filters={"role": "worker"})[0]
    story.tell("node", lambda: {key: kind(value) for key, value in node.attrs.items()})
    spec = {"Availability": "active", "Role": "worker", "Labels": {"py": "2"}}
    story.tell("node update", lambda: node.update(spec))
    story.tell("node update, stale", lambda: node.update(spec))
    story.tell("node after", lambda: client.nodes.get(node.id).attrs["Spec"])
    story.tell("node update, wrong", lambda: [node.reload(), node.update({"Role": "king"})])
    story.tell("node remove", node.remove)
    story.tell("node get", lambda: client.nodes.get("nosuch"))


def _resources(story: Story) -> tuple[Any, Any]:
    client = story.client
    secret = client.secrets.create(name="pysec", data=b"x", labels={"a": "b"})
    story.tell("secret", lambda: client.secrets.get("pysec").attrs)
    story.tell("secret again", lambda: client.secrets.create(name="pysec", data=b"x"))
    story.tell("secrets", lambda: [one.name for one in client.secrets.list(filters={"names": ["pysec"]})])
    config = client.configs.create(name="pycfg", data=b"y", templating={"name": "golang"})
    story.tell("config", lambda: client.configs.get("pycfg").attrs)
    story.tell("configs", lambda: [one.name for one in client.configs.list(filters={"name": "pycfg"})])
    story.tell("secret, unknown", lambda: client.secrets.get("nosuch"))
    story.tell("config, no data", lambda: client.configs.create(name="empty", data=b""))
    return secret, config


def _services(story: Story, secret: Any, config: Any) -> None:
    client = story.client
    service = client.services.create(
        "busybox:latest",
        command=RUN,
        name="pysvc",
        mode=ServiceMode("replicated", replicas=2),
        labels={"l": "1"},
        container_labels={"c": "1"},
        resources=Resources(cpu_limit=100_000_000, mem_limit=16 << 20, mem_reservation=4 << 20),
        restart_policy=RestartPolicy(condition="any", delay=SECOND_NS, max_attempts=3, window=5),
        update_config=UpdateConfig(parallelism=1, failure_action="pause", monitor=SECOND_NS, order="start-first"),
        rollback_config=RollbackConfig(parallelism=1),
        endpoint_spec=EndpointSpec(mode="vip", ports={8124: (80, "tcp", "host")}),
        secrets=[SecretReference(secret.id, "pysec")],
        configs=[ConfigReference(config.id, "pycfg", filename="/etc/x")],
        constraints=["node.platform.os==linux"],
        preferences=[("spread", "node.labels.zone")],
        maxreplicas=2,
        env=["A=1"],
        mounts=["pyvol:/data:rw"],
        healthcheck=Healthcheck(test=["CMD", "true"], interval=SECOND_NS),
        dns_config=DNSConfig(nameservers=["1.1.1.1"]),
        hosts={"h": "1.2.3.4"},
        init=True,
        log_driver="json-file",
        log_driver_options={"max-size": "1m"},
        stop_grace_period=SECOND_NS,
        cap_add=["NET_ADMIN"],
        sysctls={"net.core.somaxconn": "99"},
        user="root",
        workdir="/tmp",
        hostname="{{.Task.Slot}}",
    )
    story.running(service, 2)
    story.tell("service", lambda: [service.reload(), service.attrs][1])
    story.tell("service tasks", lambda: sorted((t["Slot"], t["Status"]["State"]) for t in service.tasks()))
    story.tell("service task", lambda: {key: kind(value) for key, value in service.tasks()[0].items()})
    story.tell("services", lambda: [one.attrs.get("ServiceStatus") for one in client.services.list(status=True)])
    story.tell("logs", lambda: b"".join(sorted(service.logs(stdout=True, stderr=True))).decode())
    story.tell("defaults", lambda: client.services.get("pysvc", insert_defaults=True).attrs["Spec"])
    story.tell("secret in use", secret.remove)
    story.tell("config in use", config.remove)
    story.tell("create again", lambda: client.services.create("busybox", name="pysvc"))
    story.tell("scale", lambda: service.scale(1))
    story.running(service, 1)
    story.tell("stale", lambda: service.update(image="busybox:1.35"))
    story.tell("update", lambda: [service.reload(), service.update(image="busybox:1.35")][1])
    story.running(service, 1, "busybox:1.35")
    story.tell("force", lambda: [service.reload(), service.force_update()][1])
    service.reload()
    story.tell("after the updates", lambda: [service.attrs["Spec"], service.attrs["PreviousSpec"]])
    story.tell("service, unknown", lambda: client.services.get("nosuch"))


def _modes(story: Story) -> None:
    client = story.client
    everywhere = client.services.create("busybox:latest", command=RUN, name="pyglob", mode="global")
    story.running(everywhere, 2)
    story.tell("scale, global", lambda: everywhere.scale(2))
    story.tell("global", lambda: client.services.get("pyglob").attrs["Spec"]["Mode"])
    mode = ServiceMode("replicated-job", replicas=2, concurrency=1)
    job = client.services.create("busybox:latest", command=["true"], name="pyjob", mode=mode)
    until(lambda: [t["Status"]["State"] for t in job.tasks()], lambda found: found == ["complete"] * 2, what="the job")
    story.tell("job", lambda: [job.reload(), job.attrs["JobStatus"]][1])
    placed = client.services.create("busybox:latest", name="pynode", constraints=["node.hostname==nope"])
    until(lambda: [t["Status"].get("Err") for t in placed.tasks()], lambda found: found != [] and all(found))
    story.tell("no node", lambda: placed.tasks()[0]["Status"])
    for name in ("pyglob", "pyjob", "pynode"):
        story.tell(f"remove {name}", client.services.get(name).remove)


def _events(story: Story) -> None:
    client, now = story.client, int(time.time())
    secret = client.secrets.create(name="pyev", data=b"x")
    secret.remove()
    found = client.events(since=now - 1, until=now + 2, decode=True, filters={"type": "secret"})
    wanted = [event for event in found if event["Actor"]["Attributes"]["name"] == "pyev"]
    story.tell("events", lambda: [{**event, "time": 0, "timeNano": 0} for event in wanted])


def _end(story: Story, secret: Any, config: Any) -> None:
    client = story.client
    story.tell("remove pysvc", client.services.get("pysvc").remove)
    story.tell("secret remove", secret.remove)
    story.tell("config remove", config.remove)
    for list_them in (client.containers.list, story.other.containers.list):
        until(list_them, lambda left: not left, what="no container")
    story.tell("leave, worker", story.other.swarm.leave)
    story.tell("leave", client.swarm.leave)
    story.tell("leave by force", lambda: client.swarm.leave(force=True))
    story.tell("info", lambda: client.info()["Swarm"])


def kind(value: Any) -> Any:
    """Members and their kinds, for what holds numbers of this moment."""
    return {key: kind(one) for key, one in value.items()} if isinstance(value, dict) else type(value).__name__


def _tell(manager: Host, worker: Host) -> list[tuple[str, str]]:
    story = Story(manager, worker)
    _no_swarm(story)
    _swarm(story)
    _nodes(story)
    secret, config = _resources(story)
    _services(story, secret, config)
    _modes(story)
    _events(story)
    _end(story, secret, config)
    return story.rows


def test_docker_py_sees_the_same_on_ours_and_on_stock(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    stock = make_lab(0, stock=2)
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(lambda one: _tell(*one.hosts[:2]), (lab, stock))
    pool_shown = re.compile(r'"DefaultAddrPool": (null|\["10.0.0.0/8"\])')  # see docs/divergence.md
    differences = [
        f"{name}\n  stock {other}\n  ours  {mine}"
        for (name, mine), (_, other) in zip(ours, theirs, strict=True)
        if pool_shown.sub("", mine) != pool_shown.sub("", other)
    ]
    assert not differences, "\n".join(differences)
