"""What the leader knows of one peer's log (openraft.md §2.7; states as in etcd's tracker).

- ``PROBE``: the peer's log is not known to match anything beyond ``matching``; one request is in flight at most.
- ``PIPELINE``: it matches; up to ``max_inflight`` requests are in flight, and ``next_index`` advances on send.
- ``SNAPSHOT``: it needs entries that are purged; one transfer is in flight.
- ``REVERTED``: it lost what it had acknowledged under the same store id; nothing is sent to it but heartbeats.

Any conflict, error or reconnect raises ``epoch``, voids what is in flight and returns to PROBE at ``matching + 1``.
Answers count only under the current epoch.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from raftkit_core.engine.inflight import Inflight
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Node


class ProgressState(Enum):
    PROBE = "probe"
    PIPELINE = "pipeline"
    SNAPSHOT = "snapshot"
    REVERTED = "reverted"


PIPELINE: Final = ProgressState.PIPELINE
REVERTED: Final = ProgressState.REVERTED
"""By names of their own: they are asked for at every answer."""


class ProgressEntry:
    """Invariants: ``matching`` never falls; ``matching.index < next_index``; in flight ranges are consecutive."""

    __slots__ = (
        "epoch",
        "inflight",
        "leaving_from",
        "leaving_until",
        "matching",
        "next_index",
        "node",
        "probed",
        "searching_end",
        "sent_committed",
        "state",
        "told_seq",
    )

    def __init__(
        self, searching_end: int, epoch: int, matching: LogId | None = None, *, node: Node | None = None
    ) -> None:
        self.state = ProgressState.PROBE
        self.matching = matching
        self.searching_end = max(searching_end, index_of(matching) + 1)
        """One more than the greatest index that might match."""
        self.next_index = self.searching_end
        self.inflight: deque[Inflight] = deque()
        self.epoch = epoch
        self.probed = False
        """Whether a probe has failed: then the next ones carry no entries."""
        self.sent_committed: LogId | None = None
        self.node = node
        """Where the stream goes: a removed node keeps the address it had."""
        self.leaving_until: float | None = None
        """A removed node keeps its stream until then at the latest, so that it can learn of its removal."""
        self.leaving_from = -1
        """The index of the entry that removed it."""
        self.told_seq: int | None = None
        """Messages above this one told it that its removal is committed."""

    def has_left(self, acked_seq: float) -> bool:
        """Whether the peer acknowledged its removal: it holds the entry, and answered a message that committed it."""
        if self.told_seq is None or index_of(self.matching) < self.leaving_from:
            return False
        return acked_seq > self.told_seq

    def reset(self, epoch: int) -> None:
        """Void what is in flight and probe again after ``matching``."""
        if self.state is ProgressState.PIPELINE:
            self.searching_end = index_of(self.matching) + 1
        self.epoch = epoch
        self.inflight.clear()
        self.state = ProgressState.PROBE

    def ack(self, matching: LogId | None) -> bool:
        """The peer holds everything up to ``matching``. Says whether that is news."""
        acked = -1 if matching is None else matching.index
        end = -1 if self.matching is None else self.matching.index
        news = acked > end
        if news:
            self.matching, end = matching, acked
        inflight = self.inflight
        if self.state is PIPELINE:
            while inflight and inflight[0].last_index <= acked:
                inflight.popleft()
        else:
            inflight.clear()
            self.state = ProgressState.PIPELINE
            self.next_index = end + 1
            self.probed = False
        if self.next_index <= end:
            self.next_index = end + 1
        if self.searching_end <= end:
            self.searching_end = end + 1
        return news

    def conflict(self, index: int, last_log_index: int) -> None:
        """The probe's prev log at ``index`` is not there; the peer's log ends at ``last_log_index``."""
        self.inflight.clear()
        self.probed = True
        if index < self.searching_end:
            self.searching_end = index
        if last_log_index + 1 < self.searching_end:
            self.searching_end = last_log_index + 1
        self.searching_end = max(self.searching_end, index_of(self.matching) + 1)

    def probe_index(self) -> int:
        """Where to send from: the end first; after a failure bisect while the gap is wide."""
        if not self.probed:
            return self.searching_end
        start = index_of(self.matching) + 1
        gap = self.searching_end - start
        return self.searching_end if gap < 16 else start + gap // 2

    @property
    def lowest_prev_inflight(self) -> int | None:
        """The lowest index a request in flight was built on: what must not be purged."""
        for inflight in self.inflight:
            if inflight.snapshot is None:
                return inflight.prev_index
        return None
