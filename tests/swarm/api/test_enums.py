"""Numbers that an enumeration has no word for."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from swarm import api
from swarm.api.enums import enum_name, unknown_value


def test_a_known_value_is_shown_by_its_name_and_any_other_number_as_it_is() -> None:
    assert enum_name(api.NodeRole, api.MANAGER) == "MANAGER"
    assert enum_name(api.NodeRole, 7) == "7"


def port(protocol: int) -> api.ServiceSpec:
    spec = api.ServiceSpec()
    spec.endpoint.ports.add()
    spec.endpoint.ports.add(protocol=protocol)
    return spec


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (api.NodeSpec(desired_role=api.MANAGER, availability=api.NodeSpec.DRAIN), None),
        (api.NodeSpec(desired_role=2), "desired_role"),  # type: ignore[arg-type]
        (port(api.PortConfig.UDP), None),
        (port(9), "endpoint.ports.protocol"),
        (api.Cluster(blacklisted_certificates={"n1": api.BlacklistedCertificate()}), None),
        (api.Annotations(labels={"a": "b"}), None),
    ],
)
def test_a_number_without_a_name_is_found_at_any_depth(message: Message, field: str | None) -> None:
    assert unknown_value(message) == field
