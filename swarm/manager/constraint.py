"""Placement constraints: ``node.labels.zone != a`` parsed, and matched against a node.

Error texts are SwarmKit's; users see them when a service is refused. (swarmkit: manager/constraint/constraint.go)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from swarm import api
from swarm.address import ip_of
from swarm.api.enums import enum_name

NODE_LABEL_PREFIX = "node.labels."
ENGINE_LABEL_PREFIX = "engine.labels."

_OPERATORS = ("==", "!=")
_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+\Z", re.IGNORECASE)
_VALUE = re.compile(r"[a-z0-9:\-_ \t\n\f\r.*()?+\[\]\\^$|/]+\Z", re.IGNORECASE)


class ConstraintError(ValueError):
    """An expression that is not ``key==value`` or ``key!=value``; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One parsed expression. ``lookup`` is the key in lower case, ``wanted`` the value in lower case."""

    key: str
    equal: bool
    value: str
    lookup: str
    wanted: str

    def accepts(self, actual: str) -> bool:
        """Whether a property with this value satisfies the expression; case is ignored."""
        return (actual.lower() == self.wanted) is self.equal


def parse(expressions: Iterable[str]) -> list[Constraint]:
    """Parse expressions; raises ConstraintError with the text of the first one that is wrong."""
    out = []
    for expression in expressions:
        operator = next((op for op in _OPERATORS if op in expression), None)
        if operator is None:
            raise ConstraintError(f"constraint expected one operator from {', '.join(_OPERATORS)}")
        left, _, right = expression.partition(operator)
        key, value = left.strip(), right.strip()
        if not _KEY.match(key):
            raise ConstraintError(f"key '{key}' is invalid")
        if not _VALUE.match(value):
            raise ConstraintError(f"value '{value}' is invalid")
        out.append(Constraint(key, operator == "==", value, key.lower(), value.lower()))
    return out


def parse_stored(expressions: Sequence[str]) -> list[Constraint]:
    """As parse, for specs that are stored already. Older versions stored bad expressions; such a list has no effect."""
    if not expressions:
        return []
    try:
        return parse(expressions)
    except ConstraintError:
        return []


def node_matches(constraints: Iterable[Constraint], node: api.Node) -> bool:
    """Whether the node satisfies all constraints. A missing property counts as empty; an unknown key never matches."""
    return all(_matches(constraint, node) for constraint in constraints)


def _matches(constraint: Constraint, node: api.Node) -> bool:
    lookup = constraint.lookup
    if lookup == "node.ip":
        return _ip_matches(constraint, node.status.addr)
    if lookup.startswith(NODE_LABEL_PREFIX) and len(lookup) > len(NODE_LABEL_PREFIX):
        return constraint.accepts(node.spec.annotations.labels.get(constraint.key[len(NODE_LABEL_PREFIX) :], ""))
    if lookup.startswith(ENGINE_LABEL_PREFIX) and len(lookup) > len(ENGINE_LABEL_PREFIX):
        return constraint.accepts(node.description.engine.labels.get(constraint.key[len(ENGINE_LABEL_PREFIX) :], ""))
    read = _PROPERTIES.get(lookup)
    return read is not None and constraint.accepts(read(node))


_PROPERTIES: dict[str, Callable[[api.Node], str]] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.description.hostname,
    "node.role": lambda node: enum_name(api.NodeRole, node.role),
    "node.platform.os": lambda node: node.description.platform.os,
    "node.platform.arch": lambda node: node.description.platform.architecture,
}


def _ip_matches(constraint: Constraint, address: str) -> bool:
    """Compare with an address or a network. A value that is neither matches no node, whatever the operator."""
    actual = ip_of(address)
    if "/" not in constraint.value:
        wanted = ip_of(constraint.value)
        return wanted is not None and (wanted == actual) is constraint.equal
    try:
        network = ipaddress.ip_network(constraint.value, strict=False)
    except ValueError:
        return False
    return (actual is not None and actual in network) is constraint.equal
