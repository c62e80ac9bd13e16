"""What others test with: the conformance kit for adapters, an event loop with virtual time, a file layer that loses
what was not synced, a service that records what a transport brings.

Names are resolved on first use (PEP 562): the pytest plugin of this package must cost nothing where it is not used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_core.testing.conformance.log_storage import LogStorageConformance
    from raftkit_core.testing.conformance.network import NetworkConformance
    from raftkit_core.testing.conformance.snapshot_storage import SnapshotStorageConformance
    from raftkit_core.testing.conformance.state_machine import StateMachineConformance
    from raftkit_core.testing.power import UnsyncedFiles
    from raftkit_core.testing.recording_service import BytesSource, RecordingService
    from raftkit_core.testing.simulation.invariants import InvariantBroken
    from raftkit_core.testing.simulation.simulation import Simulation
    from raftkit_core.testing.virtual_time import VirtualTimeLoop, run_virtual

__all__ = [
    "BytesSource",
    "InvariantBroken",
    "LogStorageConformance",
    "NetworkConformance",
    "RecordingService",
    "Simulation",
    "SnapshotStorageConformance",
    "StateMachineConformance",
    "UnsyncedFiles",
    "VirtualTimeLoop",
    "run_virtual",
]

_HOMES = {
    "BytesSource": "recording_service",
    "InvariantBroken": "simulation.invariants",
    "LogStorageConformance": "conformance.log_storage",
    "NetworkConformance": "conformance.network",
    "RecordingService": "recording_service",
    "Simulation": "simulation.simulation",
    "SnapshotStorageConformance": "conformance.snapshot_storage",
    "StateMachineConformance": "conformance.state_machine",
    "UnsyncedFiles": "power",
    "VirtualTimeLoop": "virtual_time",
    "run_virtual": "virtual_time",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
