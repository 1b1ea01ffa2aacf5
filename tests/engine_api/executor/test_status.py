"""What a task reports about its container, from the engine's inspect answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_api.executor import status
from swarm import api

GOLDEN = Path(__file__).parents[2] / "golden" / "stock-20.10" / "api" / "container_full.json"


def test_a_running_container_of_a_stock_engine_is_understood() -> None:
    container = json.loads(GOLDEN.read_text())
    assert status.is_running(container)
    assert not status.is_created(container)
    assert status.health(container) == "healthy"
    assert status.container_status(container).container_id == container["Id"]
    assert status.container_status(container).pid == container["State"]["Pid"]
    port = api.PortConfig(target_port=53, published_port=5353, publish_mode=api.PortConfig.HOST)
    port.protocol = api.PortConfig.UDP
    assert list(status.port_status(container).ports) == [port]  # IPv4 and IPv6 count once


@pytest.mark.parametrize(
    "container", [{}, {"State": None, "NetworkSettings": None}, {"NetworkSettings": {"Ports": None}}]
)
def test_missing_fields_in_the_engines_answer_count_as_empty(container: dict[str, Any]) -> None:
    assert not status.is_running(container)
    assert status.exit_code(container) == 0
    assert status.health(container) == ""
    assert status.container_status(container) == api.ContainerStatus()
    assert status.port_status(container) == api.PortStatus()


def test_ports_without_a_binding_or_with_an_unknown_protocol_are_left_out() -> None:
    ports = {
        "80/tcp": None,
        "81/tcp": [],
        "82/dccp": [{"HostPort": "1"}],
        "83/sctp": [{"HostPort": "2"}, {"HostPort": "3"}],
    }
    found = status.port_status({"NetworkSettings": {"Ports": ports}}).ports
    assert [(port.target_port, port.published_port) for port in found] == [(83, 2), (83, 3)]
    assert found[0].protocol == api.PortConfig.SCTP


def test_without_a_health_check_there_is_no_health_status() -> None:
    assert status.health({"State": {"Health": {"Status": "none"}}}) == ""
