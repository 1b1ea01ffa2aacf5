"""What Docker sees: the Engine API with swarm mode, beside a stock engine (moby: api/server, daemon/cluster)."""

__version__ = "0.1.0"
