"""Placement constraints: texts for the user, and what matches."""

from __future__ import annotations

import pytest

from swarm import api
from swarm.manager.constraint import ConstraintError, node_matches, parse, parse_stored


def make_node() -> api.Node:
    node = api.Node(id="Node1", role=api.MANAGER)
    node.spec.annotations.labels["Zone"] = "A"
    node.description.hostname = "Alpha"
    node.description.platform.os = "linux"
    node.description.platform.architecture = "x86_64"
    node.description.engine.labels["disk"] = "ssd"
    node.status.addr = "10.1.2.3"
    return node


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("node.id", "constraint expected one operator from ==, !="),
        ("node.id=a", "constraint expected one operator from ==, !="),
        (" ==a", "key '' is invalid"),
        ("n==a", "key 'n' is invalid"),
        ("1node==a", "key '1node' is invalid"),
        ("node.id!=a==b", "key 'node.id!=a' is invalid"),
        ("node.id==", "value '' is invalid"),
        ("node.id==a~b", "value 'a~b' is invalid"),
        ("node.id==a==b", "value 'a==b' is invalid"),
        ("node.id==a\n\u00a0b", "value 'a\n\u00a0b' is invalid"),
    ],
)
def test_a_wrong_expression_is_refused_with_swarmkits_words(expression: str, text: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        parse(["node.id==ok", expression])
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ("node.id==node1", True),
        ("NODE.ID == Node1", True),
        ("node.id!=node1", False),
        ("node.hostname==ALPHA", True),
        ("node.role==manager", True),
        ("node.role!=worker", True),
        ("node.platform.os==Linux", True),
        ("node.platform.arch==amd64", False),
        ("node.labels.Zone==a", True),
        ("node.labels.zone==a", False),  # the label itself keeps its case
        ("node.labels.zone!=a", True),  # a missing label is an empty one
        ("NODE.LABELS.Zone==a", True),
        ("engine.labels.disk==SSD", True),
        ("engine.labels.none!=x", True),
        ("node.labels.==a", False),
        ("node.unknown!=a", False),
        ("node.ip==10.1.2.3", True),
        ("node.ip!=10.1.2.4", True),
        ("node.ip==10.1.0.0/16", True),
        ("node.ip!=10.1.9.9/16", False),
        ("node.ip==::ffff:10.1.2.3", True),
        ("node.ip==fe80::/10", False),
        ("node.ip!=fe80::/10", True),
        ("node.ip!=nonsense", False),
        ("node.ip!=10.1.0.0/99", False),
    ],
)
def test_an_expression_matches_the_node_or_not(expression: str, matches: bool) -> None:
    assert node_matches(parse([expression]), make_node()) is matches


def test_all_expressions_must_match() -> None:
    assert node_matches(parse(["node.role==manager", "node.labels.Zone==a"]), make_node())
    assert not node_matches(parse(["node.role==manager", "node.labels.Zone==b"]), make_node())


def test_a_node_without_description_has_empty_properties() -> None:
    bare = api.Node(id="n")
    assert not node_matches(parse(["node.hostname==a"]), bare)
    assert node_matches(parse(["node.platform.os!=linux", "engine.labels.a!=b"]), bare)
    assert not node_matches(parse(["node.ip==10.0.0.1"]), bare)
    assert node_matches(parse(["node.ip!=10.0.0.0/8"]), bare)


def test_stored_expressions_that_cannot_be_parsed_are_ignored() -> None:
    assert parse_stored(["node.id=="]) == []
