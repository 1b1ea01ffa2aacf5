"""The Raft group of the managers: who is a member, where, and what the group decides."""
