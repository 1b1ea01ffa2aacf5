"""What the packets see: networks, addresses, gossip, packet rules (moby: libnetwork). Knows neither swarm nor certs."""
