"""What a node says of itself, from what its engine says."""

from __future__ import annotations

import pytest

from engine_api.executor.describe import node_description, remapped_root
from swarm import api

INFO = {
    "Name": "host1",
    "Architecture": "x86_64",
    "OSType": "linux",
    "NCPU": 4,
    "MemTotal": 8 << 30,
    "ServerVersion": "20.10.24",
    "Labels": ["rack=r1", "bare", "rack=r2", "url=a=b"],
    "Plugins": {
        "Volume": ["local"],
        "Network": ["overlay", "bridge"],
        "Authorization": None,
        "Log": ["syslog", "awslogs"],
    },
    "GenericResources": [
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "u1"}},
        {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}},
    ],
}


def managed(name: str, *types: str, enabled: bool = True) -> dict[str, object]:
    return {"Name": name, "Enabled": enabled, "Config": {"Interface": {"Types": list(types)}}}


def test_a_node_is_described() -> None:
    description = node_description(INFO, [])
    assert description.hostname == "host1"
    assert description.platform == api.Platform(architecture="x86_64", os="linux")
    assert (description.resources.nano_cpus, description.resources.memory_bytes) == (4_000_000_000, 8 << 30)
    assert description.resources.generic[0].named_resource_spec.value == "u1"
    assert description.resources.generic[1].discrete_resource_spec.value == 3
    assert description.engine.engine_version == "20.10.24"
    assert dict(description.engine.labels) == {"rack": "r2", "url": "a=b"}


def test_plugins_are_sorted_and_overlay_is_always_one_of_them() -> None:
    plugins = [
        managed("vieux/sshfs:latest", "docker.volumedriver/1.0"),
        managed("net", "docker.networkdriver/1.0", "docker.ipamdriver/1.0"),
        managed("off", "docker.logdriver/1.0", enabled=False),
        managed("other", "moby.metrics/1.0"),
    ]
    found = [(plugin.type, plugin.name) for plugin in node_description(INFO, plugins).engine.plugins]
    assert found == [
        ("Log", "awslogs"),
        ("Log", "syslog"),
        ("Network", "bridge"),
        ("Network", "net"),
        ("Network", "overlay"),
        ("Volume", "local"),
        ("Volume", "vieux/sshfs:latest"),
        ("ipamdriver", "net"),
    ]
    assert [plugin.name for plugin in node_description({}, []).engine.plugins] == ["overlay"]


@pytest.mark.parametrize(
    ("info", "root"),
    [
        ({}, (0, 0)),
        ({"DockerRootDir": "/var/lib/docker/1000.2000"}, (0, 0)),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/1000.2000"}, (1000, 2000)),
        ({"SecurityOptions": ["name=seccomp,profile=default"], "DockerRootDir": "/d/1.2"}, (0, 0)),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker"}, (0, 0)),
    ],
)
def test_the_root_of_containers_is_found_where_ids_are_mapped(info: dict[str, object], root: tuple[int, int]) -> None:
    assert remapped_root(info) == root
