"""Cluster state in memory, changed only by committed log entries (swarmkit: manager/state/store)."""
