"""Decisions: control API, orchestration, scheduling, dispatch (swarmkit: manager/)."""
