"""Cases of log storage about what is where after which batches, up to a random model."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from raftkit_core.errors import StorageError
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.conformance.log_case import (
    LogStorageCase,
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
from raftkit_core.types.log_id import index_of

MIB = 1024 * 1024


class LogShapeCases(LogStorageCase):
    """Clauses L2 to L5, L8 and L10, and everything together."""

    # --- L2 -----------------------------------------------------------------------------------------------------------

    async def test_l2_the_last_of_many_votes_is_the_vote(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            for term in range(1, 30):
                await write(storage, LogBatch(vote=vote(term, f"n{term % 3 + 1}", committed=term % 2 == 0)))
        async with opened(opener) as storage:
            assert (await storage.read_state()).vote == vote(29, "n3")

    async def test_l2_opening_and_closing_changes_nothing(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(3), entries=entries(3, 0, 7)))
            await write(storage, LogBatch(purge_upto=log_id(3, 2)))
        for _ in range(3):
            async with opened(opener) as storage:
                state = await storage.read_state()
                assert (state.vote, state.last_purged, state.last_log_id) == (vote(3), log_id(3, 2), log_id(3, 6))
                assert await read_all(storage, 3, 7) == entries(3, 3, 7)

    async def test_l2_writing_does_not_touch_the_identity(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 5), committed=log_id(1, 4)))
            await write(storage, LogBatch(truncate_since=0))
        again = opener()
        try:
            assert await again.open(context()) == identity()
        finally:
            await again.close()

    async def test_l2_saving_the_identity_does_not_touch_the_log(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(2), entries=entries(2, 0, 5)))
            before = await storage.read_state()
            await storage.save_identity(identity())
            assert await storage.read_state() == before
        async with opened(opener) as storage:
            assert await read_all(storage, 0, 5) == entries(2, 0, 5)

    async def test_l2_an_entry_of_a_mebibyte_is_read_back_whole(self) -> None:
        """The largest a default configuration proposes."""
        opener = self.opener()
        large = entry(1, 1, bytes(range(256)) * (MIB // 256))
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=[entry(1, 0), large, entry(1, 2)]))
        async with opened(opener) as storage:
            assert await read_all(storage, 0, 3, 1024) == [entry(1, 0), large, entry(1, 2)]

    async def test_l2_entries_keep_the_leaders_that_made_them(self) -> None:
        opener = self.opener()
        written = [entry(1, 0), *entries(2, 1, 3), entry(2, 3, kind=1), *entries(5, 4, 6)]
        async with opened(opener) as storage:
            for item in written:
                await write(storage, LogBatch(entries=[item]))
        async with opened(opener) as storage:
            assert await read_all(storage, 0, 6) == written

    # --- L3 -----------------------------------------------------------------------------------------------------------

    async def test_l3_a_batch_of_a_vote_alone_leaves_the_log_alone(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 3)))
            await write(storage, LogBatch(vote=vote(2)))
            state = await storage.read_state()
            assert (state.vote, state.last_log_id) == (vote(2), log_id(1, 2))

    async def test_l3_a_batch_of_entries_alone_leaves_the_vote_alone(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(vote=vote(7, "n2", committed=True)))
            await write(storage, LogBatch(entries=entries(7, 0, 3)))
            assert (await storage.read_state()).vote == vote(7, "n2", committed=True)

    async def test_l3_a_truncation_is_still_one_after_reopening(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))
            await write(storage, LogBatch(truncate_since=3))
        async with opened(opener) as storage:
            assert (await storage.read_state()).last_log_id == log_id(1, 2)
            assert await read_all(storage, 0, 3) == entries(1, 0, 3)
            with pytest.raises(StorageError):
                await storage.read(3, 10, MIB)

    async def test_l3_truncating_again_and_again_keeps_what_comes_before(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))
            for term, since in ((2, 8), (3, 5), (4, 5), (5, 1)):
                await write(storage, LogBatch(truncate_since=since, entries=entries(term, since, 10)))
                assert await read_all(storage, since, 10) == entries(term, since, 10)
            assert await read_all(storage, 0, 1) == entries(1, 0, 1)

    async def test_l3_truncating_below_the_purged_index_keeps_it_purged(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 10)))
            await write(storage, LogBatch(purge_upto=log_id(1, 6)))
            await write(storage, LogBatch(truncate_since=2))
            state = await storage.read_state()
            assert (state.last_purged, state.last_log_id) == (log_id(1, 6), log_id(1, 6))

    async def test_l3_a_purge_and_the_entries_after_it_fit_one_batch(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5)))
            await write(storage, LogBatch(purge_upto=log_id(3, 20), entries=entries(3, 21, 24)))
        async with opened(opener) as storage:
            state = await storage.read_state()
            assert (state.last_purged, state.last_log_id) == (log_id(3, 20), log_id(3, 23))
            assert await read_all(storage, 21, 24) == entries(3, 21, 24)

    # --- L4 -----------------------------------------------------------------------------------------------------------

    async def test_l4_a_hole_is_refused_after_reopening_too(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5)))
        for start in (4, 6, 100):
            async with opened(opener) as storage:
                with pytest.raises(StorageError):
                    await write(storage, LogBatch(entries=entries(1, start, start + 1)))
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 5, 6)))

    async def test_l4_after_a_purge_of_everything_the_next_index_follows_it(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5)))
            await write(storage, LogBatch(purge_upto=log_id(1, 4)))
        for start in (0, 4, 6):
            async with opened(opener) as storage:
                with pytest.raises(StorageError):
                    await write(storage, LogBatch(entries=entries(2, start, start + 1)))
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(2, 5, 6)))

    # --- L5 -----------------------------------------------------------------------------------------------------------

    async def test_l5_a_purge_of_an_empty_log_is_where_it_begins(self) -> None:
        """What a snapshot leaves that is the first thing a new node gets."""
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(purge_upto=log_id(5, 50)))
        async with opened(opener) as storage:
            assert await storage.read_state() == LogState(last_purged=log_id(5, 50), last_log_id=log_id(5, 50))
            await write(storage, LogBatch(entries=entries(5, 51, 53)))
            assert await read_all(storage, 51, 53) == entries(5, 51, 53)

    async def test_l5_a_purge_keeps_the_vote_and_remembers_the_leader_of_its_id(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(9, "n3", committed=True), entries=entries(1, 0, 10)))
            await write(storage, LogBatch(purge_upto=log_id(1, 9, "n1")))
            await write(storage, LogBatch(purge_upto=log_id(8, 30, "n2")))
        async with opened(opener) as storage:
            state = await storage.read_state()
            assert (state.vote, state.last_purged) == (vote(9, "n3", committed=True), log_id(8, 30, "n2"))

    # --- L8 -----------------------------------------------------------------------------------------------------------

    async def test_l8_every_single_entry_can_be_read_alone(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 12)))
            await write(storage, LogBatch(purge_upto=log_id(1, 1)))
            for index in range(2, 12):
                assert await storage.read(index, index + 1, 0) == entries(1, index, index + 1)

    async def test_l8_an_entry_larger_than_the_limit_is_given_alone_wherever_it_stands(self) -> None:
        async with opened(self.opener()) as storage:
            written = [entry(1, index, b"s" if index != 5 else b"L" * 10_000) for index in range(10)]
            await write(storage, LogBatch(entries=written))
            assert await storage.read(5, 10, 100) == [written[5]]
            before = await storage.read(0, 10, 100)
            assert before == written[: len(before)]
            assert len(before) <= 5
            assert await read_all(storage, 0, 10, 100) == written

    async def test_l8_the_first_thing_after_opening_may_be_a_read(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 6)))
        async with opened(opener) as storage:
            assert await storage.read(2, 4, MIB) == entries(1, 2, 4)

    async def test_l8_reads_at_once_do_not_disturb_each_other(self) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=[entry(1, index, b"%d" % index) for index in range(40)]))
            found = await asyncio.gather(*(storage.read(index, index + 3, MIB) for index in range(37)))
            assert [part[0].payload for part in found] == [b"%d" % index for index in range(37)]

    async def test_l8_what_was_replaced_is_never_read_again(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 8, b"old")))
            await read_all(storage, 0, 8)  # whatever is cached now must go
            await write(storage, LogBatch(truncate_since=4, entries=entries(2, 4, 8, b"new")))
            assert await read_all(storage, 4, 8) == entries(2, 4, 8, b"new")
        async with opened(opener) as storage:
            assert await read_all(storage, 4, 8) == entries(2, 4, 8, b"new")

    # --- L10 ----------------------------------------------------------------------------------------------------------

    async def test_l10_committed_is_a_value_that_was_written(self) -> None:
        opener = self.opener()
        written = [log_id(1, 1), log_id(1, 3), log_id(1, 4)]
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 5)))
            for committed in written:
                await write(storage, LogBatch(committed=committed))
        async with opened(opener) as storage:
            assert (await storage.read_state()).committed in (None, *written)

    async def test_l10_committed_does_not_outlive_the_entries_it_names(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 9), committed=log_id(1, 2)))
            await write(storage, LogBatch(truncate_since=5, entries=entries(2, 5, 6), committed=log_id(2, 5)))
            await write(storage, LogBatch(truncate_since=4))
        async with opened(opener) as storage:
            assert index_of((await storage.read_state()).committed) <= 3

    # --- Everything together ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(4))
    async def test_l3_random_batches_leave_what_the_memory_storage_has(self, seed: int) -> None:
        random, opener = Random(seed), self.opener()
        model = MemoryLogStorage(MemoryDisk())
        await model.open(context())
        term = 1
        for _ in range(6):
            async with opened(opener) as storage:
                for _ in range(12):
                    term += random.randrange(2)
                    batch = await _random_batch(random, model, term)
                    model.write(batch)
                    await write(storage, batch)
                    await _must_agree(storage, model)
            async with opened(opener) as storage:
                await _must_agree(storage, model)
        await model.close()


async def _random_batch(random: Random, model: MemoryLogStorage, term: int) -> LogBatch:
    """A legal batch of any shape."""
    state = await model.read_state()
    first, last = index_of(state.last_purged) + 1, index_of(state.last_log_id)
    truncate_since = purge_upto = None
    if random.random() < 0.3:
        truncate_since = random.randint(first, last + 2)
        last = min(last, truncate_since - 1)
    if random.random() < 0.2:
        index = random.randint(max(first - 1, 0), last + 3)
        known = await model.read(index, index + 1, 0) if first <= index <= last else []
        purge_upto = known[0].log_id if known else log_id(term, index)
        last = max(last, index)
    count = random.randrange(5)
    new = entries(term, last + 1, last + 1 + count, random.randbytes(random.choice((0, 10, 300))))
    return LogBatch(
        vote=vote(term, random.choice(("n1", "n2")), committed=random.random() < 0.5)
        if random.random() < 0.3
        else None,
        truncate_since=truncate_since,
        purge_upto=purge_upto,
        entries=new,
    )


async def _must_agree(storage: object, model: MemoryLogStorage) -> None:
    from raftkit_core.storage.interface import RaftLogStorage

    assert isinstance(storage, RaftLogStorage)
    state, expected = await storage.read_state(), await model.read_state()
    assert (state.vote, state.last_purged, state.last_log_id) == (
        expected.vote,
        expected.last_purged,
        expected.last_log_id,
    )
    first, stop = index_of(expected.last_purged) + 1, index_of(expected.last_log_id) + 1
    if first < stop:
        assert await read_all(storage, first, stop, 200) == await read_all(model, first, stop)
