"""gRPC and HTTP/2 as bytes and rules: framing, flow control, admission, authorisation.

No sockets and no loop: those are swarm/io/grpc's.
"""
