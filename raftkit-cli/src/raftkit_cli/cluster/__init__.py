"""Real nodes on this machine: one process each, found again by pid and start time. ``demo`` and ``local`` use it."""
