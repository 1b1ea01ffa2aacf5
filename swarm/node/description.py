"""What managers are told of this node: asked of the executor now and then, and whenever certificate or root changed.

(swarmkit: agent/node.go, agent/agent.go nodeDescriptionWithHostname)
"""

from __future__ import annotations

import structlog

from swarm import api, defaults
from swarm.agent.events import Described
from swarm.node import own_certificate
from swarm.node.events import Describe, Done, Failed
from swarm.node.outbox import Outbox
from swarm.node.record import Record

log = structlog.get_logger()


class Description:
    """Keeps the agent's description of this node up to date while there is an agent."""

    def __init__(self, record: Record, out: Outbox) -> None:
        self._record = record
        self._out = out
        self._asking = False
        self._due = 0.0

    def changed(self) -> None:
        """Something that is part of the description is different: describe at once."""
        self._due = 0.0

    def stop(self) -> None:
        """The agent is gone; the next one is told at once."""
        self._asking, self._due = False, 0.0

    def decide(self) -> None:
        """Ask the executor, if that is due."""
        if self._record.agent_runs and not self._asking and self._record.now >= self._due:
            self._asking = True
            self._due = self._record.now + defaults.DESCRIPTION_REFRESH_S
            self._out.perform(Describe, self._described)

    def deadline(self) -> float | None:
        """When it is asked next."""
        return self._due if self._record.agent_runs and not self._asking else None

    def _described(self, outcome: Done | Failed) -> None:
        self._asking = False
        if isinstance(outcome, Failed):
            log.warning("node.not_described", error=str(outcome.error))
            self._due = self._record.now + defaults.DESCRIPTION_RETRY_S
            return
        description, identity = outcome.value, self._record.identity
        assert isinstance(description, api.NodeDescription)
        assert identity is not None
        description.tls_info.CopyFrom(own_certificate.tls_info(identity.root_pem, identity.certificate_pem))
        if self._record.state is not None:
            description.data_path_address = self._record.state.data_path_host
        self._out.tell_agent(Described(description))
