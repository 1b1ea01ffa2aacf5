"""Whether a task can run on a node: the checks in SwarmKit's order, and the texts that say why not.

A Pipeline is made for one task, or for many identical ones, and then asked about nodes. It holds only the checks that
concern the task. (swarmkit: manager/scheduler/{filter,pipeline}.go)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from swarm import api
from swarm.manager.constraint import node_matches, parse_stored
from swarm.manager.genericresource import values_of
from swarm.manager.scheduler.nodes import NodeInfo, host_ports

Check = Callable[[NodeInfo, api.Node], bool]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_EXPLANATIONS = {
    "ready": ("1 node not available for new tasks", "{} nodes not available for new tasks"),
    "resources": ("insufficient resources on 1 node", "insufficient resources on {} nodes"),
    "plugins": ("missing plugin on 1 node", "missing plugin on {} nodes"),
    "constraints": (
        "scheduling constraints not satisfied on 1 node",
        "scheduling constraints not satisfied on {} nodes",
    ),
    "platforms": ("unsupported platform on 1 node", "unsupported platform on {} nodes"),
    "host ports": ("host-mode port already in use on 1 node", "host-mode port already in use on {} nodes"),
    "max replicas": ("max replicas per node limit exceed", "max replicas per node limit exceed"),
    "volumes": (
        "cannot fulfill requested CSI volume mounts on 1 node",
        "cannot fulfill requested CSI volume mounts on {} nodes",
    ),
}


class Pipeline:
    """The checks for one task. counts: active tasks of its service by node, live."""

    def __init__(self, task: api.Task, counts: Callable[[], Mapping[str, int]]) -> None:
        self._checks: list[tuple[str, Check]] = [("ready", lambda info, node: info.ready())]
        spec = task.spec
        if spec.HasField("resources"):
            self._add("resources", _resources(spec.resources.reservations))
        self._add("plugins", _plugins(task))
        if spec.HasField("placement"):
            constraints = parse_stored(spec.placement.constraints)
            if constraints:
                self._add("constraints", lambda info, node: node_matches(constraints, node))
            self._add("platforms", _platforms(spec.placement.platforms))
        ports = host_ports(task) if task.endpoint.ports else ()
        if ports:
            self._add("host ports", lambda info, node: not any(info.ports.get(port) for port in ports))
        limit = spec.placement.max_replicas
        if limit:
            self._add("max replicas", lambda info, node: counts().get(info.node_id, 0) < limit)
        if any(mount.type == api.Mount.CLUSTER for mount in spec.container.mounts):
            self._add("volumes", lambda info, node: False)  # no cluster volume is ever published anywhere

    def _add(self, name: str, check: Check | None) -> None:
        if check is not None:
            self._checks.append((name, check))

    def failing(self, info: NodeInfo) -> str | None:
        """Name of the first check that the node fails; None when the task can run there."""
        node = info.node
        if node is None:
            return "ready"
        for name, check in self._checks:
            if not check(info, node):
                return name
        return None

    def explain(self, infos: Iterable[NodeInfo]) -> str:
        """Why the task can run on none of these nodes; the most frequent reason comes first."""
        failures = {name: 0 for name, _ in self._checks}
        for info in infos:
            name = self.failing(info)
            if name is not None:
                failures[name] += 1
        parts = sorted(failures.items(), key=lambda item: -item[1])
        return "; ".join(_EXPLANATIONS[name][number > 1].format(number) for name, number in parts if number)


def _resources(reserved: api.Resources) -> Check | None:
    cpus, memory = reserved.nano_cpus, reserved.memory_bytes
    wanted = values_of(reserved.generic)
    if not (cpus or memory or wanted):
        return None
    discrete = all(resource.HasField("discrete_resource_spec") for resource in reserved.generic)

    def check(info: NodeInfo, node: api.Node) -> bool:
        if not info.fits(cpus, memory):
            return False
        for kind, _, amount in wanted:
            named, free = info.free_generic(kind)
            if not discrete or amount > (len(named) or free) or not (named or free):
                return False
        return True

    return check


def _volume_drivers(task: api.Task) -> list[str]:
    drivers = [
        mount.volume_options.driver_config.name
        for mount in task.spec.container.mounts
        if mount.type == api.Mount.VOLUME
    ]
    return [name for name in drivers if name not in ("", "local")]


def _plugins(task: api.Task) -> Check | None:
    needed = [("Volume", name) for name in _volume_drivers(task)]
    needed += [("Network", name) for attachment in task.networks if (name := attachment.network.driver_state.name)]
    log_driver = task.spec.log_driver.name if task.spec.HasField("log_driver") else ""
    if log_driver == "none":
        log_driver = ""
    if not needed and not log_driver:
        return None

    def check(info: NodeInfo, node: api.Node) -> bool:
        if not node.description.HasField("engine"):
            return True  # no engine, no plugins
        plugins = node.description.engine.plugins
        present = {(plugin.type, plugin.name.removesuffix(":latest")): None for plugin in plugins}
        if any((kind, name.removesuffix(":latest")) not in present for kind, name in needed):
            return False
        # Old engines do not report their log drivers; then any is assumed to be there.
        reported = any(kind == "Log" for kind, _ in present)
        return not (log_driver and reported and ("Log", log_driver.removesuffix(":latest")) not in present)

    return check


def _architecture(name: str) -> str:
    return _ARCHITECTURES.get(name, name)


def _platforms(platforms: Iterable[api.Platform]) -> Check | None:
    wanted = [(_architecture(platform.architecture), platform.os) for platform in platforms]
    if not wanted:
        return None

    def check(info: NodeInfo, node: api.Node) -> bool:
        if not node.description.HasField("platform"):
            return False
        have = node.description.platform
        architecture = _architecture(have.architecture)
        return any(arch in ("", architecture) and os in ("", have.os) for arch, os in wanted)

    return check
