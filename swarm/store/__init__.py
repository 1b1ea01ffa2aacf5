"""The cluster's state in memory. Only committed log entries change it (swarmkit: manager/state/store)."""
