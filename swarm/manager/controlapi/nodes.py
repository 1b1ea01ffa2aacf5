"""Nodes: read with their place in the Raft group, update with the checks of a demotion, remove.

(swarmkit: manager/controlapi/node.go)
"""

from __future__ import annotations

from typing import Protocol

from swarm import api, defaults
from swarm.errors import FailedPrecondition, Internal, NotFound
from swarm.manager.controlapi.clusters import expire_blacklist
from swarm.manager.controlapi.common import (
    Test,
    annotation_tests,
    find_one,
    has_labels,
    is_one_of,
    require,
    select,
)
from swarm.manager.standing import certified_until
from swarm.store.store import View, copy_of
from swarm.store.tx import Tx

NO_MORE_MANAGERS = f"the swarm has {defaults.MANAGERS_MAX} managers, as many as it may have; demote one first"
NO_QUORUM_LEFT = "can't remove member from the raft: this would result in a loss of quorum"


class Members(Protocol):
    """The Raft group as the leader sees it, by node ID."""

    def may_grow(self) -> bool:
        """Whether the group takes another manager."""
        ...

    def is_member(self, node_id: str) -> bool:
        """Whether this node is in the group."""
        ...

    def can_remove(self, node_id: str) -> bool:
        """Whether the group keeps a quorum of reachable members without this node."""
        ...

    def can_spare(self, node_id: str) -> bool:
        """Whether the group, with this node in it, can decide without its vote."""
        ...

    def member_of(self, node_id: str) -> api.ManagerStatus | None:
        """Raft ID, address, reachability and whether it leads; None for a node outside the group."""
        ...


def get_node(view: View, request: api.GetNodeRequest, members: Members) -> api.GetNodeResponse:
    """GetNode."""
    return api.GetNodeResponse(node=_with_status(find_one(view, api.Node, request.node_id), members))


def list_nodes(view: View, request: api.ListNodesRequest, members: Members) -> api.ListNodesResponse:
    """ListNodes; names are host names, ``labels`` those of the engine, ``node_labels`` those of the spec."""
    filters = request.filters
    tests: list[Test] = annotation_tests(
        filters, lambda node: str(node.description.hostname), lambda node: node.description.engine.labels
    )
    if filters.names or filters.name_prefixes:
        tests.append(lambda node: node.HasField("description"))
    roles, memberships = list(filters.roles), list(filters.memberships)
    node_labels = dict(filters.node_labels)
    if node_labels:
        tests.append(lambda node: has_labels(node.spec.annotations.labels, node_labels))
    if roles:
        tests.append(lambda node: is_one_of(node.role, roles))
    if memberships:
        tests.append(lambda node: is_one_of(node.spec.membership, memberships))
    nodes = select(view.all(api.Node), tests)
    return api.ListNodesResponse(nodes=[_with_status(node, members) for node in nodes])


def _with_status(node: api.Node, members: Members) -> api.Node:
    """The node as users see it: its place in the group is not in the store."""
    status = members.member_of(node.id)
    if status is None:
        return node
    node = copy_of(node)
    node.manager_status.CopyFrom(status)
    return node


def update_node(tx: Tx, request: api.UpdateNodeRequest, members: Members) -> api.UpdateNodeResponse:
    """UpdateNode. Refuses to demote a manager that the quorum needs, and to promote more than the group may have."""
    require(request.node_id and request.HasField("node_version") and request.HasField("spec"))
    node = find_one(tx, api.Node, request.node_id)
    if node.spec.desired_role == api.MANAGER and request.spec.desired_role == api.WORKER:
        _check_demotion(tx, node, members)
    if node.spec.desired_role == api.WORKER and request.spec.desired_role == api.MANAGER and not members.may_grow():
        raise FailedPrecondition(NO_MORE_MANAGERS)
    node = tx.edit(api.Node, node.id, request.node_version.index)
    node.spec.CopyFrom(request.spec)
    return api.UpdateNodeResponse(node=tx.stamped(node))


def _check_demotion(view: View, node: api.Node, members: Members) -> None:
    # Managers about to be demoted do not count; otherwise two requests in a row could demote every manager.
    others = (
        other
        for other in view.all(api.Node)
        if other.id != node.id and other.role == api.MANAGER and other.spec.desired_role == api.MANAGER
    )
    if next(others, None) is None:
        raise FailedPrecondition("attempting to demote the last manager of the swarm")
    if not members.is_member(node.id):
        raise NotFound("can't find manager in raft memberlist")
    if not members.can_remove(node.id):
        raise FailedPrecondition(NO_QUORUM_LEFT)


def remove_node(tx: Tx, request: api.RemoveNodeRequest, members: Members) -> api.RemoveNodeResponse:
    """RemoveNode. The node's certificate is no longer accepted; the reaper gives up its tasks."""
    node = find_one(tx, api.Node, request.node_id)
    if node.spec.desired_role == api.MANAGER and members.is_member(node.id):
        raise FailedPrecondition(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. "
            "It must be demoted to worker before removal"
        )
    if not request.force and node.status.state == api.NodeStatus.READY:
        raise FailedPrecondition(f"node {node.id} is not down and can't be removed")
    if members.is_member(node.id) and not members.can_spare(node.id):
        # it was demoted and has not left yet; of a removed node the group hears no vote, not even for its own removal
        raise FailedPrecondition(NO_QUORUM_LEFT)
    found = next(tx.find(api.Cluster, "name", defaults.CLUSTER_NAME), None)
    if found is None:
        raise Internal("could not fetch cluster object")
    cluster = tx.edit(api.Cluster, found.id)
    cluster.blacklisted_certificates[node.id].CopyFrom(_blacklisting(node, tx.now))
    expire_blacklist(cluster, tx.now)
    tx.remove(api.Node, node.id)
    return api.RemoveNodeResponse()


def _blacklisting(node: api.Node, now: float) -> api.BlacklistedCertificate:
    """Until when certificates of a node may be valid; for ever if that is not known.

    What a stock leader has signed is known of the last one only. Others may be valid longer, but hardly longer than the
    usual lifetime.
    """
    entry = api.BlacklistedCertificate()
    if last_s := certified_until(node):
        entry.expiry.FromSeconds(int(max(last_s, now + defaults.NODE_CERT_EXPIRY_S)))
    return entry
