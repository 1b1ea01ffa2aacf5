"""What a manager of ours is made of: its stages in the order of a pass, its services, its control API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from swarm import api, defaults
from swarm.manager.allocator.allocator import AllocatorStage
from swarm.manager.certificates import CertificateAuthority, CertificateStage
from swarm.manager.cluster import ClusterStage
from swarm.manager.controlapi.methods import control
from swarm.manager.dispatcher.dispatcher import Dispatcher
from swarm.manager.logbroker import LogBroker
from swarm.manager.manager import Manager, Parts
from swarm.manager.orchestrator.enforcer import EnforcerStage
from swarm.manager.orchestrator.global_mode import GlobalStage
from swarm.manager.orchestrator.jobs import JobsStage
from swarm.manager.orchestrator.reaper import ReaperStage
from swarm.manager.orchestrator.replicated import ReplicatedStage
from swarm.manager.orchestrator.restart import RestartStage
from swarm.manager.orchestrator.update import UpdateStage
from swarm.manager.scheduler.scheduler import SchedulerStage
from swarm.manager.service import Service
from swarm.manager.stage import Stage
from swarm.store.store import Store


class Group:
    """The Raft group as the control API sees it (controlapi.nodes.Members)."""

    def __init__(self, manager: Callable[[], Manager | None]) -> None:
        self._manager = manager

    def addresses(self) -> list[tuple[str, str]]:
        """(node ID, "ip:port") of every member."""
        manager = self._manager()
        members = manager.members if manager is not None else {}
        return [(member.node_id, member.addr) for _, member in sorted(members.items())]

    def may_grow(self) -> bool:
        """See Members."""
        manager = self._manager()
        return manager is not None and len(manager.members) < defaults.MANAGERS_MAX

    def is_member(self, node_id: str) -> bool:
        """See Members."""
        return self.member_of(node_id) is not None

    def can_remove(self, node_id: str) -> bool:
        """See Members."""
        manager = self._manager()
        if manager is None:
            return False
        reachable = sum(
            1 for member in manager.members.values() if member.node_id != node_id and manager.reachable(member.raft_id)
        )
        return reachable >= (len(manager.members) - 1) // 2 + 1

    def member_of(self, node_id: str) -> api.ManagerStatus | None:
        """See Members."""
        manager = self._manager()
        if manager is None:
            return None
        for raft_id, member in manager.members.items():
            if member.node_id == node_id:
                reachable = manager.reachable(raft_id)
                return api.ManagerStatus(
                    raft_id=raft_id,
                    addr=member.addr,
                    leader=raft_id == manager.raft.leader,
                    reachability=api.RaftMemberStatus.REACHABLE if reachable else api.RaftMemberStatus.UNREACHABLE,
                )
        return None


def parts(node_id: str, cluster_id: str, group: Group) -> Parts:
    """Everything for the manager on node ``node_id``."""

    def stages(store: Store, rng: Random, now: float) -> Sequence[tuple[str, Stage]]:
        return (
            ("cluster", ClusterStage(cluster_id)),
            ("certificates", CertificateStage(cluster_id)),
            ("replicated", ReplicatedStage()),
            ("global", GlobalStage()),
            ("jobs", JobsStage()),
            ("restart", RestartStage()),
            ("update", UpdateStage()),
            ("enforcer", EnforcerStage()),
            ("allocator", AllocatorStage()),
            ("scheduler", SchedulerStage()),
            ("reaper", ReaperStage()),
        )

    def services(store: Store, rng: Random, now: float) -> Sequence[Service]:
        return (
            Dispatcher(store, now, rng, node_id, group.addresses),
            CertificateAuthority(store, cluster_id, group.may_grow),
            LogBroker(store, now, rng, node_id),
        )

    handlers = control(group)
    return Parts(
        stages=stages,
        services=services,
        reads={name: handler.function for name, handler in handlers.items() if not handler.write},
        writes={name: handler.function for name, handler in handlers.items() if handler.write},
    )
