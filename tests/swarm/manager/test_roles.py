"""Promotion, demotion, and members that nobody wants."""

from __future__ import annotations

from random import Random

from swarm import api, defaults
from swarm.manager.roles import RolesStage
from swarm.manager.service import RemoveMember
from swarm.store.store import Store
from swarm.store.tx import Tx

NOW = 1000.0


class Group:
    """Members by node ID."""

    def __init__(self, *members: str) -> None:
        self.members = list(members)
        self.removed: list[str] = []
        self.quorum_holds = True

    def addresses(self) -> list[tuple[str, str]]:
        return [(node_id, f"{node_id}:2377") for node_id in self.members]

    def is_member(self, node_id: str) -> bool:
        return node_id in self.members

    def can_remove(self, node_id: str) -> bool:
        return self.quorum_holds


class Lab:
    """One stage over a store of nodes: ID -> (role, desired role)."""

    def __init__(self, group: Group, nodes: dict[str, tuple[api.NodeRole, api.NodeRole]]) -> None:
        self.store = Store()
        self.group = group
        self.stage = RolesStage(group)
        tx = Tx(self.store, NOW, Random(1))
        for node_id, (role, desired) in nodes.items():
            node = tx.create(api.Node(id=node_id, role=role))
            node.spec.desired_role = desired
        self.store.apply(tx.actions(), 1)
        self.stage.rebuild(self.store, NOW)

    def run(self) -> None:
        tx = Tx(self.store, NOW, Random(1))
        self.stage.run(tx)
        self.group.removed += [effect.node_id for effect in tx.effects if isinstance(effect, RemoveMember)]
        self.store.apply(tx.actions(), self.store.index + 1)

    def role(self, node_id: str) -> int:
        node = self.store.get(api.Node, node_id)
        assert node is not None
        return node.role


MANAGER = (api.MANAGER, api.MANAGER)
WORKER = (api.WORKER, api.WORKER)
DEMOTED = (api.MANAGER, api.WORKER)


def test_a_promoted_node_has_its_role_at_once() -> None:
    lab = Lab(Group("a"), {"a": MANAGER, "b": (api.WORKER, api.MANAGER)})
    lab.run()
    assert lab.role("b") == api.MANAGER
    assert lab.stage.deadline() is None


def test_a_demoted_manager_leaves_the_group_before_its_role_changes() -> None:
    group = Group("a", "b")
    lab = Lab(group, {"a": MANAGER, "b": DEMOTED})
    lab.run()
    assert (group.removed, lab.role("b")) == (["b"], api.MANAGER)
    group.members.remove("b")
    lab.run()
    assert lab.role("b") == api.WORKER
    assert lab.stage.deadline() is None


def test_a_demotion_that_would_cost_the_quorum_waits() -> None:
    group = Group("a", "b")
    group.quorum_holds = False
    lab = Lab(group, {"a": MANAGER, "b": DEMOTED})
    lab.run()
    assert group.removed == []
    assert lab.stage.deadline() == NOW + defaults.ROLE_RETRY_S
    group.quorum_holds = True
    lab.run()
    assert group.removed == ["b"]


def test_a_worker_that_joined_with_its_old_certificate_is_removed_from_the_group() -> None:
    group = Group("a", "b")
    lab = Lab(group, {"a": MANAGER, "b": WORKER})
    lab.run()
    group.members.append("c")  # taken in after its demotion; of this no note tells
    assert group.removed == ["b"]
    group.members.remove("b")
    lab.run()
    assert group.removed == ["b", "c"]


def test_a_member_whose_node_is_gone_is_removed_from_the_group() -> None:
    group = Group("a", "b")
    lab = Lab(group, {"a": MANAGER})
    lab.run()
    assert group.removed == ["b"]


def test_the_first_member_is_older_than_its_node() -> None:
    group = Group("a")
    lab = Lab(group, {})
    lab.run()
    assert group.removed == []
