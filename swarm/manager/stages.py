"""The stages of a leader, in the order of a pass.

(swarmkit: manager/manager.go becomeLeader)
"""

from __future__ import annotations

from swarm import defaults
from swarm.manager.allocator.allocator import AllocatorStage
from swarm.manager.certificates import CertificateStage
from swarm.manager.cluster import ClusterStage
from swarm.manager.orchestrator.enforcer import EnforcerStage
from swarm.manager.orchestrator.global_mode import GlobalStage
from swarm.manager.orchestrator.jobs import JobsStage
from swarm.manager.orchestrator.reaper import ReaperStage
from swarm.manager.orchestrator.replicated import ReplicatedStage
from swarm.manager.orchestrator.restart import RestartStage
from swarm.manager.orchestrator.update import UpdateStage
from swarm.manager.roles import Members, RolesStage
from swarm.manager.scheduler.scheduler import SchedulerStage
from swarm.manager.stage import Stage

NamedStages = tuple[tuple[str, Stage], ...]


def all_stages(
    cluster_id: str, members: Members, strict: bool = False, replicas_max: int = defaults.SERVICE_REPLICAS_MAX
) -> NamedStages:
    """Everything a leader does with the cluster. strict: see Backlog. replicas_max: see ReplicatedStage."""
    return (
        ("cluster", ClusterStage(cluster_id)),
        ("roles", RolesStage(members)),
        ("certificates", CertificateStage(cluster_id)),
        *task_stages(strict, replicas_max),
    )


def task_stages(strict: bool = False, replicas_max: int = defaults.SERVICE_REPLICAS_MAX) -> NamedStages:
    """What happens to tasks, from the services that want them to the nodes that run them. See all_stages."""
    return (
        ("enforcer", EnforcerStage(strict)),
        ("replicated", ReplicatedStage(strict, replicas_max)),
        ("global", GlobalStage(strict)),
        ("jobs", JobsStage(strict, replicas_max)),
        ("update", UpdateStage(strict)),
        ("restart", RestartStage(strict)),
        ("allocator", AllocatorStage(strict)),
        ("scheduler", SchedulerStage(strict)),
        ("reaper", ReaperStage(strict)),
    )
