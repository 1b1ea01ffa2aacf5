"""The agent of a node: it receives assignments and reports statuses (swarmkit: agent/). Pure; swarm.io drives it."""
