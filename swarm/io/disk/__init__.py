"""Disk access: sqlite files, each with a thread of its own, and files that are replaced atomically."""
