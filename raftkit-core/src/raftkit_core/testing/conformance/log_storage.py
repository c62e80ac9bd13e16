"""Clauses L1 to L11 of :class:`~raftkit_core.storage.interface.RaftLogStorage`, each as named tests.

::

    class TestMyStorage(LogStorageConformance):
        url = "mystore:n1.log"  # of an installed plugin, below the folder each case gets

        # or, without a plugin: def opener(self): return lambda: MyStorage(self.folder / "n1.log")

The tests are ``async def``; raftkit's pytest plugin runs them. Numbers after "openraft" are those of the storage suite
of openraft 0.9.22. Further cases are in ``log_batches`` (what one batch does), ``log_durability`` (what survives) and
``log_shapes`` (what is where).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import pytest

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StorageLocked
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.testing.conformance.log_batches import LogBatchCases
from raftkit_core.testing.conformance.log_case import (
    NODE,
    LogStorageCase,
    Opener,
    context,
    entries,
    entry,
    identity,
    log_id,
    opened,
    read_all,
    vote,
    write,
)
from raftkit_core.testing.conformance.log_durability import LogDurabilityCases
from raftkit_core.testing.conformance.log_shapes import LogShapeCases
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import BLANK, MEMBERSHIP, NORMAL, Entries, Entry
from raftkit_core.types.identity import STORE_FORMAT, StoreIdentity
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.vote import LeaderId

AT_ONCE_S = 4.0
"""What is refused without waiting is refused sooner, also on a busy machine; SQLite itself would wait for five."""

__all__ = [
    "NODE",
    "LogStorageConformance",
    "Opener",
    "context",
    "entries",
    "entry",
    "identity",
    "log_id",
    "opened",
    "read_all",
    "vote",
    "write",
]


class LogStorageConformance(LogBatchCases, LogDurabilityCases, LogShapeCases, LogStorageCase):
    """Give ``url`` or ``opener()``; see :class:`~raftkit_core.testing.conformance.log_case.LogStorageCase`."""

    # --- L1: the claim, and whose store it is -----------------------------------------------------------------------

    async def test_l1_a_new_store_has_no_identity_and_nothing_in_it(self) -> None:
        """Openraft 10, 21, 22."""
        storage = self.opener()()
        assert await storage.open(context()) is None
        try:
            assert await storage.read_state() == LogState()
            with pytest.raises(StorageError):
                await storage.read(0, 1, 1024)
        finally:
            await storage.close()

    async def test_l1_a_second_opener_is_refused_at_once_and_told_who_holds_the_store(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            second = opener()
            started = time.monotonic()
            with pytest.raises(StorageLocked) as refused:
                await second.open(context())
            assert time.monotonic() - started < AT_ONCE_S
            assert NODE in refused.value.message
            await second.close()
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 3)))  # the holder is not disturbed
            assert len(await read_all(storage, 0, 3)) == 3

    async def test_l1_a_closed_store_can_be_opened_again(self) -> None:
        opener = self.opener()
        for _ in range(3):
            async with opened(opener):
                pass

    async def test_l1_the_store_of_another_node_is_refused_and_left_untouched(self) -> None:
        await self._is_refused_and_untouched(context("n2"))

    async def test_l1_the_store_of_another_group_is_refused_and_left_untouched(self) -> None:
        await self._is_refused_and_untouched(context(group="other"))

    async def _is_refused_and_untouched(self, stranger: AdapterContext) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(3), entries=entries(1, 0, 5)))
        foreign = opener()
        with pytest.raises(IdentityError) as refused:
            await foreign.open(stranger)
        await foreign.close()
        assert refused.value.hint
        again = opener()
        try:
            assert await again.open(context()) == identity()
            state = await again.read_state()
            assert (state.vote, state.last_log_id) == (vote(3), log_id(1, 4))
        finally:
            await again.close()

    async def test_l1_a_store_of_a_newer_format_is_refused(self) -> None:
        opener = self.opener()
        newer = StoreIdentity(node_id=NODE, store_id="5a" * 16, cluster="default", format=STORE_FORMAT + 1)
        async with opened(opener) as storage:
            await storage.save_identity(newer)
        refused = opener()
        with pytest.raises(IdentityError):
            await refused.open(context())
        await refused.close()

    # --- L2: returning means durable --------------------------------------------------------------------------------

    async def test_l2_the_identity_read_back_is_the_one_last_saved(self) -> None:
        opener = self.opener()
        full = StoreIdentity(
            node_id=NODE,
            store_id="0f" * 16,
            cluster="production",
            cluster_id="c1" * 16,
            single_term_leader=True,
            machine="kv/1",
            largest_lease_ms=700,
            retired="moved",
        )
        async with opened(opener) as storage:
            await storage.save_identity(full)
        again = opener()
        try:
            assert await again.open(context()) == full
        finally:
            await again.close()

    async def test_l2_the_vote_read_back_is_the_one_last_written(self) -> None:
        """Openraft 17."""
        opener = self.opener()
        for number, expected in enumerate((vote(1), vote(2, "n2"), vote(2, "n2", committed=True))):
            async with opened(opener) as storage:
                await write(storage, LogBatch(vote=expected))
                assert (await storage.read_state()).vote == expected, number
            async with opened(opener) as storage:
                assert (await storage.read_state()).vote == expected, number

    async def test_l2_entries_are_read_back_whole_in_every_field(self) -> None:
        opener = self.opener()
        written = [
            Entry(LogId(LeaderId(0, ""), 0), 0, MEMBERSHIP, b"\x00members"),
            Entry(LogId(LeaderId(1, "n1"), 1), 17, BLANK, b""),
            Entry(LogId(LeaderId(7, "n2.with-every_sign"), 2), 2**40, NORMAL, bytes(range(256))),
            Entry(LogId(LeaderId(2**53, "N" * 63), 3), 2**53, NORMAL, b"\xff" * 70_000),
        ]
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=written))
            assert await read_all(storage, 0, 4) == written
        async with opened(opener) as storage:
            assert await read_all(storage, 0, 4) == written
            assert (await storage.read_state()).last_log_id == written[-1].log_id

    async def test_l2_entries_that_were_proposed_together_are_read_back_one_by_one(self) -> None:
        opener = self.opener()
        together = Entries(log_id(3, 0), 17, NORMAL, [b"first", b"", b"third"])
        joined = Entries(log_id(3, 3), 40, NORMAL, [b"fourth", b"fifth"], [18, 40])
        async with opened(opener) as storage:
            for entries, committed in ((together, None), (joined, together.last)):
                given = entries if storage.takes_columns else list(entries)
                await write(storage, LogBatch(entries=given, committed=committed))
        async with opened(opener) as storage:
            assert await read_all(storage, 0, 5) == [*together, *joined]
            assert (await storage.read_state()).last_log_id == joined.last

    async def test_l2_everything_of_many_batches_is_there_after_reopening(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            for index in range(20):
                await write(storage, LogBatch(entries=[entry(1, index, b"%d" % index)], committed=log_id(1, index)))
            await write(storage, LogBatch(purge_upto=log_id(1, 4)))
            before = await storage.read_state()
        async with opened(opener) as storage:
            after = await storage.read_state()
            assert (after.last_purged, after.last_log_id) == (before.last_purged, before.last_log_id)
            assert [found.payload for found in await read_all(storage, 5, 20)] == [b"%d" % i for i in range(5, 20)]

    # --- L6: cancellation -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
    async def test_l6_a_cancelled_write_is_done_whole_or_not_at_all(self, turns: int) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 50)))
            batch = LogBatch(vote=vote(2), truncate_since=20, purge_upto=log_id(1, 5), entries=entries(2, 20, 120))
            task = asyncio.create_task(write(storage, batch))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            state = await storage.read_state()
            untouched = LogState(vote=vote(1), last_log_id=log_id(1, 49))
            done = LogState(vote=vote(2), last_purged=log_id(1, 5), last_log_id=log_id(2, 119))
            assert state in (untouched, done)
            following = index_of(state.last_log_id) + 1
            await write(storage, LogBatch(entries=entries(3, following, following + 1)))  # and nothing is stuck
        async with opened(opener) as storage:
            reopened = await storage.read_state()
            assert (reopened.vote, reopened.last_log_id) == (state.vote, log_id(3, following))
            assert len(await read_all(storage, index_of(state.last_purged) + 1, following)) > 40

    # --- L7: a failed write -----------------------------------------------------------------------------------------

    async def test_l7_after_a_failed_write_every_later_one_is_refused(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 3)))
            await self.make_next_write_fail(storage)
            with pytest.raises(StorageError):
                await write(storage, LogBatch(entries=entries(1, 3, 40, b"y" * 4096)))
            for later in (LogBatch(vote=vote(2)), LogBatch(entries=entries(1, 3, 4)), LogBatch(committed=log_id(1, 2))):
                with pytest.raises(StorageError):
                    await write(storage, later)
            with pytest.raises(StorageError):
                await storage.save_identity(identity())
        async with opened(opener) as storage:
            assert (await storage.read_state()).vote == vote(1)
            assert await read_all(storage, 0, 3) == entries(1, 0, 3)

    # --- L8: reading ------------------------------------------------------------------------------------------------

    async def test_l8_a_read_gives_the_entries_of_its_range_in_order(self) -> None:
        """Openraft 18."""
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 11)))
            assert await read_all(storage, 5, 7) == entries(1, 5, 7)
            assert await read_all(storage, 0, 11) == entries(1, 0, 11)

    @pytest.mark.parametrize("max_bytes", [0, 1, 150, 250, 10_000])
    async def test_l8_a_limited_read_is_a_prefix_that_is_never_empty(self, max_bytes: int) -> None:
        """Openraft 19."""
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 20, b"p" * 100)))
            part = await storage.read(3, 20, max_bytes)
            assert part
            assert part == entries(1, 3, 3 + len(part), b"p" * 100)
            assert sum(len(found.payload) for found in part) <= max(max_bytes, 100)
            assert await read_all(storage, 3, 20, max_bytes) == entries(1, 3, 20, b"p" * 100)

    async def test_l8_a_range_that_reaches_beyond_the_log_gives_what_is_there(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5)))
            assert await storage.read(3, 1000, 1 << 20) == entries(1, 3, 5)

    @pytest.mark.parametrize("start", [0, 3, 10, 4000])
    async def test_l8_a_read_that_starts_at_a_purged_or_absent_entry_is_an_error(self, start: int) -> None:
        """Openraft 20, 23: never an empty answer, which would read as "nothing to send"."""
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))
            await write(storage, LogBatch(purge_upto=log_id(1, 3)))
            with pytest.raises(StorageError) as error:
                await storage.read(start, start + 2, 1024)
            assert not isinstance(error.value, StorageCorrupt)

    async def test_l8_truncated_entries_cannot_be_read(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))
            await write(storage, LogBatch(truncate_since=4))
            assert await storage.read(2, 10, 1 << 20) == entries(1, 2, 4)
            with pytest.raises(StorageError):
                await storage.read(4, 10, 1 << 20)

    async def test_l8_reads_may_overlap_writes_and_see_whole_batches(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))

            async def writes() -> None:
                for start in range(10, 110, 10):
                    await write(storage, LogBatch(entries=entries(1, start, start + 10)))

            async def reads() -> None:
                for _ in range(20):
                    found = await storage.read(0, 1000, 1 << 20)
                    assert len(found) % 10 == 0
                    assert found == entries(1, 0, len(found))
                    await storage.info()

            await asyncio.gather(writes(), reads(), reads())

    # --- L9: damage -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("index", [0, 5, 9])
    async def test_l9_a_damaged_entry_is_found_and_is_never_an_absent_one(self, index: int) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10, b"payload")))
        await self.damage_entry(opener, index)
        with pytest.raises(StorageCorrupt):
            async with opened(opener) as storage:
                await read_all(storage, 0, 10)

    async def test_l9_a_damaged_vote_is_found_and_is_never_the_default_vote(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(7, "n2", committed=True)))
        await self.damage_vote(opener)
        with pytest.raises(StorageCorrupt):
            async with opened(opener) as storage:
                await storage.read_state()

    # --- L10: committed ---------------------------------------------------------------------------------------------

    async def test_l10_committed_may_lag_and_is_never_invented(self) -> None:
        """Openraft 16."""
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5), committed=log_id(1, 3)))
        async with opened(opener) as storage:
            assert index_of((await storage.read_state()).committed) <= 3

    async def test_l10_committed_is_never_ahead_of_the_log(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5), committed=log_id(1, 4)))
            with suppress(StorageError):  # refusing and lagging are both right
                await write(storage, LogBatch(committed=log_id(1, 9)))
        async with opened(opener) as storage:
            assert index_of((await storage.read_state()).committed) <= 4
            await write(storage, LogBatch(truncate_since=2))
            assert index_of((await storage.read_state()).committed) <= 1

    # --- L11: close -------------------------------------------------------------------------------------------------

    async def test_l11_close_is_idempotent_and_ends_every_thread(self) -> None:
        before = _threads()
        storage = self.opener()()
        await storage.close()  # before it was opened
        await storage.open(context())
        await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 3)))
        await storage.close()
        await storage.close()
        assert _threads() <= before

    async def test_l11_a_closed_store_refuses_everything(self) -> None:
        storage = self.opener()()
        await storage.open(context())
        await storage.close()
        with pytest.raises(StorageError):
            await write(storage, LogBatch(vote=vote(1)))
        with pytest.raises(StorageError):
            await storage.read_state()
        with pytest.raises(StorageError):
            await storage.read(0, 1, 1)

    async def test_l11_closing_waits_for_a_write_under_way(self) -> None:
        opener = self.opener()
        storage = opener()
        await storage.open(context())
        await storage.save_identity(identity())
        task = asyncio.create_task(write(storage, LogBatch(entries=entries(1, 0, 200))))
        await asyncio.sleep(0)
        await storage.close()
        await task
        async with opened(opener) as again:
            assert (await again.read_state()).last_log_id == log_id(1, 199)

    async def test_info_says_which_adapter_where_and_what_durable_means(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 100, b"z" * 1000)))
            info = await storage.info()
            assert info.adapter
            assert info.location
            assert info.durability
            assert info.size_bytes >= 100_000

    async def test_ten_thousand_entries_are_written_read_and_purged(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            for start in range(0, 10_000, 1000):
                await write(storage, LogBatch(entries=entries(1, start, start + 1000, b"v" * 64)))
            _is_sequence(await read_all(storage, 0, 10_000, 64 * 1024), 0, 10_000)
            await write(storage, LogBatch(purge_upto=log_id(1, 7_999)))
        async with opened(opener) as storage:
            _is_sequence(await read_all(storage, 8_000, 10_000, 64 * 1024), 8_000, 10_000)


def _threads() -> set[threading.Thread]:
    """Those of the loop's own executor end with the loop."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def _is_sequence(found: Sequence[Entry], start: int, stop: int) -> None:
    assert [item.index for item in found] == list(range(start, stop))
