"""The byte-level front: who may connect, which requests are ours, and everything else passed to the engine."""
