"""``raftkit demo``: real nodes, a killed leader, and the proof that nothing acknowledged is missing."""
