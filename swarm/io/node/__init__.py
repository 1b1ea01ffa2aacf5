"""One node in this process: its identity, its manager and its agent, and the connections that they need."""
