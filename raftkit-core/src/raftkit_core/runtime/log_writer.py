"""The log lane: joins what has queued up into one batch and awaits one durable write at a time, in order.

Nothing in the lane waits for anything outside it. While a write is under way everything else gathers and becomes the
next batch (group commit). A write is never cancelled; a failed one ends the node.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from raftkit_core.engine.commands import (
    AppendInputEntries,
    DeleteConflictLog,
    LogCommand,
    PurgeLog,
    SaveLease,
    SaveVote,
)
from raftkit_core.errors import StorageError
from raftkit_core.runtime.stalls import STALL_SECONDS, StallDetector
from raftkit_core.storage.interface import LogBatch, RaftLogStorage
from raftkit_core.types.entry import Entries, Entry, payload_bytes, payloads_of
from raftkit_core.types.entry_log import EntryLog
from raftkit_core.types.ids import IoId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import Vote

MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_BATCH_ENTRIES = 4096
TAIL_BYTES = 16 * 1024 * 1024
"""How much of the log's end is kept in memory, besides everything not durable yet."""
TRIM_ABOVE_BYTES = TAIL_BYTES + TAIL_BYTES // 4
"""What is above it is dropped a good piece at a time."""
READ_ENTRIES = 4096
"""What one read gives at most, beside a batch that is larger."""


class LogTail:
    """The last entries of the log, readable before they are durable: steady replication and apply read no storage."""

    def __init__(self, next_index: int) -> None:
        self._first = next_index
        self._entries = EntryLog()
        self.end_bytes = 0
        """How much was ever appended, and in ``_begin_bytes`` how much of that is gone again, at the begin."""
        self._begin_bytes = 0
        self.trim_at = TRIM_ABOVE_BYTES
        """How large ``end_bytes`` may become before there is something to drop."""
        self.end = next_index
        """The index behind the last entry."""
        self._newest: Sequence[Entry] = ()
        """The last batch, as it came: mostly what is asked for. It begins at ``_newest_start`` (-1: there is none)."""
        self._newest_start = -1

    def append(self, entries: Sequence[Entry]) -> int:
        """Gives how many bytes of payload they have."""
        self._newest_start = end = self.end
        self._newest = entries
        if type(entries) is Entries:
            size_bytes = entries.size_bytes
            self.end = end + len(entries.payloads)
        elif len(entries) == 1:
            size_bytes = len(entries[0].payload)
            self.end = end + 1
        else:
            size_bytes = payload_bytes(entries)
            self.end = end + len(entries)
        self.end_bytes += size_bytes
        self._entries.extend(entries)
        return size_bytes

    def _forget_newest(self) -> None:
        self._newest = ()
        self._newest_start = -1

    def truncate(self, since: int) -> None:
        keep = max(0, since - self._first)
        self.end_bytes -= payload_bytes(self._entries[keep:])
        del self._entries[keep:]
        if since < self._first:
            self._first = since
        self.end = self._first + len(self._entries)
        self._forget_newest()

    def purge(self, upto: int) -> None:
        """Forget everything up to ``upto``; the log may now begin beyond what was here."""
        self._drop(*self._entries.head(max(0, upto + 1 - self._first)))
        self._first = max(self._first, upto + 1)
        self.end = max(self.end, self._first)

    def trim(self, durable_index: int) -> None:
        """Drop old durable entries once the tail is well above its size."""
        size_bytes = self.end_bytes - self._begin_bytes
        if size_bytes <= TRIM_ABOVE_BYTES:
            return
        self._drop(*self._entries.head(durable_index + 1 - self._first, size_bytes - TAIL_BYTES))

    def _drop(self, count: int, size_bytes: int) -> None:
        """Forget the first ``count`` entries."""
        if not count:
            return
        del self._entries[:count]
        self._first += count
        self._begin_bytes += size_bytes
        self.trim_at = TRIM_ABOVE_BYTES + self._begin_bytes
        if self._first > self._newest_start:
            self._forget_newest()

    def read(self, start: int, stop: int, max_bytes: int) -> Sequence[Entry] | None:
        """Entries of ``[start, stop)`` up to ``max_bytes`` and ``READ_ENTRIES`` (at least one); None if ``start`` is
        not in the tail."""
        if start == self._newest_start and stop >= self.end:
            entries = self._newest
        else:
            offset, there = start - self._first, len(self._entries)
            if offset < 0 or offset >= there:
                return None
            entries = self._entries.part(offset, min(stop - self._first, there, offset + READ_ENTRIES))
        if payload_bytes(entries) <= max_bytes:
            return entries
        return entries[: fitting(entries, max_bytes)]


