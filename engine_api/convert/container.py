"""Tables of a container as services describe it: container spec, mounts, health, privileges, references.

(moby: daemon/cluster/convert/container.go)
"""

from __future__ import annotations

import json
from typing import Any

from engine_api.convert.fields import (
    DRIVER,
    custom,
    data,
    duration,
    enum,
    flag,
    ignored,
    labels,
    many,
    narrow,
    nested,
    number,
    strings,
    text,
    wrapped,
)
from engine_api.convert.gotypes import BOOL, STRINGS, list_type, string_type
from engine_api.convert.table import OMIT, Table
from engine_api.errors import BadParameter
from swarm import api

DNS_CONFIG = Table(
    "swarm.DNSConfig",
    [strings("Nameservers", "nameservers"), strings("Search", "search"), strings("Options", "options")],
)

HEALTH_CONFIG = Table(
    "container.HealthConfig",
    [
        strings("Test", "test"),
        duration("Interval", "interval"),
        duration("Timeout", "timeout"),
        duration("StartPeriod", "start_period"),
        duration("StartInterval", "start_interval"),
        narrow("Retries", "retries"),
    ],
)

ULIMIT = Table(
    "units.Ulimit",
    [text("Name", "name", always=True), number("Hard", "hard", always=True), number("Soft", "soft", always=True)],
)

# --- privileges -------------------------------------------------------------------------------------------------------

_CREDENTIAL_SOURCES = ("config", "file", "registry")


def _one_credential_source(parsed: dict[str, Any]) -> dict[str, Any]:
    given = [f'"{source}"' for source in _CREDENTIAL_SOURCES if parsed.get(source.capitalize())]
    if not given:
        raise BadParameter(
            'invalid CredentialSpec: must either provide "file", "registry", or "config" for credential spec'
        )
    if len(given) > 1:
        first = ", ".join(given[:-1]) + ("," if len(given) > 2 else "")
        raise BadParameter(f"invalid CredentialSpec: cannot specify both {first} and {given[-1]} credential specs")
    return parsed


CREDENTIAL_SPEC = Table(
    "swarm.CredentialSpec",
    [text(source.capitalize(), source, always=True) for source in _CREDENTIAL_SOURCES],
    begin=_one_credential_source,
)

SELINUX_CONTEXT = Table(
    "swarm.SELinuxContext",
    [
        flag("Disable", "disable", always=True),
        text("User", "user", always=True),
        text("Role", "role", always=True),
        text("Type", "type", always=True),
        text("Level", "level", always=True),
    ],
)

_SECCOMP = api.Privileges.SeccompOpts
_APPARMOR = api.Privileges.AppArmorOpts

SECCOMP = Table(
    "swarm.SeccompOpts",
    [
        enum(
            "Mode",
            "mode",
            {"default": _SECCOMP.DEFAULT, "unconfined": _SECCOMP.UNCONFINED, "custom": _SECCOMP.CUSTOM},
            go="swarm.SeccompMode",
            exact=True,
        ),
        data("Profile", "profile"),
    ],
)

APPARMOR = Table(
    "swarm.AppArmorOpts",
    [
        enum(
            "Mode",
            "mode",
            {"default": _APPARMOR.DEFAULT, "disabled": _APPARMOR.DISABLED},
            go="swarm.AppArmorMode",
            exact=True,
        )
    ],
)

PRIVILEGES = Table(
    "swarm.Privileges",
    [
        nested("CredentialSpec", "credential_spec", CREDENTIAL_SPEC, missing=None),
        nested("SELinuxContext", "selinux_context", SELINUX_CONTEXT, missing=None),
        nested("Seccomp", "seccomp", SECCOMP),
        nested("AppArmor", "apparmor", APPARMOR),
        flag("NoNewPrivileges", "no_new_privileges"),
    ],
)

# --- mounts -----------------------------------------------------------------------------------------------------------

_PROPAGATIONS = {
    name.lower(): value for name, value in api.Mount.BindOptions.Propagation.items()
}  # the first, RPRIVATE, is the default

BIND_OPTIONS = Table(
    "mount.BindOptions",
    [
        enum(
            "Propagation",
            "propagation",
            _PROPAGATIONS,
            go="mount.Propagation",
            refuse="invalid MountPropagation: ",
        ),
        flag("NonRecursive", "nonrecursive"),
        flag("CreateMountpoint", "createmountpoint"),
        flag("ReadOnlyNonRecursive", "readonlynonrecursive"),
        flag("ReadOnlyForceRecursive", "readonlyforcerecursive"),
    ],
)

VOLUME_OPTIONS = Table(
    "mount.VolumeOptions",
    [
        flag("NoCopy", "nocopy"),
        labels("Labels", "labels"),
        text("Subpath", "subpath"),
        nested("DriverConfig", "driver_config", DRIVER),
    ],
)


def _show_tmpfs_options(options: Any) -> Any:
    """The protocol keeps this list of lists as JSON text; a text that does not parse is not shown."""
    try:
        value = json.loads(options.options) if options.options else None
    except ValueError:
        return OMIT
    fits = isinstance(value, list) and all(isinstance(row, list) for row in value)
    return value if value and fits else OMIT


