"""Seeded, deterministic simulation. :mod:`.engine_ring` drives engines alone; :mod:`.invariants` watches them."""
