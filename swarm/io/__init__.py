"""Where swarm touches the world: sockets, disk, clock. Everything above is pure."""
