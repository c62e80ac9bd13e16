"""Seeded, deterministic simulation, in two rings.

Engines alone: :mod:`.engine_ring` holds time and the life of its nodes, ``engine_orders``, ``engine_requests``,
``engine_wires``, ``engine_answers``, ``engine_disks`` and ``engine_machines`` are its parts, :mod:`.engine_invariants`
watches every step. Whole nodes: :mod:`.simulation`, whose parts begin with ``sim_``; :mod:`.oracle` watches, whose
rules stand in ``oracle_*``. What a ring is made to do is a scenario (``*_scenario``; ``*_scenes`` on a ``stage``;
``faults``), and its run a report (``*_run``).
"""
