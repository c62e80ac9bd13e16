"""``raftkit sim``: seeds in parallel processes, what they came to, and failing ones made short."""
