"""raftkit-http."""
