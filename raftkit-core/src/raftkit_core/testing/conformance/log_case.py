"""What every case of the log storage kit is made of: entries, votes, opening and writing, and what an author gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.plugins import load_plugins
from raftkit_core.storage.interface import LogBatch, RaftLogStorage
from raftkit_core.testing.conformance.kit import ConformanceKit
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId, Vote

Opener: TypeAlias = Callable[[], RaftLogStorage]
"""Makes a new handle on one and the same place: a second call is a second process, or a restart."""

NODE = "n1"

_data_dir: ContextVar[Path | None] = ContextVar("raftkit_kit_data_dir", default=None)
"""The folder of the case that runs: cases call :func:`context` without a ``self`` in many places."""


def log_id(term: int, index: int, node_id: str = NODE) -> LogId:
    return LogId(LeaderId(term, node_id), index)


def entry(term: int, index: int, payload: bytes = b"x", *, kind: int = NORMAL, time_ms: int = 0) -> Entry:
    return Entry(log_id(term, index), time_ms, kind, payload)


def entries(term: int, start: int, stop: int, payload: bytes = b"x") -> list[Entry]:
    """Entries of one term, from index ``start`` up to ``stop`` (exclusive)."""
    return [entry(term, index, payload) for index in range(start, stop)]


def vote(term: int, node_id: str = NODE, *, committed: bool = False) -> Vote:
    return Vote(LeaderId(term, node_id), committed)


def context(node_id: str = NODE, group: str = "default") -> AdapterContext:
    """The context of the case that runs: :meth:`LogStorageCase.context`."""
    return AdapterContext(node_id, clock=SystemClock(), group=group, data_dir=_data_dir.get())


def identity(node_id: str = NODE, group: str = "default") -> StoreIdentity:
    return StoreIdentity(node_id=node_id, store_id="5a" * 16, cluster="default", group=group)


async def write(storage: RaftLogStorage, batch: LogBatch) -> None:
    """Write and wait, whether the adapter finishes at once or later."""
    pending = storage.write(batch)
    if pending is not None:
        await pending


async def read_all(storage: RaftLogStorage, start: int, stop: int, max_bytes: int = 1 << 30) -> list[Entry]:
    """Read on until ``stop``, however short the prefixes are."""
    found: list[Entry] = []
    while start < stop:
        part = await storage.read(start, stop, max_bytes)
        assert part, f"read({start}, {stop}) gave nothing"
        got = [item.index for item in part]
        assert got == list(range(start, start + len(part))), f"read({start}, {stop}) gave {got[:10]}"
        assert got[-1] < stop, f"read({start}, {stop}) gave {got[-1]}"
        found += part
        start = part[-1].index + 1
    return found


@asynccontextmanager
async def opened(opener: Opener, at: AdapterContext | None = None) -> AsyncIterator[RaftLogStorage]:
    """A handle that is opened and always closed. A new store gets its identity, as the runtime does it."""
    storage = opener()
    where = context() if at is None else at
    found = await storage.open(where)
    try:
        if found is None:
            await storage.save_identity(identity(where.node_id, where.group))
        yield storage
    finally:
        await storage.close()


class LogStorageCase(ConformanceKit):
    """What the author of a log storage gives: ``url`` or :meth:`opener`; the other methods prove more if you can."""

    interface = RaftLogStorage
    url: str | None = None
    """The adapter URL of an installed plugin, as in ``--storage``; a relative path is below the case's own folder."""

    @contextmanager
    def in_folder(self, folder: Path) -> Iterator[None]:
        with super().in_folder(folder):
            token = _data_dir.set(None if self.url is None else folder)  # what made the handle opens it
            try:
                yield
            finally:
                _data_dir.reset(token)

    def opener(self) -> Opener:
        """A new, empty place, and how to get a handle on it. What is closed must be there when it is opened again."""
        if self.url is None:
            raise NotImplementedError("give url = '…' or opener() in the subclass")
        url, at = self.url, self.context()
        return lambda: load_plugins().log_storage(url, at)

    async def make_next_write_fail(self, storage: RaftLogStorage) -> None:
        """Let the disk of an open store fail at its next write."""
        pytest.skip("this adapter gives no way to make a write fail (make_next_write_fail)")

    async def damage_entry(self, opener: Opener, index: int) -> None:
        """Change some bits of the payload of one entry of a closed store, behind the adapter's back."""
        pytest.skip("this adapter gives no way to damage an entry (damage_entry)")

    async def damage_vote(self, opener: Opener) -> None:
        """Change some bits of the vote of a closed store, behind the adapter's back."""
        pytest.skip("this adapter gives no way to damage the vote (damage_vote)")
