"""What a stock engine (20.10.24) was recorded to answer, and the same requests to our control API.

The names are those of the recording; IDs differ. ``{"message": "rpc error: code = X desc = Y"}`` is "X: Y" here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from swarm import api, defaults
from swarm.api.methods import METHODS

Change = Callable[[api.ServiceSpec], object]


def _container(spec: api.ServiceSpec) -> api.ContainerSpec:
    return spec.task.container


def _port(target: int, published: int, mode: int = api.PortConfig.INGRESS) -> Change:
    return lambda spec: spec.endpoint.ports.add(target_port=target, published_port=published, publish_mode=mode)


def _all(*changes: Change) -> Change:
    return lambda spec: [change(spec) for change in changes]


def _secret(secret_id: str, name: str, target: str | None = None) -> Change:
    def change(spec: api.ServiceSpec) -> None:
        reference = _container(spec).secrets.add(secret_id=secret_id, secret_name=name)
        if target is not None:
            reference.file.name = target

    return change


def _set(path: str, value: Any) -> Change:
    """Set a field given by its path in the spec; ``+`` appends to a repeated one."""

    def change(spec: api.ServiceSpec) -> None:
        *parents, name = path.rstrip("+").split(".")
        parent: Any = spec
        for part in parents:
            parent = getattr(parent, part)
        if path.endswith("+"):
            getattr(parent, name).append(value)
        elif isinstance(value, Duration | api.UpdateConfig):
            getattr(parent, name).CopyFrom(value)
        else:
            setattr(parent, name, value)

    return change


def _negative() -> Duration:
    return Duration(nanos=-1)


def _as_job(spec: api.ServiceSpec) -> None:
    spec.replicated_job.SetInParent()
    spec.update.SetInParent()


SERVICES: dict[str, tuple[Change, str]] = {
    "noname_badimage": (
        _set("task.container.image", ""),
        "InvalidArgument: ContainerSpec: image reference must be provided",
    ),
    "dup": (
        _set("annotations.name", "min"),
        "AlreadyExists: name conflicts with an existing object: service min already exists",
    ),
    "name_space": (
        _set("annotations.name", "a b"),
        "InvalidArgument: name must be valid as a DNS name component",
    ),
    "name_dot": (_set("annotations.name", "a.b"), "InvalidArgument: name must be valid as a DNS name component"),
    "name_64": (_set("annotations.name", "a" * 64), "InvalidArgument: name must be 63 characters or fewer"),
    "bad_ref": (
        _set("task.container.image", "Busy Box"),
        'InvalidArgument: ContainerSpec: "Busy Box" is not a valid repository/tag',
    ),
    "huge_replicas": (
        _set("replicated.replicas", (1 << 64) - 1),
        "InvalidArgument: Number of replicas must be non-negative",
    ),
    "net_ingress": (
        lambda spec: spec.task.networks.add(target="ingr"),
        'InvalidArgument: Service cannot be explicitly attached to the ingress network "ingress"',
    ),
    "dup_ports": (
        _all(_port(80, 81), _port(90, 81)),
        "InvalidArgument: EndpointSpec: duplicate published ports provided",
    ),
    "port_conflict": (
        _port(80, 8080),
        "InvalidArgument: port '8080' is already in use by service 'full' (svcfull) as an ingress port",
    ),
    "host_vs_ingress": (
        _port(80, 8080, api.PortConfig.HOST),
        "InvalidArgument: port '8080' is already in use by service 'full' (svcfull) as an ingress port",
    ),
    "ingress_vs_host": (
        _port(80, 9090),
        "InvalidArgument: port '9090' is already in use by service 'glob' (svcglob) as a host-published port",
    ),
    "dnsrr_ingress": (
        _all(_set("endpoint.mode", api.EndpointSpec.DNSRR), _port(80, 82)),
        "InvalidArgument: EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ),
    "mem_small": (
        _set("task.resources.limits.memory_bytes", 1000),
        "InvalidArgument: invalid memory value 1000: Must be at least 4MiB",
    ),
    "cpu_small": (
        _set("task.resources.limits.nano_cpus", 1),
        "InvalidArgument: invalid cpu value 1e-09: Must be at least 0.001",
    ),
    "mem_res_small": (
        _set("task.resources.reservations.memory_bytes", 1000),
        "InvalidArgument: invalid memory value 1000: Must be at least 4MiB",
    ),
    "constraint_noop": (
        _set("task.placement.constraints+", "foo"),
        "Unknown: constraint expected one operator from ==, !=",
    ),
    "constraint_key": (_set("task.placement.constraints+", "1a==b"), "Unknown: key '1a' is invalid"),
    "constraint_value": (
        _set("task.placement.constraints+", "node.role==a,b"),
        "Unknown: value 'a,b' is invalid",
    ),
    "secret_malformed": (_secret("", "x", "x"), "InvalidArgument: malformed secret reference"),
    "secret_notarget": (
        _secret("x", "x"),
        "InvalidArgument: malformed secret reference, no target provided",
    ),
    "secret_noname": (
        _secret("x", "x", ""),
        "InvalidArgument: malformed file secret reference, invalid target file name provided",
    ),
    "secret_notfound": (
        _all(_secret("x", "x", "x"), _secret("y", "y", "y")),
        "InvalidArgument: secrets not found: x, y",
    ),
    "secret_conflict": (
        _all(_secret("x", "x", "t"), _secret("y", "y", "t")),
        "InvalidArgument: secret references 'x' and 'y' have a conflicting target: 't'",
    ),
    "config_notfound": (
        lambda spec: _container(spec).configs.add(config_id="x", config_name="x", file=api.FileTarget(name="x")),
        "InvalidArgument: config not found: x",
    ),
    "neg_delay": (
        _set("update.delay", _negative()),
        "InvalidArgument: TaskSpec: update-delay cannot be negative",
    ),
    "neg_monitor": (
        _set("update.monitor", _negative()),
        "InvalidArgument: TaskSpec: update-monitor cannot be negative",
    ),
    "ratio": (
        _set("update.max_failure_ratio", 1.5),
        "InvalidArgument: TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    ),
    "job_update": (_as_job, "InvalidArgument: Jobs may not have an update config"),
    "restart_delay": (
        _set("task.restart.delay", _negative()),
        "InvalidArgument: TaskSpec: restart-delay cannot be negative",
    ),
    "restart_window": (
        _set("task.restart.window", _negative()),
        "InvalidArgument: TaskSpec: restart-window cannot be negative",
    ),
    "mount_dup": (
        lambda spec: _container(spec).mounts.extend([api.Mount(type=api.Mount.TMPFS, target="/x")] * 2),
        "InvalidArgument: ContainerSpec: duplicate mount point: /x",
    ),
    "health_interval": (
        _set("task.container.healthcheck.interval", Duration(nanos=10)),
        "InvalidArgument: ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
    ),
    "health_retries": (
        _set("task.container.healthcheck.retries", -1),
        "InvalidArgument: ContainerSpec: Retries in HealthConfig cannot be negative",
    ),
    "template": (
        _set("task.container.env+", "A={{.Nope}}"),
        'InvalidArgument: expanding env failed: expanding env "A={{.Nope}}": template: expansion:1:2: '
        'executing "expansion" at <.Nope>: can\'t evaluate field Nope in type *template.Context',
    ),
    "template_syntax": (
        _set("task.container.hostname", "{{"),
        "InvalidArgument: expanding hostname failed: template: expansion:1: unclosed action",
    ),
    "credspec_config": (
        _set("task.container.privileges.credential_spec.config", "zzz"),
        "InvalidArgument: CredentialSpec references config 'zzz', "
        "but that config isn't in config references with RuntimeTarget",
    ),
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_bad_service_is_refused_with_the_recorded_text(control: Any, name: str) -> None:
    change, text = SERVICES[name]
    spec = control.service_spec()
    change(spec)
    assert control.refused("CreateService", api.CreateServiceRequest(spec=spec)) == text


def _update(control: Any, **fields: Any) -> api.UpdateServiceRequest:
    version = fields.pop("version", control.version(api.Service, "svcmin"))
    spec = fields.pop("spec", control.service_spec("min"))
    return api.UpdateServiceRequest(service_id="svcmin", service_version=version, spec=spec, **fields)


def test_recorded_errors_of_service_updates(control: Any) -> None:
    stale = _update(control, version=api.Version(index=1))
    assert control.refused("UpdateService", stale) == "Unknown: update out of sequence"
    renamed = _update(control, spec=control.service_spec("min2"))
    assert control.refused("UpdateService", renamed) == "Unimplemented: renaming services is not supported"
    other_mode = control.service_spec("min")
    getattr(other_mode, "global").SetInParent()
    refused = control.refused("UpdateService", _update(control, spec=other_mode))
    assert refused == "Unimplemented: service mode change is not allowed"
    back = _update(control, rollback=api.UpdateServiceRequest.PREVIOUS)
    refused = control.refused("UpdateService", back)
    assert refused == "FailedPrecondition: service svcmin does not have a previous spec"


def _node_update(control: Any, node_id: str, role: int, **fields: Any) -> api.UpdateNodeRequest:
    version = fields.pop("version", control.version(api.Node, node_id))
    spec = api.NodeSpec(desired_role=role, membership=api.NodeSpec.ACCEPTED)  # type: ignore[arg-type]
    return api.UpdateNodeRequest(node_id=node_id, node_version=version, spec=spec)


def test_recorded_errors_of_nodes(control: Any) -> None:
    stale = _node_update(control, "n2", api.WORKER, version=api.Version(index=1))
    assert control.refused("UpdateNode", stale) == "Unknown: update out of sequence"
    refused = control.refused("UpdateNode", _node_update(control, "n1", api.WORKER))
    assert refused == "FailedPrecondition: attempting to demote the last manager of the swarm"
    for force in (False, True):
        refused = control.refused("RemoveNode", api.RemoveNodeRequest(node_id="n1", force=force))
        assert refused == (
            "FailedPrecondition: node n1 is a cluster manager and is a member of the raft cluster. "
            "It must be demoted to worker before removal"
        )
    refused = control.refused("RemoveNode", api.RemoveNodeRequest(node_id="n2"))
    assert refused == "FailedPrecondition: node n2 is not down and can't be removed"


BAD_NAME = (
    "InvalidArgument: invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, "
    "and the start and end character must be [a-zA-Z0-9]"
)
SECRET_SIZE = "InvalidArgument: secret data must be larger than 0 and less than 512000 bytes"
CONFIG_SIZE = "InvalidArgument: config data must be larger than 0 and less than 1024000 bytes"
SECRETS = {
    "noname": ("", b"x", "InvalidArgument: name must be provided"),
    "badname": ("-a", b"x", BAD_NAME),
    "65": ("a" * 65, b"x", BAD_NAME),
    "empty": ("e", b"", SECRET_SIZE),
    "dup": ("sec1", b"x", "AlreadyExists: secret sec1 already exists"),
    "big": ("e", bytes(defaults.SECRET_BYTES_MAX), SECRET_SIZE),
}
CONFIGS = {
    "noname": ("", b"x", "InvalidArgument: name must be provided"),
    "empty": ("e", b"", CONFIG_SIZE),
    "dup": ("cfg1", b"x", "AlreadyExists: config cfg1 already exists"),
    "big": ("e", bytes(defaults.CONFIG_BYTES_MAX), CONFIG_SIZE),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_bad_secret_is_refused_with_the_recorded_text(control: Any, name: str) -> None:
    given, data, text = SECRETS[name]
    spec = api.SecretSpec(annotations=api.Annotations(name=given), data=data)
    assert control.refused("CreateSecret", api.CreateSecretRequest(spec=spec)) == text


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_config_is_refused_with_the_recorded_text(control: Any, name: str) -> None:
    given, data, text = CONFIGS[name]
    spec = api.ConfigSpec(annotations=api.Annotations(name=given), data=data)
    assert control.refused("CreateConfig", api.CreateConfigRequest(spec=spec)) == text


def test_recorded_errors_of_secret_drivers(control: Any) -> None:
    spec = api.SecretSpec(annotations=api.Annotations(name="e"), driver=api.Driver())
    refused = control.refused("CreateSecret", api.CreateSecretRequest(spec=spec))
    assert refused == "InvalidArgument: secret driver must have a name"
    spec.driver.name = "nosuch"
    assert control.refused("CreateSecret", api.CreateSecretRequest(spec=spec)) == 'Unknown: plugin "nosuch" not found'


def test_recorded_errors_of_secrets_and_configs_in_use_or_changed(control: Any) -> None:
    used = "is in use by the following service: full"
    assert (
        control.refused("RemoveSecret", api.RemoveSecretRequest(secret_id="s1"))
        == f"InvalidArgument: secret 'sec1' {used}"
    )
    assert (
        control.refused("RemoveConfig", api.RemoveConfigRequest(config_id="c1"))
        == f"InvalidArgument: config 'cfg1' {used}"
    )
    for name, data in (("sec1", b"xx"), ("other", b"")):
        request = api.UpdateSecretRequest(
            secret_id="s1",
            secret_version=control.version(api.Secret, "s1"),
            spec=api.SecretSpec(annotations=api.Annotations(name=name), data=data),
        )
        assert control.refused("UpdateSecret", request) == "InvalidArgument: only updates to Labels are allowed"
    request = api.UpdateSecretRequest(
        secret_id="s1",
        secret_version=api.Version(index=1),
        spec=api.SecretSpec(annotations=api.Annotations(name="sec1")),
    )
    assert control.refused("UpdateSecret", request) == "Unknown: update out of sequence"
    config = api.UpdateConfigRequest(
        config_id="c1",
        config_version=control.version(api.Config, "c1"),
        spec=api.ConfigSpec(annotations=api.Annotations(name="cfg1"), data=b"xx"),
    )
    assert control.refused("UpdateConfig", config) == "InvalidArgument: only updates to Labels are allowed"


def _network(name: str, **fields: Any) -> api.NetworkSpec:
    spec = api.NetworkSpec(annotations=api.Annotations(name=name), driver_config=api.Driver(name="overlay"))
    spec.MergeFrom(api.NetworkSpec(**fields))
    return spec


def _ipam(**fields: Any) -> api.IPAMOptions:
    return api.IPAMOptions(configs=[api.IPAMConfig(subnet="10.44.0.0/24", **fields)])


NETWORKS = {
    "ingress_second": (
        _network("ingress2", ingress=True),
        "AlreadyExists: ingress network (ingr) is already present",
    ),
    "ingress_attachable": (
        _network("ingress2", ingress=True, attachable=True),
        "InvalidArgument: ingress network cannot be attachable",
    ),
    "bad_gw": (
        _network("bs", ipam=_ipam(gateway="10.45.0.1")),
        "InvalidArgument: ipam configuration: subnet 10.44.0.0/24 does not contain gateway 10.45.0.1",
    ),
    "bad_range": (
        _network("bs", ipam=_ipam(range="10.45.0.0/25")),
        "InvalidArgument: ipam configuration: subnet 10.44.0.0/24 does not contain range 10.45.0.0/25",
    ),
    "ingress_driver": (
        _network("ingress2", ingress=True, driver_config=api.Driver(name="bridge")),
        "Unimplemented: only overlay driver is currently supported for ingress network",
    ),
    "driver_unknown": (
        _network("zz", driver_config=api.Driver(name="nosuch")),
        "InvalidArgument: error during lookup of plugin nosuch",
    ),
    "driver_case": (
        _network("zz", driver_config=api.Driver(name="Overlay")),
        "InvalidArgument: error during lookup of plugin Overlay",
    ),
    "driver_no_name": (
        api.NetworkSpec(annotations=api.Annotations(name="zz"), driver_config=api.Driver(options={"a": "b"})),
        "InvalidArgument: driver name: if driver is specified name is required",
    ),
    "bad_subnet": (
        _network("bs", ipam=api.IPAMOptions(configs=[api.IPAMConfig(subnet="10.44.0.0")])),
        "InvalidArgument: ipam configuration: invalid subnet 10.44.0.0",
    ),
    "no_subnet": (
        _network("bs", ipam=api.IPAMOptions(configs=[api.IPAMConfig(gateway="10.44.0.1")])),
        "InvalidArgument: ipam configuration: invalid subnet ",
    ),
    "subnet_of_ipv6": (
        _network("bs", ipam=api.IPAMOptions(configs=[api.IPAMConfig(subnet="fd00::/64")])),
        "InvalidArgument: ipam configuration: subnet fd00::/64 is none of IPv4, and networks have only these",
    ),
    "gateway_no_address": (
        _network("bs", ipam=_ipam(gateway="nope")),
        "InvalidArgument: ipam configuration: invalid gateway nope",
    ),
    "gateway_of_ipv6": (
        _network("bs", ipam=_ipam(gateway="fd00::1")),
        "InvalidArgument: ipam configuration: subnet 10.44.0.0/24 does not contain gateway fd00::1",
    ),
    "range_no_prefix": (
        _network("bs", ipam=_ipam(range="10.44.0.0")),
        "InvalidArgument: ipam configuration: invalid range 10.44.0.0",
    ),
    "name_bad": (_network("a b"), "InvalidArgument: name must be valid as a DNS name component"),
    "ipam_driver": (
        _network("zz", ipam=api.IPAMOptions(driver=api.Driver(name="nosuch"))),
        "InvalidArgument: error during lookup of plugin nosuch",
    ),
    "predef_label": (
        _network("zz", annotations=api.Annotations(labels={"com.docker.swarm.predefined": "true"})),
        "PermissionDenied: label com.docker.swarm.predefined is for internally created predefined networks "
        "and cannot be applied by users",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bad_network_is_refused_with_the_recorded_text(control: Any, name: str) -> None:
    spec, text = NETWORKS[name]
    assert control.refused("CreateNetwork", api.CreateNetworkRequest(spec=spec)) == text


def test_recorded_errors_of_networks_in_use(control: Any) -> None:
    refused = control.refused("RemoveNetwork", api.RemoveNetworkRequest(network_id="net1"))
    assert refused == "FailedPrecondition: network net1 is in use by service svcfull"
    refused = control.refused("RemoveNetwork", api.RemoveNetworkRequest(network_id="ingr"))
    assert refused == "FailedPrecondition: ingress network cannot be removed because service svcfull depends on it"


def test_recorded_errors_of_the_cluster(control: Any) -> None:
    def refused(version: int | None = None, **fields: Any) -> str:
        spec = api.ClusterSpec(annotations=api.Annotations(name="default"), **fields)
        index = control.version(api.Cluster, "cl").index if version is None else version
        request = api.UpdateClusterRequest(cluster_id="cl", cluster_version=api.Version(index=index), spec=spec)
        return str(control.refused("UpdateCluster", request))

    assert refused(version=1) == "Unknown: update out of sequence"
    short = api.CAConfig(node_cert_expiry=Duration(seconds=1))
    assert refused(ca_config=short) == "InvalidArgument: minimum certificate expiry time is: 1h0m0s"
    negative = api.DispatcherConfig(heartbeat_period=_negative())
    assert refused(dispatcher=negative) == "InvalidArgument: heartbeat time period cannot be a negative duration"
    assert refused(ca_config=api.CAConfig(signing_ca_key=b"x")) == (
        "InvalidArgument: if a signing CA key is provided, the signing CA cert must also be provided"
    )


MISSING = {
    "GetService": (api.GetServiceRequest(service_id="x"), "NotFound: service x not found"),
    "RemoveService": (api.RemoveServiceRequest(service_id="x"), "NotFound: service x not found"),
    "GetTask": (api.GetTaskRequest(task_id="x"), "NotFound: task x not found"),
    "RemoveTask": (api.RemoveTaskRequest(task_id="x"), "NotFound: task x not found"),
    "GetNode": (api.GetNodeRequest(node_id="x"), "NotFound: node x not found"),
    "RemoveNode": (api.RemoveNodeRequest(node_id="x"), "NotFound: node x not found"),
    "GetNetwork": (api.GetNetworkRequest(network_id="x"), "NotFound: network x not found"),
    "RemoveNetwork": (api.RemoveNetworkRequest(network_id="x"), "NotFound: network x not found"),
    "GetCluster": (api.GetClusterRequest(cluster_id="x"), "NotFound: cluster x not found"),
    "GetSecret": (api.GetSecretRequest(secret_id="x"), "NotFound: secret x not found"),
    "RemoveSecret": (api.RemoveSecretRequest(secret_id="x"), "NotFound: could not find secret x"),
    "GetConfig": (api.GetConfigRequest(config_id="x"), "NotFound: config x not found"),
    "RemoveConfig": (api.RemoveConfigRequest(config_id="x"), "NotFound: could not find config x"),
    "GetExtension": (api.GetExtensionRequest(extension_id="x"), "NotFound: extension x not found"),
    "RemoveExtension": (api.RemoveExtensionRequest(extension_id="x"), "NotFound: could not find extension x"),
    "GetResource": (api.GetResourceRequest(resource_id="x"), "NotFound: resource x not found"),
    "RemoveResource": (api.RemoveResourceRequest(resource_id="x"), "NotFound: resource x not found"),
    "GetVolume": (api.GetVolumeRequest(volume_id="x"), "NotFound: volume x not found"),
    "RemoveVolume": (api.RemoveVolumeRequest(volume_id="x"), "NotFound: volume x not found"),
}


@pytest.mark.parametrize("method", MISSING)
def test_an_unknown_id_is_not_found(control: Any, method: str) -> None:
    request, text = MISSING[method]
    assert control.refused(method, request) == text


EMPTY = {
    "GetSecret": "secret ID must be provided",
    "RemoveSecret": "secret ID must be provided",
    "GetConfig": "config ID must be provided",
    "RemoveConfig": "config ID must be provided",
    "GetExtension": "extension ID must be provided",
    "RemoveExtension": "extension ID must be provided",
    "CreateExtension": "extension name must be provided",
    "GetResource": "resource ID must be present",
    "RemoveResource": "resource ID must be present",
    "CreateResource": "Resource must have a name",
    "UpdateResource": "must include ID and version",
    "CreateVolume": "spec must not be nil",
    "UpdateVolume": "VolumeID must not be empty",
    "GetVolume": "volume  not found",
    "RemoveVolume": "volume  not found",
}


def test_an_empty_request_is_refused_or_lists_everything(control: Any) -> None:
    for name in control.table:
        method = name.partition("/")[2]
        if method.startswith("List"):
            continue
        refused = control.refused(method, METHODS[name].request())
        assert refused.partition(": ")[2] == EMPTY.get(method, "invalid argument"), method
