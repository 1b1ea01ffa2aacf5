"""SwarmKit's checks of names, services and task specs, with SwarmKit's error texts, in SwarmKit's order.

(swarmkit: manager/controlapi/common.go, manager/controlapi/service.go)
"""

from __future__ import annotations

import re

from google.protobuf.duration_pb2 import Duration

from swarm import api, defaults, gotext
from swarm.api.timestamps import NANOSECONDS_PER_S, nanoseconds
from swarm.errors import InvalidArgument, SwarmError, Unimplemented
from swarm.manager import constraint
from swarm.manager.controlapi.common import MALFORMED, require
from swarm.manager.controlapi.validate_container import (
    check_config_references,
    check_container,
    check_secret_references,
)
from swarm.manager.tasks import is_job

# The same languages as SwarmKit's expressions, written so that a long name cannot make the matcher backtrack.
_DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
_SECRET_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")

_RESERVED_RUNTIMES = ("container", "attachment")
_RUNTIME_NAME_CHARS_MIN = 3
_INT64_MAX = (1 << 63) - 1


def check_annotations(annotations: api.Annotations) -> None:
    """The name rules of services and networks."""
    name = annotations.name
    require(name, "meta: name must be provided")
    require(_DNS_NAME.fullmatch(name), "name must be valid as a DNS name component")
    limit = defaults.SERVICE_NAME_CHARS_MAX
    require(len(name) <= limit, f"name must be {limit} characters or fewer")


def check_secret_annotations(annotations: api.Annotations) -> None:
    """The name rules of secrets and configs."""
    require(annotations.name, "name must be provided")
    limit = defaults.SECRET_NAME_CHARS_MAX
    require(
        len(annotations.name) <= limit and _SECRET_NAME.fullmatch(annotations.name),
        f"invalid name, only {limit} [a-zA-Z0-9-_.] characters allowed, "
        "and the start and end character must be [a-zA-Z0-9]",
    )


def checked_nanoseconds(duration: Duration) -> int:
    """A duration in nanoseconds. Raises InvalidArgument for one that is malformed or does not fit Go's."""
    whole, part = duration.seconds, duration.nanos
    total = nanoseconds(duration)
    well_formed = abs(part) < NANOSECONDS_PER_S and not (whole > 0 > part or whole < 0 < part)
    require(well_formed and abs(total) <= _INT64_MAX, "malformed duration")
    return total


def check_service(spec: api.ServiceSpec, replicas_max: int) -> None:
    """The checks of a service that do not depend on the cluster. replicas_max: how many tasks it may ask for."""
    check_annotations(spec.annotations)
    check_task(spec.task)
    _check_mode(spec, replicas_max)
    if is_job(spec):
        require(not spec.HasField("update"), "Jobs may not have an update config")
    elif spec.HasField("update"):
        _check_update(spec.update)
    _check_endpoint(spec.endpoint)


def check_task(spec: api.TaskSpec) -> None:
    """A task template: resources, restart policy, placement, references, and what to run."""
    _check_resources(spec.resources.limits)
    _check_resources(spec.resources.reservations)
    _check_restart(spec.restart)
    _check_placement(spec.placement)
    runtime = spec.WhichOneof("runtime")
    if runtime == "container":
        check_secret_references(spec.container)
        check_config_references(spec.container)
    require(runtime, "TaskSpec: missing runtime")
    if runtime == "container":
        check_container(spec)
    elif runtime == "generic":
        _check_generic(spec.generic)
    else:
        raise Unimplemented("RuntimeSpec: unimplemented runtime in service spec")


def _check_resources(resources: api.Resources) -> None:
    cpus, memory = resources.nano_cpus, resources.memory_bytes
    if cpus != 0 and cpus < defaults.NANO_CPUS_MIN:
        least = gotext.number(defaults.NANO_CPUS_MIN / 1e9)
        raise InvalidArgument(f"invalid cpu value {gotext.number(cpus / 1e9)}: Must be at least {least}")
    if memory != 0 and memory < defaults.MEMORY_BYTES_MIN:
        raise InvalidArgument(f"invalid memory value {memory}: Must be at least {defaults.MEMORY_BYTES_MIN >> 20}MiB")


def _check_restart(policy: api.RestartPolicy) -> None:
    require(checked_nanoseconds(policy.delay) >= 0, "TaskSpec: restart-delay cannot be negative")
    require(checked_nanoseconds(policy.window) >= 0, "TaskSpec: restart-window cannot be negative")


