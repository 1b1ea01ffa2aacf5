"""The description of a node for the managers, from the engine's answers. Pure: no I/O.

(moby: daemon/cluster/executor/container/executor.go, Describe)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from swarm import api

Json = dict[str, Any]

_PLUGIN_TYPES = ("Volume", "Network", "Authorization", "Log")
_CAPABILITIES = {"volumedriver": "Volume", "networkdriver": "Network", "logdriver": "Log"}
_NANO = 1_000_000_000


def node_description(info: Json, managed_plugins: Iterable[Json]) -> api.NodeDescription:
    """info: from GET /info; managed_plugins: from GET /plugins. The caller adds the TLS information."""
    return api.NodeDescription(
        hostname=info.get("Name") or "",
        platform=api.Platform(architecture=info.get("Architecture") or "", os=info.get("OSType") or ""),
        resources=api.Resources(
            nano_cpus=int(info.get("NCPU") or 0) * _NANO,
            memory_bytes=int(info.get("MemTotal") or 0),
            generic=[_generic(resource) for resource in info.get("GenericResources") or ()],
        ),
        engine=api.EngineDescription(
            engine_version=info.get("ServerVersion") or "",
            labels=_labels(info.get("Labels") or ()),
            plugins=_plugins(info.get("Plugins") or {}, managed_plugins),
        ),
    )


def _labels(pairs: Iterable[str]) -> dict[str, str]:
    """Labels from ``key=value`` texts; texts without a value are skipped."""
    split = (pair.partition("=") for pair in pairs)
    return {key: value for key, equals, value in split if equals}


def _plugins(builtin: Json, managed: Iterable[Json]) -> list[api.PluginDescription]:
    """Plugins sorted by type and name. The overlay driver is always included: it is ours, not the engine's."""
    found = {("Network", "overlay")}
    for kind in _PLUGIN_TYPES:
        found.update((kind, name) for name in builtin.get(kind) or ())
    for plugin in managed:
        interface = (plugin.get("Config") or {}).get("Interface") or {}
        for text in interface.get("Types") or ():
            prefix, _, capability = str(text).partition("/")[0].partition(".")
            if prefix == "docker" and plugin.get("Enabled"):
                found.add((_CAPABILITIES.get(capability, capability), str(plugin.get("Name"))))
    return [api.PluginDescription(type=kind, name=name) for kind, name in sorted(found)]


def _generic(resource: Json) -> api.GenericResource:
    if named := resource.get("NamedResourceSpec"):
        spec = api.NamedGenericResource(kind=named.get("Kind") or "", value=named.get("Value") or "")
        return api.GenericResource(named_resource_spec=spec)
    counted = resource.get("DiscreteResourceSpec") or {}
    amount = api.DiscreteGenericResource(kind=counted.get("Kind") or "", value=int(counted.get("Value") or 0))
    return api.GenericResource(discrete_resource_spec=amount)


def remapped_root(info: Json) -> tuple[int, int]:
    """The owner (uid, gid) that containers see as root: (0, 0) unless the engine maps user IDs.

    The engine lists the mapping among its security options, but the IDs are only in the name of its data directory.
    """
    remapped = any(str(option).startswith("name=userns") for option in info.get("SecurityOptions") or ())
    uid, _, gid = str(info.get("DockerRootDir") or "").rpartition("/")[2].partition(".")
    return (int(uid), int(gid)) if remapped and uid.isdigit() and gid.isdigit() else (0, 0)