def fitting(entries: Sequence[Entry], max_bytes: int) -> int:
    """How many of ``entries`` have no more than ``max_bytes`` together, at least one."""
    size_bytes = 0
    for position, payload in enumerate(payloads_of(entries)):
        size_bytes += len(payload)
        if size_bytes > max_bytes and position:
            return position
    return len(entries)


class LogWriter:
    """Owns the log storage. ``flushed(io_id)`` and ``failed(error)`` are told of every outcome."""

    def __init__(
        self,
        storage: RaftLogStorage,
        save_lease: Callable[[int], Awaitable[None]],
        flushed: Callable[[IoId], None],
        failed: Callable[[BaseException], None],
        stalls: StallDetector | None = None,
    ) -> None:
        self.storage = storage
        self._stalls = StallDetector() if stalls is None else stalls
        self._now = self._stalls.now
        self._observe = self._stalls.figures.flush.observe
        self._first_index = 0
        self._save_lease = save_lease
        self._flushed = flushed
        self._failed = failed
        self.queue: deque[LogCommand] = deque()
        """What :meth:`kick` is to begin with."""
        self._is_plain = False
        """The queue is one append that is a batch by itself."""
        self._committed: LogId | None = None
        """What the next batch saves as committed; None if that is no news."""
        self._task: asyncio.Future[None] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._dead = False
        self.written: IoId = 0
        """Everything up to there is durable."""
        self._began = 0.0
        """When the write under way began."""
        self.tail = LogTail(0)
        self.durable_index = -1

    def start_at(self, first_index: int, next_index: int) -> None:
        """What recovery found: the log holds ``[first_index, next_index)``, all of it durable."""
        self._first_index = first_index
        self.tail = LogTail(next_index)
        self.durable_index = next_index - 1

    def attach(self, flushed: Callable[[IoId], None], failed: Callable[[BaseException], None]) -> None:
        """Tell these from now on."""
        self._flushed = flushed
        self._failed = failed

    def submit(self, command: LogCommand) -> None:
        """Queue a command; :meth:`kick` starts it. What it appends is readable at once."""
        match command:
            case AppendInputEntries():
                self.append(command)
                return
            case DeleteConflictLog():
                self.tail.truncate(command.since)
            case PurgeLog():
                self.tail.purge(command.upto.index)
                self._first_index = max(self._first_index, command.upto.index + 1)
            case _:
                pass
        self._is_plain = False
        self.queue.append(command)

    def append(self, command: AppendInputEntries) -> None:
        entries = command.entries
        size_bytes = self.tail.append(entries)
        queue = self.queue
        self._is_plain = not queue and size_bytes <= MAX_BATCH_BYTES and len(entries) <= MAX_BATCH_ENTRIES
        queue.append(command)

    def save_committed(self, committed: LogId) -> None:
        """Everything up to ``committed`` is: saved with the next batch, or at close, without a write of its own. It is
        durable already, or it would vouch for entries that are still to be replaced."""
        assert committed.index <= self.durable_index, f"committed {committed} is not durable: {self.durable_index} is"
        self._committed = committed

    def kick(self) -> None:
        """Start writing what has gathered, unless a write is under way. One that finishes at once is followed by the
        next: ``written`` tells, and nobody is called."""
        queue, now = self.queue, self._now
        while queue and self._task is None and not self._dead:
            head = queue[0]
            if type(head) is SaveLease:
                queue.popleft()
                self._began = now()
                self._start(self._save_lease(head.lease_ms), head.io_id, self.durable_index)
                return
            io_id, batch, last_index = self._next_batch()
            storage = self.storage
            began = self._began = now()
            try:
                result = storage.write(batch)
            except Exception as error:
                self._stalls.ran(storage, "write", began)
                self._fail(error)
                return
            seconds = now() - began
            if seconds > STALL_SECONDS:
                self._stalls.ran(storage, "write", began)
            if result is not None:
                self._start(self._stalls.watched(result, storage, "write"), io_id, last_index)
                return
            self._observe(seconds)
            self.written = io_id
            self.durable_index = last_index
            tail = self.tail
            if tail.end_bytes > tail.trim_at:
                tail.trim(last_index)

    def _start(self, write: Awaitable[None], io_id: IoId, last_index: int) -> None:
        # A future is under way already; anything else gets a task.
        self._task = write if isinstance(write, asyncio.Future) else asyncio.ensure_future(_as_coroutine(write))
        self._task.add_done_callback(lambda task: self._finished(task, io_id, last_index))

    def _finished(self, task: asyncio.Future[None], io_id: IoId, last_index: int) -> None:
        self._task = None
        if task.cancelled():
            self._fail(StorageError("a log write was cancelled", subject="log", verb="write"))
            return
        error = task.exception()
        if error is not None:
            self._fail(error)
            return
        self._observe(self._now() - self._began)
        self._done(io_id, last_index)

    def _done(self, io_id: IoId, last_index: int) -> None:
        """A write that took its time is finished: on with the next."""
        before, self.written = self.written, io_id
        self.durable_index = last_index
        if self.tail.end_bytes > self.tail.trim_at:
            self.tail.trim(last_index)
        if io_id > before and not self._dead:
            self._flushed(io_id)
        before = self.written
        try:
            self.kick()
        except Exception as broken:
            self._fail(broken)
        if self.written > before and not self._dead:
            self._flushed(self.written)

    def _fail(self, error: BaseException) -> None:
        """Fail-stop: nothing is written after a failed write, and nothing is retried (S28)."""
        self._dead = True
        self.queue.clear()
        self._failed(error)

    def _next_batch(self) -> tuple[IoId, LogBatch, int]:
        """Join queued commands as long as one batch means the same as doing them in order.

        Gives the io_id up to which all is done then, the batch, and the log's end after it.
        """
        if not self._is_plain:
            return self._joined_batch()
        self._is_plain = False
        head = self.queue.popleft()
        assert type(head) is AppendInputEntries, "a plain queue is an append"
        entries, last_index = head.entries, self.tail.end - 1
        if not self.storage.takes_columns:
            entries = list(entries)  # its own, whatever it does with it: the tail holds the other
        return head.io_id, LogBatch(None, None, None, entries, self._news(last_index)), last_index

    def _joined_batch(self) -> tuple[IoId, LogBatch, int]:
        """As :meth:`_next_batch`, whatever is queued."""
        vote: Vote | None = None
        truncate_since: int | None = None
        purge_upto: LogId | None = None
        entries: Sequence[Entry] = ()
        size_bytes = 0
        io_id = self.written
        queue = self.queue
        while queue:
            command = queue[0]
            match command:
                case AppendInputEntries():
                    more = command.entries
                    more_bytes = payload_bytes(more)
                    if size_bytes + more_bytes > MAX_BATCH_BYTES or len(entries) + len(more) > MAX_BATCH_ENTRIES:
                        taken, size_bytes = _fitting(more, len(entries), size_bytes)
                        entries = _joined(entries, more[:taken])
                        if taken < len(more):
                            # The rest is a batch of its own; only that completes the command.
                            queue[0] = AppendInputEntries(command.io_id, more[taken:])
                            break
                    else:
                        entries = _joined(entries, more) if entries else more
                        size_bytes += more_bytes
                case SaveVote():
                    vote = command.vote
                case DeleteConflictLog():
                    if purge_upto is not None:
                        break  # a batch truncates before it purges
                    if entries and command.since > entries[0].index:
                        entries = entries[: command.since - entries[0].index]
                    else:
                        entries = ()
                        truncate_since = command.since if truncate_since is None else min(truncate_since, command.since)
                    size_bytes = payload_bytes(entries)
                case PurgeLog():
                    if entries:
                        break  # a batch purges before it appends
                    purge_upto = command.upto
                case SaveLease():
                    break
            io_id = command.io_id
            queue.popleft()
        last_index = self.durable_index
        if truncate_since is not None:
            last_index = min(last_index, truncate_since - 1)
        if purge_upto is not None:
            last_index = max(last_index, purge_upto.index)
        if entries:
            last_index = entries[-1].log_id.index
            entries = entries[:]  # no longer one that grows
            if type(entries) is Entries and not self.storage.takes_columns:
                entries = list(entries)
        batch = LogBatch(vote, truncate_since, purge_upto, entries, self._news(last_index))
        return io_id, batch, last_index

    def _news(self, last_index: int) -> LogId | None:
        """What is to be saved as committed beside a batch after which the log ends at ``last_index``, if it is news."""
        committed = self._committed
        if committed is not None:
            assert committed.index <= last_index, f"committed {committed} is ahead of the log's end, {last_index}"
            self._committed = None
        return committed

    @property
    def first_index(self) -> int:
        """The first index that is not purged, as far as the queue goes."""
        return self._first_index

    def retire(self, save: Callable[[], Awaitable[None]], error: BaseException) -> None:
        """Write nothing more; once the write under way is done, ``save`` the retirement and end with ``error``."""
        if self._dead:
            return
        self._dead = True
        self.queue.clear()
        self._retiring = asyncio.ensure_future(self._retire(self._task, save, error))

    async def _retire(
        self, under_way: asyncio.Future[None] | None, save: Callable[[], Awaitable[None]], error: BaseException
    ) -> None:
        if under_way is not None:
            await asyncio.wait([under_way])
        try:
            await save()
        finally:
            self._failed(error)

    async def read(self, start: int, stop: int, max_bytes: int) -> Sequence[Entry]:
        """Entries of ``[start, stop)``, from memory or from the storage; a non-empty prefix.

        Raises: StorageError, also for an empty answer: that is damage, not the end of the log (§6 items 47, 48).
        """
        entries = self.tail.read(start, stop, max_bytes)
        if entries is None:
            entries = await self.storage.read(start, stop, max_bytes)
            check_consecutive(entries, start, stop)
        return entries

    def halt(self) -> None:
        """Write nothing more, for a reason outside the lane; the write under way goes on, and vouches for nothing."""
        self._dead = True
        self.queue.clear()

    async def close(self) -> None:
        """Finish the write under way and, unless halted, what is queued, and save ``committed``. Closes no storage."""
        if self._retiring is not None:
            await asyncio.wait([self._retiring])
        while self._task is not None or (self.queue and not self._dead):
            before = self.written
            self.kick()
            if self.written > before:
                self._flushed(self.written)
            if self._task is not None:
                await asyncio.wait([self._task])
        committed = self._committed
        if self._dead or committed is None:
            return
        result = self.storage.write(LogBatch(committed=committed))
        if result is not None:
            await result