def _check_placement(placement: api.Placement) -> None:
    try:
        constraint.parse(list(placement.constraints))
    except ValueError as error:
        # SwarmKit passes this one on without a code, so clients see Unknown (HTTP 500); they may match on it.
        raise SwarmError(str(error)) from error


def _check_generic(spec: api.GenericRuntimeSpec) -> None:
    kind = gotext.quote(spec.kind)
    require(len(spec.kind.encode()) >= _RUNTIME_NAME_CHARS_MIN, f"Generic runtime: Invalid name {kind}")
    require(spec.kind.lower() not in _RESERVED_RUNTIMES, f"Generic runtime: {kind} is a reserved name")
    require(spec.HasField("payload"), "Generic runtime is missing payload")
    require(spec.payload.type_url, "Generic runtime is missing payload type")
    require(spec.payload.value, "Generic runtime has an empty payload")


def _check_mode(spec: api.ServiceSpec, replicas_max: int) -> None:
    mode = spec.WhichOneof("mode")
    require(mode, "Unrecognized service mode")
    if mode == "replicated":
        _check_number(spec.replicated.replicas, replicas_max, "Number of replicas", "be non-negative")
    elif mode == "replicated_job":
        job = spec.replicated_job
        _check_number(job.max_concurrent, replicas_max, "Maximum concurrent jobs", "not be negative")
        _check_number(job.total_completions, replicas_max, "Total completed jobs", "not be negative")


def _check_number(value: int, most: int, what: str, least: str) -> None:
    # A negative number arrives here as an enormous one.
    require(value <= _INT64_MAX, f"{what} must {least}")
    require(value <= most, f"{what} must not be greater than {most}, the limit of this manager (--max-replicas)")


def _check_update(update: api.UpdateConfig) -> None:
    require(checked_nanoseconds(update.delay) >= 0, "TaskSpec: update-delay cannot be negative")
    require(checked_nanoseconds(update.monitor) >= 0, "TaskSpec: update-monitor cannot be negative")
    require(
        0 <= update.max_failure_ratio <= 1,
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    )


def _check_endpoint(endpoint: api.EndpointSpec) -> None:
    taken = set()
    for port in endpoint.ports:
        ingress = port.publish_mode == api.PortConfig.INGRESS
        require(
            not (endpoint.mode == api.EndpointSpec.DNSRR and ingress),
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        )
        if port.published_port == 0:
            continue
        key = (port.published_port, port.protocol)
        require(key not in taken, "EndpointSpec: duplicate published ports provided")
        taken.add(key)


def check_secret(spec: api.SecretSpec) -> None:
    """A new secret: name, and either a driver or data of a fitting size."""
    check_secret_annotations(spec.annotations)
    if spec.HasField("driver"):
        require(spec.driver.name, "secret driver must have a name")
        return
    limit = defaults.SECRET_BYTES_MAX
    require(0 < len(spec.data) < limit, f"secret data must be larger than 0 and less than {limit} bytes")


def check_config(spec: api.ConfigSpec) -> None:
    """A new config: name and data of a fitting size."""
    check_secret_annotations(spec.annotations)
    limit = defaults.CONFIG_BYTES_MAX
    require(0 < len(spec.data) < limit, f"config data must be larger than 0 and less than {limit} bytes")


def check_cluster(spec: api.ClusterSpec) -> None:
    """A cluster's settings, without its CA configuration."""
    if spec.ca_config.HasField("node_cert_expiry"):
        least = int(defaults.NODE_CERT_EXPIRY_MIN_S * 1e9)
        require(
            checked_nanoseconds(spec.ca_config.node_cert_expiry) >= least,
            f"minimum certificate expiry time is: {gotext.duration(least)}",
        )
    for policy in spec.acceptance_policy.policies:
        if policy.HasField("secret"):
            hashed = policy.secret.alg.lower() == "bcrypt"
            require(hashed, f"hashing algorithm is not supported: {policy.secret.alg}")
    require(
        checked_nanoseconds(spec.dispatcher.heartbeat_period) >= 0,
        "heartbeat time period cannot be a negative duration",
    )
    require(
        spec.annotations.name == defaults.CLUSTER_NAME,
        "modification of cluster name is not allowed",
    )


def check_present(message_has_spec: bool) -> None:
    """Raises InvalidArgument for a request without its spec."""
    require(message_has_spec, MALFORMED)
