"""raftkit-cli."""
