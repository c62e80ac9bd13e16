"""raftkit-redis."""
