"""Which roles this process plays, and which managers it knows (swarmkit: node/)."""
