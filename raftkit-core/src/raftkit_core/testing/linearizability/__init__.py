"""Is what clients saw what one correct register per key would have shown them?

``history`` records and stores operations with unknown outcomes. ``witness``, ``zones`` and ``search`` are three judges
that share nothing but ``settling``; ``durability`` compares with the final log; ``judging`` asks all of them.
"""

from raftkit_core.testing.linearizability.durability import check_durability, check_sessions
from raftkit_core.testing.linearizability.findings import Finding, Report, Verdict
from raftkit_core.testing.linearizability.history import (
    Call,
    DurableWrite,
    Header,
    History,
    Kind,
    Operation,
    Outcome,
    describe,
    text_of,
)
from raftkit_core.testing.linearizability.judging import judge
from raftkit_core.testing.linearizability.search import OutOfBudget, search
from raftkit_core.testing.linearizability.settling import settle
from raftkit_core.testing.linearizability.witness import check_witness
from raftkit_core.testing.linearizability.zones import check_zones

__all__ = [
    "Call",
    "DurableWrite",
    "Finding",
    "Header",
    "History",
    "Kind",
    "Operation",
    "OutOfBudget",
    "Outcome",
    "Report",
    "Verdict",
    "check_durability",
    "check_sessions",
    "check_witness",
    "check_zones",
    "describe",
    "judge",
    "search",
    "settle",
    "text_of",
]
