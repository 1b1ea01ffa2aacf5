"""What is on disk: sqlite files with a thread of their own, and files that are replaced in one step."""
