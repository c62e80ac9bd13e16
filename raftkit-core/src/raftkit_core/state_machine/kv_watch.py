"""Watching the keys of ``kv/1``: what was applied lately, kept in a bounded ring, and readers that walk along it.

The ring is fed beside the machine, batch by batch, so it serves the memory, SQLite and Redis machines alike and costs
the write path one call per batch. It holds entries, as the log does, and what became of them; commands are decoded once
more, and events made of them, only when somebody reads. A reader holds a place and no events: one that is too slow is
overtaken and told so, and costs no memory until then.

What is in the ring is applied, so it never un-happens: every node gives the same events in the same order, some later.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raftkit_core.errors import Compacted, RaftError, Stopped
from raftkit_core.state_machine.kv_part import KvPart
from raftkit_core.types.entry import Entries, Entry, indexes_of, payload_bytes
from raftkit_core.types.kv import Delete, KvCommand, KvEvent, WriteResult

RING_ENTRIES = 16_384
RING_BYTES = 16 * 1024 * 1024
"""Of payloads. The newest batch stays, whatever its size: a reader that keeps up is never cut off."""
SCAN_ENTRIES = 1024
"""Entries a reader looks at before others get their turn."""


class ChangeRing:
    """The last changes of a ``kv/1`` machine. A watch can start at any revision from ``oldest`` on."""

    def __init__(self, *, max_entries: int = RING_ENTRIES, max_bytes: int = RING_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._parts: deque[KvPart] = deque()
        self._entries = 0
        self._bytes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self.is_closed = False
        self.oldest = 1
        self.position = 0
        """The log index up to which everything is in here, or was."""

    def feed(self, log: Sequence[Entry], entries: Sequence[Entry], results: Sequence[Any]) -> None:
        """A batch was applied: all of it, the entries that reached the machine, and the machine's results of them."""
        self.position = position = log.last.index if type(log) is Entries else log[-1].log_id.index
        if entries:
            size_bytes = payload_bytes(log)
            self._parts.append(KvPart(position, entries, results, size_bytes))
            self._entries += len(entries)
            self._bytes += size_bytes
            if self._entries > self._max_entries or self._bytes > self._max_bytes:
                self._drop_oldest()
        if self._waiters:
            self._wake()

    def _drop_oldest(self) -> None:
        """Back to the bounds; the newest batch stays."""
        parts = self._parts
        while (self._entries > self._max_entries or self._bytes > self._max_bytes) and len(parts) > 1:
            dropped = parts.popleft()
            self._entries -= len(dropped.entries)
            self._bytes -= dropped.size_bytes
            self.oldest = dropped.last + 1

    def continue_after(self, index: int) -> None:
        """The machine's state came from elsewhere, a snapshot or its own disk: what led to it is not known here."""
        self._parts.clear()
        self._entries = self._bytes = 0
        self.position = index
        self.oldest = index + 1
        self._wake()

    def close(self) -> None:
        """No change will come any more."""
        self.is_closed = True
        self._wake()

    def parts_from(self, index: int) -> Iterator[KvPart]:
        """Batches with entries at ``index`` or behind it. Nothing may be fed while they are iterated."""
        parts = self._parts
        for at in range(bisect_left(parts, index, key=lambda part: part.last), len(parts)):
            yield parts[at]

    async def changed(self) -> None:
        """Wait until something was fed; returns at once when the ring is closed."""
        if self.is_closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class KvWatch:
    """Changes of the keys with a prefix, in the order of the log and without gaps: ``async for event in watch``.

    It ends only by an exception: ``Compacted`` when the next change is no longer known here (``error.oldest`` is the
    lowest revision a watch can start from: list the keys anew, or go on at another node), ``Stopped`` or ``Fatal`` with
    the node. Nothing needs to be closed.
    """

    def __init__(
        self,
        ring: ChangeRing,
        prefix: str = "",
        from_revision: int | None = None,
        check_running: Callable[[], None] = lambda: None,
    ) -> None:
        self._ring = ring
        self._check_running = check_running
        self._prefix = prefix
        self._next = ring.position + 1 if from_revision is None else from_revision
        self._ready: deque[KvEvent] = deque()
        self._check()

    @property
    def position(self) -> int:
        """Every change up to this revision has been given: a watch continues at the one behind it."""
        return self._ready[0].revision - 1 if self._ready else self._next - 1

    def __aiter__(self) -> KvWatch:
        return self

    async def __anext__(self) -> KvEvent:
        if not self._ready:
            self._ready.extend(await self.take(64))
        return self._ready.popleft()

    async def take(self, limit: int = 256, *, timeout: float | None = None) -> list[KvEvent]:
        """At least one event and at most ``limit``; none if there is none within ``timeout`` seconds.

        Raises: as iterating.
        """
        if self._ready:
            return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self._check()
                    found, is_at_end = self._scan(limit)
                    if found:
                        return found
                    await (self._ring.changed() if is_at_end else asyncio.sleep(0))
        except TimeoutError:
            return []

    def _check(self) -> None:
        """Raises: Compacted; Stopped or Fatal."""
        if self._ring.is_closed:
            self._check_running()
            raise Stopped("the node has stopped")
        oldest = self._ring.oldest
        if self._next < oldest:
            raise Compacted(
                f"changes from revision {self._next} on are no longer kept here; the oldest kept is {oldest}",
                oldest=oldest,
            )

    def _scan(self, limit: int) -> tuple[list[KvEvent], bool]:
        """The next events, and whether everything there is has been looked at. Moves the place on."""
        found: list[KvEvent] = []
        looked = 0
        for part in self._ring.parts_from(self._next):
            commands = part.commands()
            indexes = indexes_of(part.entries)
            for at in range(bisect_left(indexes, self._next), len(indexes)):
                command, index = commands[at], indexes[at]
                self._next = index + 1
                looked += 1
                if command.key.startswith(self._prefix):
                    event = event_of(command, index, part.results[at])
                    if event is not None:
                        found.append(event)
                if len(found) >= limit or looked >= SCAN_ENTRIES:
                    return found, False
        self._next = max(self._next, self._ring.position + 1)
        return found, True


def event_of(command: KvCommand, index: int, result: Any) -> KvEvent | None:
    """What a command applied at ``index`` changed; None if it changed nothing."""
    if isinstance(result, RaftError) or not isinstance(result, WriteResult) or not result.changed:
        return None
    value = None if isinstance(command, Delete) else command.value
    return KvEvent(key=command.key, value=value, revision=index, previous_revision=result.previous_revision)


__all__ = ["RING_BYTES", "RING_ENTRIES", "ChangeRing", "KvWatch", "event_of"]
