"""What should run, where, and who decides (moby/swarmkit)."""
