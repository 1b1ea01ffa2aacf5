"""Who you are: keys, certificates, join tokens and TLS (swarmkit: ca/). Knows neither swarm nor overlay."""
