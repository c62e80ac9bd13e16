"""The tests of the tests: known bugs, put back on purpose. The simulator must notice every one of them."""

from __future__ import annotations

from raftkit_core.testing.simulation.mutants import elections as elections
from raftkit_core.testing.simulation.mutants import followers as followers
from raftkit_core.testing.simulation.mutants import lanes as lanes
from raftkit_core.testing.simulation.mutants import leaders as leaders
from raftkit_core.testing.simulation.mutants import lessons as lessons
from raftkit_core.testing.simulation.mutants import memberships as memberships
from raftkit_core.testing.simulation.mutants import reads as reads
from raftkit_core.testing.simulation.mutants import runtimes as runtimes
from raftkit_core.testing.simulation.mutants import sessions as sessions
from raftkit_core.testing.simulation.mutants import snapshots as snapshots
from raftkit_core.testing.simulation.mutants import stores as stores
from raftkit_core.testing.simulation.mutants.mutant import MUTANTS, Mutant, Patch, applied

__all__ = ["MUTANTS", "Mutant", "Patch", "applied"]
