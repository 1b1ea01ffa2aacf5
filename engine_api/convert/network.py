"""Networks of the swarm as the Engine API's network resources, next to the engine's own.

(moby: daemon/cluster/convert/network.go)
"""

from __future__ import annotations

from typing import Any

from engine_api.convert.fields import rfc3339
from swarm import api
from swarm.manager.networks import is_ingress


def network_resource(network: api.Network) -> dict[str, Any]:
    """The answer to GET /networks/{id} for a network of the swarm, without what only a node that uses it knows."""
    spec = network.spec
    ipam = network.ipam
    return {
        "Name": spec.annotations.name,
        "Id": network.id,
        "Created": rfc3339(network.meta.created_at),
        "Scope": "swarm",
        "Driver": network.driver_state.name,
        "EnableIPv6": spec.ipv6_enabled,
        "IPAM": {
            "Driver": ipam.driver.name,
            "Options": dict(sorted(ipam.driver.options.items())) or None,
            "Config": [_subnet(config) for config in ipam.configs],
        },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": is_ingress(network),
        "ConfigFrom": {"Network": spec.network},
        "ConfigOnly": False,
        "Containers": None,
        "Options": dict(sorted(network.driver_state.options.items())) or None,
        "Labels": dict(sorted(spec.annotations.labels.items())),
    }


def _subnet(config: api.IPAMConfig) -> dict[str, str]:
    shown = {"Subnet": config.subnet, "IPRange": config.range, "Gateway": config.gateway}
    return {key: value for key, value in shown.items() if value}
