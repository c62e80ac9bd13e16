"""raftkit-sqlite."""
