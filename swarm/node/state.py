"""What a node remembers of itself beside its certificate: addresses, and the managers it knows.

The file is the commit point of init and join: while it is missing, whatever else lies in the directory is left over
from an attempt that nobody was told had succeeded. (moby: daemon/cluster docker-state.json; swarmkit: state.json)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace

from swarm.address import join_host_port
from swarm.errors import SwarmError

STATE_VERSION = 1
PAST_RAFT_IDS_MAX = 100


class StateDamaged(SwarmError):
    """The file is not what this version wrote."""


@dataclass(frozen=True)
class Addresses:
    """Where a node listens and is found. advertise_host and local_addr may be empty, see NodeState."""

    listen_host: str
    listen_port: int
    advertise_host: str
    advertise_port: int
    local_addr: str
    data_path_addr: str = ""

    def of(self, state: NodeState) -> NodeState:
        """The same node at these addresses."""
        return replace(state, **asdict(self))


@dataclass(frozen=True)
class NodeState:
    """One node. advertise_host and local_addr may be empty: then the address that managers see counts.

    managers: (node ID, "ip:port"). data_path_port: UDP port of VXLAN. raft_id: as which member of the group this node's
    manager keeps a log, 0: none; so that a log that is gone is noticed. past_raft_ids: members whose log it gave up.
    """

    node_id: str
    cluster_id: str
    listen_host: str
    listen_port: int
    advertise_host: str
    advertise_port: int
    local_addr: str
    data_path_addr: str = ""
    data_path_port: int = 0
    managers: tuple[tuple[str, str], ...] = ()
    raft_id: int = 0
    past_raft_ids: tuple[int, ...] = ()

    @classmethod
    def new(
        cls,
        addresses: Addresses,
        node_id: str = "",
        cluster_id: str = "",
        data_path_port: int = 0,
        managers: tuple[tuple[str, str], ...] = (),
    ) -> NodeState:
        """Of a node that is about to come into a swarm."""
        state = cls(node_id, cluster_id, "", 0, "", 0, "", data_path_port=data_path_port, managers=managers)
        return addresses.of(state)

    def other_managers(self) -> list[str]:
        """Addresses of the managers but this node."""
        return [addr for node_id, addr in self.managers if node_id != self.node_id]

    def with_self(self) -> NodeState:
        """As a first manager, which knows itself only."""
        return replace(self, managers=((self.node_id, join_host_port(self.advertise_host, self.advertise_port)),))

    def with_managers(self, managers: tuple[tuple[str, str], ...]) -> NodeState:
        """These are the managers now."""
        return replace(self, managers=managers)

    def without_log(self, raft_id: int, others: tuple[tuple[str, str], ...]) -> NodeState:
        """The log of member ``raft_id`` is given up, as whom this node must never appear again; others: the members."""
        past = (*self.past_raft_ids, raft_id)[-PAST_RAFT_IDS_MAX:]
        return replace(self, raft_id=0, past_raft_ids=past, managers=others or self.managers)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"version": STATE_VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> NodeState:
        """Raises StateDamaged."""
        try:
            row = json.loads(text)
            if row.pop("version") != STATE_VERSION:
                raise StateDamaged("state.json was written by another version of sideswarm")
            row["managers"] = tuple((_text(node_id), _text(addr)) for node_id, addr in row["managers"])
            row["past_raft_ids"] = tuple(int(raft_id) for raft_id in row.get("past_raft_ids", ()))
            for field in fields(cls):
                if type(row.get(field.name, field.default)) is not _TYPES.get(str(field.type), tuple):
                    raise TypeError(f"{field.name} must be of type {field.type}")
            return cls(**row)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise StateDamaged(f"state.json is damaged: {error}") from error


_TYPES: dict[str, type] = {"str": str, "int": int}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a manager must be a pair of texts")
    return value
