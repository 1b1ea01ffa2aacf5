"""The stages of a leader, in the order of a pass.

(swarmkit: manager/manager.go becomeLeader)
"""

from __future__ import annotations

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


def all_stages(cluster_id: str, members: Members, strict: bool = False) -> NamedStages:
    """Everything a leader does with the cluster. strict: see Backlog."""
    return (
        ("cluster", ClusterStage(cluster_id)),
        ("roles", RolesStage(members)),
        ("certificates", CertificateStage(cluster_id)),
        *task_stages(strict),
    )


def task_stages(strict: bool = False) -> NamedStages:
    """What happens to tasks, from the services that want them to the nodes that run them. strict: see Backlog."""
    return (
        ("enforcer", EnforcerStage(strict)),
        ("replicated", ReplicatedStage(strict)),
        ("global", GlobalStage(strict)),
        ("jobs", JobsStage(strict)),
        ("update", UpdateStage(strict)),
        ("restart", RestartStage(strict)),
        ("allocator", AllocatorStage(strict)),
        ("scheduler", SchedulerStage(strict)),
        ("reaper", ReaperStage(strict)),
    )
