"""Converts a task into requests to the engine: container, volumes and mounted files. Pure: no I/O.

(moby: daemon/cluster/executor/container/container.go, validate.go)
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine_api.executor import references
from engine_api.executor.errors import TaskError
from swarm import api
from swarm.api.enums import enum_name
from swarm.api.timestamps import nanoseconds

LABEL = "com.docker.swarm"
LABEL_TASK = f"{LABEL}.task"
LABEL_TASK_ID = f"{LABEL}.task.id"
LABEL_NODE_ID = f"{LABEL}.node.id"
LABEL_PREDEFINED = f"{LABEL}.predefined"

Json = dict[str, Any]

_MOUNT_TYPES = {
    api.Mount.BIND: "bind",
    api.Mount.VOLUME: "volume",
    api.Mount.TMPFS: "tmpfs",
    api.Mount.NPIPE: "npipe",
    api.Mount.CLUSTER: "cluster",
}
_ISOLATIONS = {
    api.ContainerSpec.ISOLATION_DEFAULT: "default",
    api.ContainerSpec.ISOLATION_PROCESS: "process",
    api.ContainerSpec.ISOLATION_HYPERV: "hyperv",
}
_PORT_MAX = 65535
_SECRETS_DIRECTORY = "/run/secrets"
_CONFIGS_DIRECTORY = "/"


@dataclass(frozen=True, slots=True)
class PayloadFile:
    """A secret or config as a file. ``path`` is its path on the host, ``target`` its path in the container."""

    path: str
    target: str
    uid: int
    gid: int
    mode: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One network of a container: the engine's name for it, and its EndpointSettings as in the Engine API."""

    network: str
    settings: Json


# --- names and labels ----------------------------------------------------------------------------------------------


def container_name(task: api.Task) -> str:
    """``web.1.<task id>``; a task without a slot has its node's ID instead."""
    slot = str(task.slot) if task.slot else task.node_id
    return task.annotations.name or f"{task.service_annotations.name}.{slot}.{task.id}"


def labels(task: api.Task, spec: api.ContainerSpec) -> dict[str, str]:
    """Labels of the container: the user's, the task's, then ours. Later ones override earlier ones."""
    return {
        **spec.labels,
        **task.annotations.labels,
        LABEL_TASK: "",
        LABEL_TASK_ID: task.id,
        f"{LABEL}.task.name": container_name(task),
        LABEL_NODE_ID: task.node_id,
        f"{LABEL}.service.id": task.service_id,
        f"{LABEL}.service.name": task.service_annotations.name,
    }


def service_networks(task: api.Task) -> list[api.NetworkAttachment]:
    """Attachments to cluster networks. The engine handles its own networks (host, bridge, none) itself."""
    return [attachment for attachment in task.networks if not _predefined(attachment.network)]


def _predefined(network: api.Network) -> bool:
    return network.spec.annotations.labels.get(LABEL_PREDEFINED) == "true"


# --- checks --------------------------------------------------------------------------------------------------------


def check_runtime(task: api.Task) -> None:
    """Check that the task runs a container: no other runtime is supported. Raises TaskError."""
    runtime = task.spec.WhichOneof("runtime")
    if runtime == "generic":
        kind = task.spec.generic.kind.lower()
        if kind == "plugin":
            raise TaskError('runtime type "plugin" only supported in experimental')
        raise TaskError(f'unsupported runtime type: "{kind}"')
    if runtime != "container":
        raise TaskError("exec: unsupported runtime")
    if not task.spec.container.image:
        raise TaskError("dockerexec: image required")


