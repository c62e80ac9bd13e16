"""Cases of log storage about what one batch does: atomic or in order, without holes, and behind a purge."""

from __future__ import annotations

import pytest

from raftkit_core.errors import StorageError
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.testing.conformance.log_case import (
    LogStorageCase,
    entries,
    log_id,
    opened,
    read_all,
    vote,
    write,
)


class LogBatchCases(LogStorageCase):
    """Clauses L3, L4 and L5."""

    # --- L3: one batch is atomic, or in order -----------------------------------------------------------------------

    async def test_l3_one_batch_may_do_everything(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 10)))
            batch = LogBatch(
                vote=vote(2, "n2", committed=True),
                truncate_since=6,
                purge_upto=log_id(1, 2),
                entries=entries(2, 6, 9, b"new"),
                committed=log_id(1, 5),
            )
            await write(storage, batch)
        async with opened(opener) as storage:
            state = await storage.read_state()
            assert state.vote == vote(2, "n2", committed=True)
            assert (state.last_purged, state.last_log_id) == (log_id(1, 2), log_id(2, 8))
            assert await read_all(storage, 3, 9) == entries(1, 3, 6) + entries(2, 6, 9, b"new")

    async def test_l3_truncate_and_purge_in_one_batch_leave_only_what_is_between(self) -> None:
        """A snapshot that the log does not hold: everything goes, and the log continues after it."""
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))
            await write(storage, LogBatch(truncate_since=3, purge_upto=log_id(4, 50), committed=log_id(4, 50)))
            assert await storage.read_state() == LogState(
                committed=log_id(4, 50), last_purged=log_id(4, 50), last_log_id=log_id(4, 50)
            )
            await write(storage, LogBatch(entries=entries(4, 51, 53)))
            assert await read_all(storage, 51, 53) == entries(4, 51, 53)

    async def test_l3_an_empty_batch_changes_nothing(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 2)))
            before = await storage.read_state()
            await write(storage, LogBatch())
            assert await storage.read_state() == before

    async def test_l3_truncating_replaces_entries_of_the_same_indexes(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5, b"old")))
            await write(storage, LogBatch(truncate_since=2, entries=entries(2, 2, 4, b"new")))
            assert await read_all(storage, 0, 4) == entries(1, 0, 2, b"old") + entries(2, 2, 4, b"new")
            assert (await storage.read_state()).last_log_id == log_id(2, 3)

    async def test_l3_truncating_beyond_the_last_entry_removes_nothing(self) -> None:
        """Openraft 29."""
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 11)))
            await write(storage, LogBatch(truncate_since=11))
            assert (await storage.read_state()).last_log_id == log_id(1, 10)
            assert len(await read_all(storage, 0, 11)) == 11

    async def test_l3_truncating_at_zero_empties_the_log_and_purges_nothing(self) -> None:
        """Openraft 30."""
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 11)))
            await write(storage, LogBatch(truncate_since=0))
            assert await storage.read_state() == LogState(vote=vote(1))
            await write(storage, LogBatch(entries=entries(2, 0, 1)))
            assert await read_all(storage, 0, 1) == entries(2, 0, 1)

    async def test_l3_truncating_what_is_left_after_a_purge_gives_the_purged_id(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))
            await write(storage, LogBatch(purge_upto=log_id(1, 4)))
            await write(storage, LogBatch(truncate_since=5))
            state = await storage.read_state()
            assert (state.last_purged, state.last_log_id) == (log_id(1, 4), log_id(1, 4))

    # --- L4: no holes -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("batch", "why"),
        [
            (LogBatch(entries=entries(1, 6, 8)), "an index is left out"),
            (LogBatch(entries=entries(1, 4, 6)), "an index is there already"),
            (LogBatch(entries=[*entries(1, 5, 7), *entries(1, 8, 9)]), "a hole within the batch"),
            (LogBatch(entries=[*entries(1, 5, 6), *entries(1, 5, 6)]), "an index twice in the batch"),
            (LogBatch(truncate_since=3, entries=entries(1, 4, 6)), "a hole after the truncation"),
            (LogBatch(purge_upto=log_id(1, 9), entries=entries(1, 5, 6)), "an index below the purge"),
            (LogBatch(purge_upto=log_id(1, 9), entries=entries(1, 11, 12)), "a hole after the purge"),
        ],
    )
    async def test_l4_a_batch_that_would_make_a_hole_is_refused_whole(self, batch: LogBatch, why: str) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 5)))
            with_vote = LogBatch(vote(9), batch.truncate_since, batch.purge_upto, batch.entries, batch.committed)
            with pytest.raises(StorageError):
                await write(storage, with_vote)
        async with opened(opener) as storage:
            expected = LogState(vote=vote(1), last_log_id=log_id(1, 4))
            assert await storage.read_state() == expected, why
            assert await read_all(storage, 0, 5) == entries(1, 0, 5)

    async def test_l4_the_first_entry_of_an_empty_log_has_index_zero(self) -> None:
        async with opened(self.opener()) as storage:
            with pytest.raises(StorageError):
                await write(storage, LogBatch(entries=entries(1, 1, 2)))

    # --- L5: purge --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("upto", "first", "last"), [(0, 1, 10), (5, 6, 10), (9, 10, 10)])
    async def test_l5_a_purge_removes_up_to_its_index(self, upto: int, first: int, last: int) -> None:
        """Openraft 26, 27."""
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 11)))
            await write(storage, LogBatch(purge_upto=log_id(1, upto)))
        async with opened(opener) as storage:
            state = await storage.read_state()
            assert (state.last_purged, state.last_log_id) == (log_id(1, upto), log_id(1, last))
            assert await read_all(storage, first, last + 1) == entries(1, first, last + 1)
            with pytest.raises(StorageError):
                await storage.read(upto, last + 1, 1 << 20)

    @pytest.mark.parametrize("upto", [10, 20])
    async def test_l5_a_purge_of_all_or_beyond_leaves_an_empty_log_that_ends_there(self, upto: int) -> None:
        """Openraft 22, 24, 28."""
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 11)))
            await write(storage, LogBatch(purge_upto=log_id(1, upto)))
        async with opened(opener) as storage:
            assert await storage.read_state() == LogState(last_purged=log_id(1, upto), last_log_id=log_id(1, upto))
            with pytest.raises(StorageError):
                await storage.read(10, 12, 1024)
            await write(storage, LogBatch(entries=entries(2, upto + 1, upto + 3)))
            assert (await storage.read_state()).last_log_id == log_id(2, upto + 2)

    async def test_l5_appending_goes_on_after_a_purge(self) -> None:
        """Openraft 31."""
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 11)))
            await write(storage, LogBatch(purge_upto=log_id(1, 0)))
            await write(storage, LogBatch(entries=entries(2, 11, 12)))
            assert await read_all(storage, 1, 12) == entries(1, 1, 11) + entries(2, 11, 12)

    async def test_l5_purging_step_by_step_to_the_end(self) -> None:
        """Openraft 15."""
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 6)))
            for upto in range(6):
                await write(storage, LogBatch(purge_upto=log_id(1, upto)))
                state = await storage.read_state()
                assert (state.last_purged, state.last_log_id) == (log_id(1, upto), log_id(1, 5))
                if upto < 5:
                    assert len(await read_all(storage, upto + 1, 6)) == 5 - upto

    async def test_l5_repeating_an_older_purge_changes_nothing(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 6)))
            await write(storage, LogBatch(purge_upto=log_id(1, 3)))
            before = await storage.read_state()
            await write(storage, LogBatch(purge_upto=log_id(1, 1)))
            assert await storage.read_state() == before
