"""Converts the engine's inspect answer to a task's report about its container. Pure: no I/O.

(moby: daemon/cluster/executor/container/controller.go, parseContainerStatus, parsePortStatus)
"""

from __future__ import annotations

from typing import Any

from swarm import api

Json = dict[str, Any]


def state(container: Json) -> Json:
    """The container's State object."""
    return container.get("State") or {}


def is_created(container: Json) -> bool:
    """Whether the container was never started."""
    return bool(state(container).get("Status") == "created")


def is_running(container: Json) -> bool:
    """Whether the container runs (paused counts as running)."""
    return bool(state(container).get("Running"))


def exit_code(container: Json) -> int:
    """The exit code of the container's last exit; 0 while it runs."""
    return int(state(container).get("ExitCode") or 0)


def health(container: Json) -> str:
    """``starting``, ``healthy``, ``unhealthy``, or empty without a health check."""
    status = (state(container).get("Health") or {}).get("Status") or ""
    return "" if status == "none" else str(status)


def container_status(container: Json) -> api.ContainerStatus:
    """ID, pid (0 when it does not run) and exit code."""
    return api.ContainerStatus(
        container_id=container.get("Id") or "",
        pid=int(state(container).get("Pid") or 0),
        exit_code=exit_code(container),
    )


def port_status(container: Json) -> api.PortStatus:
    """The published ports as the engine bound them. IPv4 and IPv6 bindings of the same port are listed once."""
    bound: dict[tuple[int, str, int], None] = {}
    ports = (container.get("NetworkSettings") or {}).get("Ports") or {}
    for port, bindings in sorted(ports.items()):
        number, _, protocol = port.partition("/")
        for binding in bindings or ():
            bound[int(number), protocol, int(binding.get("HostPort") or 0)] = None
    known = api.PortConfig.Protocol.keys()
    return api.PortStatus(
        ports=[
            api.PortConfig(
                protocol=protocol.upper(),
                target_port=target,
                published_port=published,
                publish_mode=api.PortConfig.HOST,
            )
            for target, protocol, published in bound
            if protocol.upper() in known
        ]
    )