def check_mounts(mounts: Iterable[api.Mount]) -> None:
    """Refuse mounts that the engine would interpret differently. Raises TaskError."""
    for mount in mounts:
        if not mount.target.startswith("/") and mount.type != api.Mount.NPIPE:
            raise TaskError(f"invalid mount target, must be an absolute path: {mount.target}")
        if mount.type == api.Mount.BIND and not mount.source.startswith("/"):
            raise TaskError(f"invalid bind mount source, must be an absolute path: {mount.source}")
        if mount.type == api.Mount.VOLUME and mount.source.startswith("/"):
            raise TaskError(f"invalid volume mount source, must not be an absolute path: {mount.source}")
        if mount.type == api.Mount.TMPFS and mount.source:
            raise TaskError("invalid tmpfs source, source must be empty")
        if mount.type == api.Mount.NPIPE and not mount.source:
            raise TaskError("invalid npipe source, source must not be empty")
        if mount.type == api.Mount.CLUSTER:
            raise TaskError(f"cluster volume {mount.source} cannot be mounted: this node has no CSI plugins")
        if mount.type not in _MOUNT_TYPES:
            raise TaskError(f"invalid mount type: {mount.type}")


# --- secrets and configs -------------------------------------------------------------------------------------------


def payload_files(
    spec: api.ContainerSpec,
    directory: str,
    secret: Callable[[str], bytes],
    config: Callable[[str], bytes],
) -> list[PayloadFile]:
    """Files for the secrets and configs of a task, to be stored in ``directory`` on the host.

    secret and config return the (expanded) data for an ID, or raise TaskError. Other references, such as a config that
    only contains a credential spec, are not files and are skipped.
    """
    files = []
    for number, secret_reference in enumerate(spec.secrets):
        if secret_reference.HasField("file"):
            path = f"{directory}/secret-{number}"
            data = secret(secret_reference.secret_id)
            files.append(_file(secret_reference.file, path, _SECRETS_DIRECTORY, data))
    for number, config_reference in enumerate(spec.configs):
        if config_reference.HasField("file"):
            path = f"{directory}/config-{number}"
            data = config(config_reference.config_id)
            files.append(_file(config_reference.file, path, _CONFIGS_DIRECTORY, data))
    return files


def _file(target: api.FileTarget, path: str, directory: str, data: bytes) -> PayloadFile:
    uid, gid = _owner(target.uid), _owner(target.gid)
    where = posixpath.normpath(posixpath.join(directory, target.name))
    return PayloadFile(path, where, uid, gid, target.mode & 0o777, data)


