"""What the log lane has been asked to write, and how much of it is durable.

Every write in the lane has a position, its ``io_id``. "Flushed" is asked of the io_id that wrote an entry, never of its
index: an index may be truncated and written again, and an old completion must not vouch for the new entry.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from raftkit_core.types.log_id import LogId, index_of

_Write: TypeAlias = tuple[int, float, int, LogId | None, int]
"""One write under way: its io_id, when it was submitted, the first entry in it, the last one it makes durable (None for
votes and the like), and its bytes."""


class IoState:
    """Positions of the log lane. ``flushed_log_id`` is the end of the durable prefix of the *current* log."""

    __slots__ = ("_pending", "flushed_io", "flushed_log_id", "last_io", "unflushed_bytes")

    def __init__(self, flushed_log_id: LogId | None = None) -> None:
        self.last_io = 0
        self.flushed_io = 0
        self.flushed_log_id = flushed_log_id
        self.unflushed_bytes = 0
        self._pending: deque[_Write] = deque()

    def submit(self, now: float) -> int:
        """A write without entries."""
        self.last_io += 1
        self._pending.append((self.last_io, now, -1, None, 0))
        return self.last_io

    def submit_entries(self, first_index: int, last: LogId, size_bytes: int, now: float) -> int:
        """A write of entries ``first_index..last``."""
        self.last_io = io_id = self.last_io + 1
        self._pending.append((io_id, now, first_index, last, size_bytes))
        self.unflushed_bytes += size_bytes
        return io_id

    def submit_purge(self, upto: LogId, now: float) -> int:
        """A purge: when it is durable, so is everything up to ``upto`` (by the snapshot it stands for)."""
        self.last_io += 1
        self._pending.append((self.last_io, now, 0, upto, 0))
        return self.last_io

    def submit_truncate(self, since: int, last_before: LogId | None, now: float) -> int:
        """A truncation. The flushed position falls at once, and no write under way vouches for what was cut."""
        pending = self._pending
        for position, (io_id, submitted_at, first_index, log_id, size_bytes) in enumerate(pending):
            if log_id is not None and log_id.index >= since:
                left = last_before if first_index < since else None
                pending[position] = (io_id, submitted_at, first_index, left, size_bytes)
        if index_of(self.flushed_log_id) >= since:
            self.flushed_log_id = last_before
        return self.submit(now)

    def io_of(self, index: int) -> int:
        """The write that makes the current entry at ``index`` durable; 0 if it is durable already."""
        flushed = self.flushed_log_id
        if flushed is not None and index <= flushed.index:
            return 0
        for write in self._pending:
            log_id = write[3]
            if log_id is not None and log_id.index >= index:
                return write[0]
        return self.last_io

    def flush(self, io_id: int) -> None:
        """Everything up to ``io_id`` is durable. Completions may come out of order: only the greatest counts."""
        if io_id <= self.flushed_io:
            return
        assert io_id <= self.last_io, f"flushed {io_id}, but only {self.last_io} was submitted"
        self.flushed_io = io_id
        pending = self._pending
        flushed = self.flushed_log_id
        while pending and pending[0][0] <= io_id:
            _, _, _, log_id, size_bytes = pending.popleft()
            self.unflushed_bytes -= size_bytes
            if log_id is not None and (flushed is None or log_id.index > flushed.index):
                flushed = log_id
        self.flushed_log_id = flushed

    def oldest_submitted_at(self) -> float | None:
        """When the oldest write under way was submitted, or None if all is durable."""
        return self._pending[0][1] if self._pending else None
