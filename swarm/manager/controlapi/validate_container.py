"""SwarmKit's checks of container specs: image, mounts, health check, references to secrets and configs, templates.

Templates are tried out with made-up values for node, service and task, so that a mistake is reported to the user at
once instead of failing every task later.

(swarmkit: manager/controlapi/service.go; distribution/reference: regexp.go, normalize.go)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from swarm import api, defaults, gotext
from swarm.api.timestamps import nanoseconds
from swarm.errors import InvalidArgument
from swarm.expansion import expand_container
from swarm.manager.controlapi.common import require
from swarm.template import TemplateError

_HEX_DIGITS_OF_DIGEST = {"sha256": 64, "sha384": 96, "sha512": 128}
_IMAGE_ID = re.compile(r"[a-f0-9]{64}")
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_REMAINDER = re.compile(
    rf"(?P<path>{_PATH_PART}(?:/{_PATH_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?"
    r"(?:@(?P<algorithm>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*):(?P<hex>[0-9a-f]{32,}))?"
)


def check_container(spec: api.TaskSpec) -> None:
    """The container of a task spec, after its templates are expanded on trial."""
    try:
        container = expand_container(_trial_node(), _trial_task(spec))
    except TemplateError as error:
        raise InvalidArgument(str(error)) from error
    _check_image(container.image)
    targets = set()
    for mount in container.mounts:
        require(mount.target not in targets, f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(mount.target)
    _check_health(container.healthcheck)


def _trial_node() -> api.NodeDescription:
    return api.NodeDescription(hostname="nodeHostname", platform=api.Platform(os="os", architecture="architecture"))


def _trial_task(spec: api.TaskSpec) -> api.Task:
    return api.Task(
        spec=spec,
        service_id="serviceid",
        slot=1,
        node_id="nodeid",
        annotations=api.Annotations(name="taskname"),
        service_annotations=api.Annotations(name="servicename"),
    )


def _check_image(image: str) -> None:
    require(image, "ContainerSpec: image reference must be provided")
    if not is_image_reference(image):
        raise InvalidArgument(f"ContainerSpec: {gotext.quote(image)} is not a valid repository/tag")


def is_image_reference(text: str) -> bool:
    """Whether ``text`` names an image as users write it: ``[domain/]path[:tag][@digest]``."""
    if len(text) > defaults.IMAGE_REFERENCE_CHARS_MAX or _IMAGE_ID.fullmatch(text):
        return False
    domain, slash, remainder = text.partition("/")
    if not slash or not (domain == "localhost" or "." in domain or ":" in domain or domain != domain.lower()):
        domain, remainder = "", text
    if domain and not _DOMAIN.fullmatch(domain):
        return False
    match = _REMAINDER.fullmatch(remainder)
    if match is None:
        return False
    if match["algorithm"] is not None and _HEX_DIGITS_OF_DIGEST.get(match["algorithm"]) != len(match["hex"]):
        return False
    # What is left out counts as well: a bare name is one of Docker Hub's official images.
    implied = domain or ("docker.io" if slash else "docker.io/library")
    return len(f"{implied}/{match['path']}") <= defaults.IMAGE_NAME_CHARS_MAX


def _check_health(health: api.HealthConfig) -> None:
    for name, duration in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        _check_health_duration(name, duration)
    require(health.retries >= 0, "ContainerSpec: Retries in HealthConfig cannot be negative")


def _check_health_duration(name: str, duration: Duration) -> None:
    value = nanoseconds(duration)
    least = defaults.HEALTH_DURATION_MIN_NS
    if value != 0 and value < least:
        raise InvalidArgument(f"ContainerSpec: {name} in HealthConfig cannot be less than {gotext.duration(least)}")


def check_secret_references(container: api.ContainerSpec) -> None:
    """Secrets a container asks for: complete, with a target, and no two at the same place."""
    files: dict[str, str] = {}
    for reference in container.secrets:
        require(reference.secret_id and reference.secret_name, "malformed secret reference")
        require(reference.WhichOneof("target"), "malformed secret reference, no target provided")
        _check_file("secret", reference.file.name, reference.secret_name, files)


def check_config_references(container: api.ContainerSpec) -> None:
    """Configs a container asks for, as secrets; a credential spec must be one with a runtime target."""
    files: dict[str, str] = {}
    runtime_ids = []
    for reference in container.configs:
        require(reference.config_id and reference.config_name, "malformed config reference")
        target = reference.WhichOneof("target")
        require(target, "malformed config reference, no target provided")
        if target == "file":
            _check_file("config", reference.file.name, reference.config_name, files)
        else:
            runtime_ids.append(reference.config_id)
    _check_credential_spec(container.privileges.credential_spec.config, runtime_ids)


def _check_file(word: str, target: str, name: str, files: dict[str, str]) -> None:
    require(target, f"malformed file {word} reference, invalid target file name provided")
    if target in files:
        raise InvalidArgument(f"{word} references '{files[target]}' and '{name}' have a conflicting target: '{target}'")
    files[target] = name


def _check_credential_spec(config_id: str, runtime_ids: Sequence[str]) -> None:
    found = not config_id or config_id in runtime_ids
    where = "that config isn't in config references with RuntimeTarget"
    require(found, f"CredentialSpec references config '{config_id}', but {where}")
