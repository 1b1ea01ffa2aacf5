"""Commands of the manager scripts: nodes and services as clients and agents change them."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from swarm import api
from swarm.api.timestamps import stamp
from swarm.store.store import Change
from swarm.store.tx import Tx
from tests.swarm.manager.leader_harness import LeaderHarness

GIGABYTE = 1 << 30


def _apply_node(node: api.Node, settings: dict[str, str]) -> None:
    for key, value in settings.items():
        if key == "cpus":
            node.description.resources.nano_cpus = int(float(value) * 1e9)
        elif key == "memory":
            node.description.resources.memory_bytes = int(value) * GIGABYTE
        elif key == "availability":
            node.spec.availability = getattr(api.NodeSpec, value.upper())
        elif key == "os":
            node.description.platform.os = value
        elif key.startswith("label."):
            node.spec.annotations.labels[key.removeprefix("label.")] = value
        elif key == "generic":
            del node.description.resources.generic[:]
            for part in value.split(","):
                kind, _, amount = part.partition(":")
                resource = node.description.resources.generic.add()
                if amount.isdigit():
                    resource.discrete_resource_spec.kind, resource.discrete_resource_spec.value = kind, int(amount)
                else:
                    resource.named_resource_spec.kind, resource.named_resource_spec.value = kind, amount
        else:
            raise AssertionError(f"unknown node setting {key}")


def node(harness: LeaderHarness, verb: str, name: str, settings: dict[str, str]) -> None:
    """add, set, down, up, rm."""

    def change(tx: Tx) -> None:
        if verb == "rm":
            tx.remove(api.Node, name)
            return
        if verb == "add":
            made = tx.create(api.Node(id=name))
            made.description.hostname = name
            made.description.resources.nano_cpus = 4_000_000_000
            made.description.resources.memory_bytes = 8 * GIGABYTE
            made.description.platform.os = "linux"
            made.status.state = api.NodeStatus.READY
        edited = tx.edit(api.Node, name)
        if verb in ("down", "up"):
            edited.status.state = api.NodeStatus.DOWN if verb == "down" else api.NodeStatus.READY
        before = edited.description.resources.nano_cpus
        _apply_node(edited, settings)
        if edited.description.resources.nano_cpus < before:
            harness.shrunk[name] = None

    harness.write(change)


def _duration(text: str) -> Duration:
    seconds = float(text.removesuffix("s"))
    return Duration(seconds=int(seconds), nanos=int((seconds - int(seconds)) * 1e9))


def _apply_rollout(config: api.UpdateConfig, key: str, value: str) -> None:
    if key == "parallelism":
        config.parallelism = int(value)
    elif key == "delay":
        config.delay.CopyFrom(_duration(value))
    elif key == "monitor":
        config.monitor.CopyFrom(_duration(value))
    elif key == "order":
        config.order = getattr(api.UpdateConfig, value.upper().replace("-", "_"))
    elif key == "failure":
        config.failure_action = getattr(api.UpdateConfig, value.upper())
    elif key == "ratio":
        config.max_failure_ratio = float(value)
    else:
        raise AssertionError(f"unknown update setting {key}")


def _apply_port(spec: api.ServiceSpec, value: str) -> None:
    """``[published:]target[/host]``"""
    text, _, mode = value.partition("/")
    published, _, target = text.rpartition(":")
    port = spec.endpoint.ports.add(target_port=int(target), published_port=int(published or 0))
    port.publish_mode = api.PortConfig.HOST if mode == "host" else api.PortConfig.INGRESS


def _apply_service(spec: api.ServiceSpec, settings: dict[str, str]) -> None:
    if any(key.startswith("restart.") for key in settings) and not spec.task.HasField("restart"):
        spec.task.restart.condition = api.RestartPolicy.ANY
    for part in ("update", "rollback"):
        if any(key.startswith(f"{part}.") for key in settings) and not spec.HasField(part):
            getattr(spec, part).parallelism = 1
    for key, value in settings.items():
        match key.split("."):
            case ["replicas"]:
                spec.replicated.replicas = int(value)
            case ["mode"]:
                getattr(spec, value).SetInParent()
            case ["completions"]:
                spec.replicated_job.total_completions = int(value)
            case ["concurrent"]:
                spec.replicated_job.max_concurrent = int(value)
            case ["image"]:
                spec.task.container.image = value
            case ["label"]:
                spec.annotations.labels["label"] = value
            case ["constraint"]:
                del spec.task.placement.constraints[:]
                spec.task.placement.constraints.extend(part for part in value.split(",") if part)
            case ["spread"]:
                spec.task.placement.preferences.add().spread.spread_descriptor = value
            case ["max_per_node"]:
                spec.task.placement.max_replicas = int(value)
            case ["cpus"]:
                spec.task.resources.reservations.nano_cpus = int(float(value) * 1e9)
            case ["generic"]:
                kind, _, amount = value.partition(":")
                resource = spec.task.resources.reservations.generic.add()
                resource.discrete_resource_spec.kind = kind
                resource.discrete_resource_spec.value = int(amount)
            case ["network"]:
                spec.task.networks.add(target=value)
            case ["port"]:
                del spec.endpoint.ports[:]
                for part in value.split(","):
                    _apply_port(spec, part)
            case ["restart"]:
                spec.task.restart.condition = getattr(api.RestartPolicy, value.upper().replace("-", "_"))
            case ["restart", "delay"]:
                spec.task.restart.delay.CopyFrom(_duration(value))
            case ["restart", "window"]:
                spec.task.restart.window.CopyFrom(_duration(value))
            case ["restart", "max"]:
                spec.task.restart.max_attempts = int(value)
            case ["update" | "rollback" as part, name]:
                _apply_rollout(getattr(spec, part), name, value)
            case _:
                raise AssertionError(f"unknown service setting {key}")


def service(harness: LeaderHarness, verb: str, name: str, settings: dict[str, str]) -> None:
    """create, update, rollback, rm; with what the Control API does to the object."""

    def create(tx: Tx) -> None:
        made = api.Service(id=name)
        made.spec.annotations.name = name
        made.spec_version.SetInParent()
        _apply_service(made.spec, settings)
        if made.spec.WhichOneof("mode") in ("replicated_job", "global_job"):
            made.job_status.SetInParent()
        tx.create(made)

    def update(tx: Tx) -> None:
        edited = tx.edit(api.Service, name)
        if edited.HasField("job_status"):
            edited.job_status.job_iteration.index += 1
        edited.previous_spec.CopyFrom(edited.spec)
        edited.previous_spec_version.CopyFrom(edited.spec_version)
        edited.spec_version.CopyFrom(edited.meta.version)
        _apply_service(edited.spec, settings)
        edited.ClearField("update_status")

    def rollback(tx: Tx) -> None:
        edited = tx.edit(api.Service, name)
        spec, version = api.ServiceSpec(), api.Version()
        spec.CopyFrom(edited.spec)
        version.CopyFrom(edited.spec_version)
        edited.spec.CopyFrom(edited.previous_spec)
        edited.spec_version.CopyFrom(edited.previous_spec_version)
        edited.previous_spec.CopyFrom(spec)
        edited.previous_spec_version.CopyFrom(version)
        edited.ClearField("update_status")
        edited.update_status.state = api.UpdateStatus.ROLLBACK_STARTED
        edited.update_status.message = "manually requested rollback"
        stamp(edited.update_status.started_at, tx.now)

    if "start-first" in settings.values():
        harness.start_first = True
    verbs = {"create": create, "update": update, "rollback": rollback}
    harness.write(verbs[verb] if verb != "rm" else lambda tx: tx.remove(api.Service, name))


def describe_service(change: Change) -> list[str]:
    """Lines for what users see of a service beside its spec."""
    before, after = change.before, change.after
    if not isinstance(after, api.Service):
        return [f"- service {change.object_id}"]
    old = before if isinstance(before, api.Service) else api.Service()
    out = []
    if after.update_status.state != old.update_status.state:
        state = api.UpdateStatus.UpdateState.Name(after.update_status.state)
        known = after.HasField("update_status")
        out.append(
            f"service {after.id} {state}: {after.update_status.message}" if known else f"service {after.id} as new"
        )
    if list(after.endpoint.ports) != list(old.endpoint.ports):
        ports = [f"{port.published_port}:{port.target_port}" for port in after.endpoint.ports]
        out.append(f"service {after.id} ports {' '.join(ports)}")
    return out


def tasks_of(harness: LeaderHarness, name: str) -> list[api.Task]:
    """Tasks of a service, oldest first within a slot."""
    tasks = harness.store.find(api.Task, "service", name)
    return sorted(tasks, key=lambda x: (x.slot, x.node_id if not x.slot else "", x.meta.created_at.ToNanoseconds()))


def state_of(task: api.Task) -> str:
    """State, node, and the desired state where it is not simply RUNNING."""
    words = [api.TaskState.Name(task.status.state)]
    if task.node_id:
        words.append(f"on {task.node_id}")
    if task.desired_state != api.RUNNING:
        words.append(f"desired {api.TaskState.Name(task.desired_state)}")
    if task.status.err:
        words.append(f"({task.status.err})")
    return " ".join(words)