def _fill_tmpfs_options(options: Any, value: list[list[str]]) -> None:
    options.options = json.dumps(value, separators=(",", ":"), ensure_ascii=False) if value else ""


TMPFS_OPTIONS = Table(
    "mount.TmpfsOptions",
    [
        number("SizeBytes", "size_bytes"),
        number("Mode", "mode", "fs.FileMode"),
        custom("Options", list_type(STRINGS), _show_tmpfs_options, _fill_tmpfs_options),
    ],
)


def _drop_empty_bind_options(parsed: dict[str, Any]) -> dict[str, Any]:
    """Bind options without content are not kept, as in stock engines."""
    if not any(parsed.get("BindOptions", {}).values()):
        parsed.pop("BindOptions", None)
    return parsed


MOUNT = Table(
    "mount.Mount",
    [
        enum(
            "Type",
            "type",
            {name.lower(): value for name, value in api.Mount.Type.items()},
            go="mount.Type",
            refuse="invalid MountType: ",
        ),
        text("Source", "source"),
        text("Target", "target"),
        flag("ReadOnly", "readonly"),
        ignored("Consistency", string_type("mount.Consistency")),
        nested("BindOptions", "bind_options", BIND_OPTIONS),
        nested("VolumeOptions", "volume_options", VOLUME_OPTIONS),
        ignored("ImageOptions", Table("mount.ImageOptions", [text("Subpath", "")]).type),
        nested("TmpfsOptions", "tmpfs_options", TMPFS_OPTIONS),
        ignored("ClusterOptions", Table("mount.ClusterOptions", []).type),
    ],
    begin=_drop_empty_bind_options,
)

# --- secrets and configs ----------------------------------------------------------------------------------------------

_FILE_TARGET = [
    text("Name", "name", always=True),
    text("UID", "uid", always=True),
    text("GID", "gid", always=True),
    number("Mode", "mode", "fs.FileMode", always=True),
]

SECRET_REFERENCE = Table(
    "swarm.SecretReference",
    [
        nested("File", "file", Table("swarm.SecretReferenceFileTarget", _FILE_TARGET)),
        text("SecretID", "secret_id", always=True),
        text("SecretName", "secret_name", always=True),
    ],
)


def _one_config_target(parsed: dict[str, Any]) -> dict[str, Any]:
    if "File" not in parsed and "Runtime" not in parsed:
        raise BadParameter("invalid Config: either File or Runtime should be set")
    if "File" in parsed and "Runtime" in parsed:
        raise BadParameter("invalid Config: cannot specify both File and Runtime")
    return parsed


CONFIG_REFERENCE = Table(
    "swarm.ConfigReference",
    [
        nested("File", "file", Table("swarm.ConfigReferenceFileTarget", _FILE_TARGET)),
        nested("Runtime", "runtime", Table("swarm.ConfigReferenceRuntimeTarget", [])),
        text("ConfigID", "config_id", always=True),
        text("ConfigName", "config_name", always=True),
    ],
    begin=_one_config_target,
)


def _show_secrets(container: Any) -> Any:
    """References without a file as target are not shown. Requests keep them, so that the control API refuses them."""
    return [SECRET_REFERENCE.show(ref) for ref in container.secrets if ref.HasField("file")] or OMIT


def _fill_secrets(container: Any, value: list[dict[str, Any]]) -> None:
    for element in value:
        SECRET_REFERENCE.fill(container.secrets.add(), element)


# --- the container ----------------------------------------------------------------------------------------------------

_ISOLATIONS = {
    "default": api.ContainerSpec.ISOLATION_DEFAULT,
    "process": api.ContainerSpec.ISOLATION_PROCESS,
    "hyperv": api.ContainerSpec.ISOLATION_HYPERV,
}

CONTAINER_SPEC = Table(
    "swarm.ContainerSpec",
    [
        text("Image", "image"),
        labels("Labels", "labels"),
        strings("Command", "command"),
        strings("Args", "args"),
        text("Hostname", "hostname"),
        strings("Env", "env"),
        text("Dir", "dir"),
        text("User", "user"),
        strings("Groups", "groups"),
        nested("Privileges", "privileges", PRIVILEGES),
        wrapped("Init", "init", BOOL),
        text("StopSignal", "stop_signal"),
        flag("TTY", "tty"),
        flag("OpenStdin", "open_stdin"),
        flag("ReadOnly", "read_only"),
        many("Mounts", "mounts", MOUNT),
        duration("StopGracePeriod", "stop_grace_period", pointer=True),
        nested("Healthcheck", "healthcheck", HEALTH_CONFIG),
        strings("Hosts", "hosts"),
        nested("DNSConfig", "dns_config", DNS_CONFIG),
        custom("Secrets", list_type(SECRET_REFERENCE.type, pointer=True), _show_secrets, _fill_secrets),
        many("Configs", "configs", CONFIG_REFERENCE, pointer=True),
        enum("Isolation", "isolation", _ISOLATIONS, go="container.Isolation", unknown=""),
        labels("Sysctls", "sysctls"),
        strings("CapabilityAdd", "capability_add"),
        strings("CapabilityDrop", "capability_drop"),
        many("Ulimits", "ulimits", ULIMIT, pointer=True),
        number("OomScoreAdj", "oom_score_adj"),
    ],
)
