"""The byte-level front: listeners, admission, policies, which requests are ours, and passing the rest to the engine.

It knows HTTP/1.1 and nothing of the swarm: what requests mean belongs to engine_api/routes.
"""