def _joined(entries: Sequence[Entry], more: Sequence[Entry]) -> EntryLog:
    """``entries`` followed by ``more``; what was made here before grows."""
    joined = entries if type(entries) is EntryLog else EntryLog(entries)
    joined.extend(more)
    return joined


def _fitting(entries: Sequence[Entry], count: int, size_bytes: int) -> tuple[int, int]:
    """How many of ``entries`` still fit a batch of ``count`` entries and ``size_bytes``, and its size then. An empty
    batch takes at least one."""
    for taken, payload in enumerate(payloads_of(entries)):
        if count + taken and (count + taken >= MAX_BATCH_ENTRIES or size_bytes + len(payload) > MAX_BATCH_BYTES):
            return taken, size_bytes
        size_bytes += len(payload)
    return len(entries), size_bytes


def check_consecutive(entries: Sequence[Entry], start: int, stop: int) -> None:
    """What a storage read must be: a non-empty run from ``start`` on. Raises: StorageError."""
    if not entries or entries[0].index != start or entries[-1].index != start + len(entries) - 1:
        got = f"{entries[0].index}..{entries[-1].index} ({len(entries)})" if entries else "nothing"
        raise StorageError(f"the storage gave {got} for entries [{start}, {stop})", subject="log", verb="read")


def _as_coroutine(awaitable: Awaitable[None]) -> Coroutine[Any, Any, None]:
    if inspect.iscoroutine(awaitable):
        return awaitable

    async def wait() -> None:
        await awaitable

    return wait()
