"""Our gRPC server and client on asyncio: sockets, TLS and timers around the protocol of swarm/grpc."""
