"""Positions in the log, and comparisons that know an absent one is lower than every other."""

from __future__ import annotations

import msgspec

from raftkit_core.types.ids import Natural
from raftkit_core.types.vote import LeaderId


class LogId(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Identity of a log entry: who proposed it, and where. The order is leader id first, then index, in both modes."""

    leader_id: LeaderId
    index: Natural

    @property
    def term(self) -> int:
        return self.leader_id.term

    def __str__(self) -> str:
        return f"{self.leader_id}.{self.index}"


def log_id_lt(left: LogId | None, right: LogId | None) -> bool:
    """``left < right`` where None is lower than every log id."""
    if right is None:
        return False
    return left is None or left < right


def log_id_le(left: LogId | None, right: LogId | None) -> bool:
    """``left <= right`` where None is lower than every log id."""
    return not log_id_lt(right, left)


def max_log_id(left: LogId | None, right: LogId | None) -> LogId | None:
    """The greater of two log ids."""
    return right if log_id_lt(left, right) else left


def index_of(log_id: LogId | None) -> int:
    """The index, or -1 for none: so that ``index_of(x) + 1`` is the next index."""
    return -1 if log_id is None else log_id.index


def next_index(log_id: LogId | None) -> int:
    """The index after ``log_id``: 0 for none."""
    return 0 if log_id is None else log_id.index + 1
