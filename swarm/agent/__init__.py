"""What this node runs: assignments in, statuses out (swarmkit: agent/)."""
