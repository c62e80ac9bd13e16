"""What raftkit is measured against: peers, where they are installed, and bare replicators that only replicate."""
