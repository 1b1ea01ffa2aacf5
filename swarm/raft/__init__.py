"""Consensus without I/O: events in, effects out (etcd/raft's rules, swarmkit's membership)."""
