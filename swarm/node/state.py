"""What a node remembers of itself beside its certificate: addresses, and the managers it knows.

The file tells what the rest of the directory is:

    pending               an init or join that has not made this node a member: the next start forgets an init, of which
                          nobody was told that it succeeded, and goes on with a join
    nothing of the kind   a member
    renamed (.leaving)    a member that leaves: the next start deletes the rest

So a directory with anything else in it but without this file has lost it. Nothing is deleted then: a user is told.
(moby: daemon/cluster docker-state.json; swarmkit: state.json)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace

from swarm.address import join_host_port
from swarm.errors import SwarmError

STATE_FILE = "state.json"
LEAVING_FILE = "state.json.leaving"
STATE_VERSION = 1
PAST_RAFT_IDS_MAX = 100
_NAMED_MAX = 5


class StateDamaged(SwarmError):
    """The file is not what this version wrote, or not this node's."""


class StateLost(SwarmError):
    """The file is missing although others are there."""

    def __init__(self, others: Sequence[str]) -> None:
        """others: the names of the files that are there."""
        more = ", ..." if len(others) > _NAMED_MAX else ""
        super().__init__(
            f"{STATE_FILE} is missing, but this node has {', '.join(others[:_NAMED_MAX])}{more}. Nothing was deleted. "
            f"Put {STATE_FILE} back and restart the daemon, or give up this node and its data with "
            '"docker swarm leave --force"'
        )


@dataclass(frozen=True)
class Pending:
    """An init or join that is under way. token: of a join; empty: an init. availability: api.NodeSpec's, of a join."""

    token: str = field(default="", repr=False)
    availability: int = 0


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
    pending: what is to make it a member; None: it is one.
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
    pending: Pending | None = None

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

    @property
    def data_path_host(self) -> str:
        """Where packets for this node's containers go; "0.0.0.0": where the managers see it."""
        return self.data_path_addr or self.advertise_host or self.local_addr or "0.0.0.0"

    def begun(self, pending: Pending | None) -> NodeState:
        """With an init or join under way; None: it is a member from here on."""
        return replace(self, pending=pending)

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
                raise StateDamaged(f"{STATE_FILE} was written by another version of sideswarm")
            pending = row.pop("pending", None)
            row["managers"] = tuple((_text(node_id), _text(addr)) for node_id, addr in row["managers"])
            row["past_raft_ids"] = tuple(int(raft_id) for raft_id in row.get("past_raft_ids", ()))
            _check_types(cls, row)
            if pending is not None:
                _check_types(Pending, pending)
            return cls(**row, pending=Pending(**pending) if pending is not None else None)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise StateDamaged(f"{STATE_FILE} is damaged: {error}") from error


_TYPES: dict[str, type] = {"str": str, "int": int}


def _check_types(of: type[NodeState] | type[Pending], row: dict[str, object]) -> None:
    for member in fields(of):
        if member.name != "pending" and type(row.get(member.name, member.default)) is not _TYPES.get(
            str(member.type), tuple
        ):
            raise TypeError(f"{member.name} must be of type {member.type}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a manager must be a pair of texts")
    return value
