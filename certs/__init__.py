"""Node identity: keys, certificates, join tokens and TLS (swarmkit: ca/). Imports neither swarm nor overlay."""