def _owner(text: str) -> int:
    try:
        owner = int(text)
    except ValueError:
        owner = -1
    if not 0 <= owner < 1 << 32:
        raise TaskError(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return owner


# --- the container -------------------------------------------------------------------------------------------------


def create_body(
    task: api.Task,
    spec: api.ContainerSpec,
    files: Sequence[PayloadFile] = (),
    endpoints: Sequence[Endpoint] = (),
    dns: Sequence[str] = (),
) -> Json:
    """Body of POST /containers/create for a task.

    spec: the task's spec with templates expanded. files: from payload_files(). endpoints: the cluster networks with
    which the container is created. dns: servers that resolve names of the cluster; used if the user named none.
    """
    body: Json = {
        "Image": references.familiar(spec.image),
        "Labels": labels(task, spec),
        "Env": [*spec.env, *_resource_variables(task.assigned_generic_resources)],
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "User": spec.user,
        "Hostname": spec.hostname,
        "WorkingDir": spec.dir,
        "ExposedPorts": {port: {} for port in _port_bindings(task)},
        "HostConfig": _host_config(task, spec, files, endpoints, dns),
        "NetworkingConfig": {"EndpointsConfig": {endpoint.network: endpoint.settings for endpoint in endpoints}},
    }
    if spec.stop_signal:
        body["StopSignal"] = spec.stop_signal
    if spec.HasField("healthcheck"):
        body["Healthcheck"] = _healthcheck(spec.healthcheck)
    if spec.command:
        body["Entrypoint"] = list(spec.command)
    if spec.command or spec.args:
        body["Cmd"] = list(spec.args)
    return body


def volume_requests(spec: api.ContainerSpec) -> list[Json]:
    """Bodies of POST /volumes/create: volumes with a driver configuration must exist before the container."""
    return [
        {
            "Name": mount.source,
            "Driver": mount.volume_options.driver_config.name,
            "DriverOpts": dict(mount.volume_options.driver_config.options),
            "Labels": dict(mount.volume_options.labels),
        }
        for mount in spec.mounts
        if mount.type == api.Mount.VOLUME and mount.source and mount.volume_options.HasField("driver_config")
    ]


def _host_config(
    task: api.Task,
    spec: api.ContainerSpec,
    files: Sequence[PayloadFile],
    endpoints: Sequence[Endpoint],
    dns: Sequence[str],
) -> Json:
    config: Json = {
        "GroupAdd": list(spec.groups) or None,
        "PortBindings": _port_bindings(task),
        "Mounts": [*map(_mount, spec.mounts), *map(_payload_mount, files)],
        "ReadonlyRootfs": spec.read_only,
        "Isolation": _ISOLATIONS.get(spec.isolation, "default"),
        "Sysctls": dict(spec.sysctls),
        "CapAdd": list(spec.capability_add) or None,
        "CapDrop": list(spec.capability_drop) or None,
        "OomScoreAdj": spec.oom_score_adj,
        "Dns": list(spec.dns_config.nameservers) or list(dns) or None,
        "DnsSearch": list(spec.dns_config.search) or None,
        "DnsOptions": list(spec.dns_config.options) or None,
        "ExtraHosts": _extra_hosts(spec.hosts) or None,
        "SecurityOpt": _security_options(spec.privileges) or None,
        "NetworkMode": _network_mode(task, endpoints),
        "Ulimits": [{"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard} for limit in spec.ulimits],
        **_resources(task.spec.resources),
    }
    if spec.pidsLimit > 0:
        config["PidsLimit"] = spec.pidsLimit
    if spec.HasField("init"):
        config["Init"] = spec.init.value
    if task.HasField("log_driver"):
        config["LogConfig"] = {"Type": task.log_driver.name, "Config": dict(task.log_driver.options)}
    return config


def _network_mode(task: api.Task, endpoints: Sequence[Endpoint]) -> str:
    if task.networks and _predefined(task.networks[0].network):
        return task.networks[0].network.spec.annotations.name
    return endpoints[0].network if endpoints else "default"


def _resources(requirements: api.ResourceRequirements) -> Json:
    """Resource limits. Without a limit, the engine's default applies. Swap only counts together with a memory limit."""
    config: Json = {}
    limits = requirements.limits
    if limits.memory_bytes > 0:
        config["Memory"] = limits.memory_bytes
        if requirements.HasField("swap_bytes"):
            swap = requirements.swap_bytes.value
            config["MemorySwap"] = limits.memory_bytes + swap if swap >= 0 else -1
    if requirements.HasField("limits") and requirements.HasField("memory_swappiness"):
        config["MemorySwappiness"] = requirements.memory_swappiness.value
    if limits.nano_cpus > 0:
        config["NanoCpus"] = limits.nano_cpus
    return config


def _resource_variables(resources: Iterable[api.GenericResource]) -> list[str]:
    values: dict[str, list[str]] = {}
    for resource in resources:
        if resource.HasField("named_resource_spec"):
            values.setdefault(resource.named_resource_spec.kind, []).append(resource.named_resource_spec.value)
        else:
            discrete = resource.discrete_resource_spec
            values.setdefault(discrete.kind, []).append(str(discrete.value))
    return [f"DOCKER_RESOURCE_{kind.upper()}={','.join(assigned)}" for kind, assigned in values.items()]


def _port_bindings(task: api.Task) -> dict[str, list[Json]]:
    """Bindings for ports in host mode; the engine does not handle others. With port 0 the engine chooses."""
    bindings: dict[str, list[Json]] = {}
    for port in task.endpoint.ports:
        if port.publish_mode == api.PortConfig.HOST and 0 < port.target_port <= _PORT_MAX:
            key = f"{port.target_port}/{enum_name(api.PortConfig.Protocol, port.protocol).lower()}"
            bindings.setdefault(key, []).append({"HostPort": str(port.published_port)} if port.published_port else {})
    return bindings


def _mount(mount: api.Mount) -> Json:
    config: Json = {"Type": _MOUNT_TYPES[mount.type], "Source": mount.source, "Target": mount.target}
    config["ReadOnly"] = mount.readonly
    if mount.HasField("bind_options"):
        options = mount.bind_options
        config["BindOptions"] = {
            "Propagation": enum_name(api.Mount.BindOptions.Propagation, options.propagation).lower(),
            "NonRecursive": options.nonrecursive,
            "CreateMountpoint": options.createmountpoint,
            "ReadOnlyNonRecursive": options.readonlynonrecursive,
            "ReadOnlyForceRecursive": options.readonlyforcerecursive,
        }
    if mount.HasField("volume_options"):
        volume = mount.volume_options
        config["VolumeOptions"] = {"NoCopy": volume.nocopy, "Labels": dict(volume.labels)}
        if volume.subpath:
            config["VolumeOptions"]["Subpath"] = volume.subpath
        if volume.HasField("driver_config"):
            driver = {"Name": volume.driver_config.name, "Options": dict(volume.driver_config.options)}
            config["VolumeOptions"]["DriverConfig"] = driver
    if mount.HasField("tmpfs_options"):
        tmpfs = mount.tmpfs_options
        config["TmpfsOptions"] = {"SizeBytes": tmpfs.size_bytes, "Mode": tmpfs.mode}
        if extra := _tmpfs_options(tmpfs.options):
            config["TmpfsOptions"]["Options"] = extra
    return config


def _tmpfs_options(text: str) -> list[list[str]]:
    """The cluster stores tmpfs options as JSON in a string. Anything else counts as no options, as upstream."""
    try:
        options = json.loads(text) if text else []
    except ValueError:
        return []
    return options if isinstance(options, list) else []


def _payload_mount(file: PayloadFile) -> Json:
    return {"Type": "bind", "Source": file.path, "Target": file.target, "ReadOnly": True}


def _healthcheck(health: api.HealthConfig) -> Json:
    config: Json = {"Test": list(health.test), "Retries": health.retries}
    durations: Mapping[str, Any] = {
        "Interval": health.interval,
        "Timeout": health.timeout,
        "StartPeriod": health.start_period,
        "StartInterval": health.start_interval,
    }
    for name, duration in durations.items():
        if length_ns := nanoseconds(duration):
            config[name] = length_ns
    return config


def _extra_hosts(hosts: Iterable[str]) -> list[str]:
    """Convert lines of hosts(5), ``1.2.3.4 name``, to the engine's ``name:1.2.3.4``. Aliases are dropped."""
    entries = (entry.split() for entry in hosts)
    return [f"{words[1]}:{words[0]}" for words in entries if len(words) > 1]


def _security_options(privileges: api.Privileges) -> list[str]:
    options = []
    source = privileges.credential_spec.WhichOneof("source")
    if source:
        options.append(f"credentialspec={source}://{getattr(privileges.credential_spec, source)}")
    selinux = privileges.selinux_context
    if selinux.disable:
        options.append("label=disable")
    options += [
        f"label={key}:{getattr(selinux, key)}" for key in ("user", "role", "level", "type") if getattr(selinux, key)
    ]
    if privileges.seccomp.mode == api.Privileges.SeccompOpts.UNCONFINED:
        options.append("seccomp=unconfined")
    if privileges.seccomp.mode == api.Privileges.SeccompOpts.CUSTOM:
        options.append(f"seccomp={privileges.seccomp.profile.decode(errors='replace')}")
    if privileges.apparmor.mode == api.Privileges.AppArmorOpts.DISABLED:
        options.append("apparmor=unconfined")
    if privileges.no_new_privileges:
        options.append("no-new-privileges=true")
    return options
