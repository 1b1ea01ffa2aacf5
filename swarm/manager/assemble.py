"""What a manager of ours is made of: its stages in the order of a pass, its services, its control API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from swarm import api, defaults
from swarm.manager.certificates import CertificateAuthority
from swarm.manager.cluster_updates import ClusterUpdates
from swarm.manager.controlapi.methods import control
from swarm.manager.discovery.discovery import Discovery
from swarm.manager.dispatcher.dispatcher import Dispatcher
from swarm.manager.events import Parts
from swarm.manager.external_signing import ExternalSigning
from swarm.manager.logbroker import LogBroker
from swarm.manager.manager import Manager
from swarm.manager.resourceapi import ResourceAllocator
from swarm.manager.service import Service
from swarm.manager.stage import Stage
from swarm.manager.stages import all_stages
from swarm.store.store import Store


class Group:
    """The Raft group as the control API sees it (controlapi.nodes.Members)."""

    def __init__(self, manager: Callable[[], Manager | None]) -> None:
        self._manager = manager

    def addresses(self) -> list[tuple[str, str]]:
        """(node ID, "ip:port") of every member."""
        manager = self._manager()
        members = manager.group.members if manager is not None else {}
        return [(member.node_id, member.addr) for _, member in sorted(members.items())]

    def may_grow(self) -> bool:
        """See Members."""
        manager = self._manager()
        return manager is not None and len(manager.group.members) < defaults.MANAGERS_MAX

    def is_member(self, node_id: str) -> bool:
        """See Members. Who is about to become one is one: its role must not change under way."""
        manager = self._manager()
        if manager is None:
            return False
        return manager.group.by_node(node_id) is not None or manager.group.is_joining(node_id)

    def can_remove(self, node_id: str) -> bool:
        """See Members."""
        manager = self._manager()
        return manager is not None and manager.group.can_remove(node_id)

    def can_spare(self, node_id: str) -> bool:
        """See Members."""
        manager = self._manager()
        return manager is not None and manager.group.can_spare(node_id)

    def member_of(self, node_id: str) -> api.ManagerStatus | None:
        """See Members."""
        manager = self._manager()
        member = manager.group.by_node(node_id) if manager is not None else None
        if manager is None or member is None:
            return None
        reachable = manager.group.reachable(member.raft_id)
        return api.ManagerStatus(
            raft_id=member.raft_id,
            addr=member.addr,
            leader=member.raft_id == manager.raft.leader,
            reachability=api.RaftMemberStatus.REACHABLE if reachable else api.RaftMemberStatus.UNREACHABLE,
        )


def parts(
    node_id: str,
    cluster_id: str,
    group: Group,
    mixed_leadership: bool = False,
    replicas_max: int = defaults.SERVICE_REPLICAS_MAX,
    refused_keys: Counter[str] | None = None,
) -> Parts:
    """Everything for the manager on node ``node_id``. replicas_max: how many tasks one service may ask for.

    refused_keys: counts calls with superseded certificates, by role.
    """

    def stages(store: Store, rng: Random, now: float, strict: bool) -> Sequence[tuple[str, Stage]]:
        return all_stages(cluster_id, group, strict, replicas_max)

    def services(store: Store, rng: Random, now: float) -> Sequence[Service]:
        return (
            Dispatcher(store, now, rng, node_id, group.addresses, refused_keys),
            CertificateAuthority(store, cluster_id, group.may_grow, refused_keys),
            ClusterUpdates(),
            ExternalSigning(store, cluster_id, rng, now),
            Discovery(store, now, node_id),
            LogBroker(store, now, rng, node_id),
            ResourceAllocator(rng, node_id),
        )

    handlers = control(group, replicas_max)
    return Parts(
        stages=stages,
        services=services,
        reads={name: handler.function for name, handler in handlers.items() if not handler.write},
        writes={name: handler.function for name, handler in handlers.items() if handler.write},
        checks={name: handler.check for name, handler in handlers.items() if handler.write},
        mixed_leadership=mixed_leadership,
    )
