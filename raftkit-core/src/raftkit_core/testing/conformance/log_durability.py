"""Cases of log storage that end badly: lost power, killed processes, cancelled callers, refused openers."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import msgspec
import pytest

from raftkit_core.errors import StorageError, StorageLocked
from raftkit_core.storage.interface import LogBatch, LogState, RaftLogStorage
from raftkit_core.testing.conformance.log_case import (
    LogStorageCase,
    Opener,
    context,
    entries,
    identity,
    log_id,
    opened,
    read_all,
    vote,
    write,
)
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import index_of

WRITER = "raftkit_core.testing.conformance.log_writer"
KILL_LIMIT_S = 30.0


class LogDurabilityCases(LogStorageCase):
    """Clauses L1, L2, L6, L7 and L11 where something goes wrong."""

    # --- L1: claims ---------------------------------------------------------------------------------------------------

    async def test_l1_every_opener_is_refused_until_the_holder_has_closed(self) -> None:
        opener = self.opener()
        async with opened(opener):
            for _ in range(3):  # a refused opener must not take the claim along when it is closed
                refused = opener()
                with pytest.raises(StorageLocked):
                    await refused.open(context())
                await refused.close()
        async with opened(opener):
            pass

    async def test_l1_a_refused_opener_can_open_once_the_holder_has_closed(self) -> None:
        opener = self.opener()
        second = opener()
        async with opened(opener) as holder:
            await write(holder, LogBatch(vote=vote(4)))
            with pytest.raises(StorageLocked):
                await second.open(context())
            await second.close()
        async with opened(lambda: opener()) as again:
            assert (await again.read_state()).vote == vote(4)

    async def test_l1_a_store_that_never_got_an_identity_is_still_new(self) -> None:
        opener = self.opener()
        for _ in range(2):
            storage = opener()
            try:
                assert await storage.open(context()) is None
            finally:
                await storage.close()

    # --- L2: power losses ---------------------------------------------------------------------------------------------

    async def _after_power_loss(self, opener: Opener, *batches: LogBatch) -> LogState:
        """Write each batch, lose the power the moment the last one has returned, and look what is there."""
        with self.power() as power:
            storage = opener()
            if await storage.open(context()) is None:
                await storage.save_identity(identity())
            for batch in batches:
                await write(storage, batch)
            power.cut()
            await storage.close()
            power.restore()
        async with opened(opener) as after:
            return await after.read_state()

    async def test_l2_a_vote_survives_a_power_loss(self) -> None:
        state = await self._after_power_loss(self.opener(), LogBatch(vote=vote(1)), LogBatch(vote=vote(2, "n2")))
        assert state.vote == vote(2, "n2")

    async def test_l2_entries_survive_a_power_loss(self) -> None:
        opener = self.opener()
        batches = [LogBatch(entries=entries(1, start, start + 3)) for start in (0, 3, 6)]
        state = await self._after_power_loss(opener, *batches)
        assert state.last_log_id == log_id(1, 8)
        async with opened(opener) as storage:
            assert await read_all(storage, 0, 9) == entries(1, 0, 9)

    async def test_l2_a_truncation_survives_a_power_loss(self) -> None:
        batches = [LogBatch(entries=entries(1, 0, 9)), LogBatch(truncate_since=4)]
        assert (await self._after_power_loss(self.opener(), *batches)).last_log_id == log_id(1, 3)

    async def test_l2_a_purge_survives_a_power_loss(self) -> None:
        batches = [LogBatch(entries=entries(1, 0, 9)), LogBatch(purge_upto=log_id(1, 5))]
        assert (await self._after_power_loss(self.opener(), *batches)).last_purged == log_id(1, 5)

    async def test_l2_an_identity_survives_a_power_loss(self) -> None:
        opener = self.opener()
        await self._after_power_loss(opener)
        again = opener()
        try:
            assert await again.open(context()) == identity()
        finally:
            await again.close()

    async def test_l2_power_losses_one_after_the_other_lose_nothing(self) -> None:
        opener = self.opener()
        for life in range(3):
            state = await self._after_power_loss(
                opener, LogBatch(vote=vote(life + 1), entries=entries(life + 1, 2 * life, 2 * life + 2))
            )
            assert (state.vote, state.last_log_id) == (vote(life + 1), log_id(life + 1, 2 * life + 1))

    # --- L2: kill -9 --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("acknowledged", [1, 4, 25])
    async def test_l2_what_was_acknowledged_survives_kill_9(self, acknowledged: int) -> None:
        """A process of its own writes until it is killed; everything it was told is durable must be there."""
        if self.url is None:
            pytest.skip("only for adapters that give a url")
        opener = self.opener()
        count = _kill_a_writer_after(acknowledged, self.url, str(self.folder))
        async with opened(opener) as storage:  # the claim died with its process
            state = await storage.read_state()
            last = index_of(state.last_log_id)
            assert last >= count - 1
            assert state.vote is not None
            assert state.vote.leader_id.term >= count
            first = index_of(state.last_purged) + 1
            found = await read_all(storage, first, last + 1) if first <= last else []
            assert [item.payload for item in found] == [b"%d" % index for index in range(first, last + 1)]

    # --- L6: cancellation ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("turns", [0, 1, 3])
    async def test_l6_a_cancelled_open_leaves_no_claim_behind(self, turns: int) -> None:
        opener = self.opener()
        storage = opener()
        await _cancelled_after(turns, asyncio.ensure_future(storage.open(context())))
        await storage.close()
        async with opened(opener) as again:
            await write(again, LogBatch(vote=vote(1)))

    @pytest.mark.parametrize("turns", [0, 1, 3])
    async def test_l6_a_cancelled_read_harms_nobody(self, turns: int) -> None:
        async with opened(self.opener()) as storage:
            await write(storage, LogBatch(entries=entries(1, 0, 50)))
            await _cancelled_after(turns, asyncio.ensure_future(storage.read(0, 50, 1 << 20)))
            assert await read_all(storage, 0, 50) == entries(1, 0, 50)
            await write(storage, LogBatch(entries=entries(1, 50, 51)))

    @pytest.mark.parametrize("turns", [0, 1, 3])
    async def test_l6_a_cancelled_save_of_the_identity_leaves_the_old_or_the_new_one(self, turns: int) -> None:
        opener = self.opener()
        old, new = identity(), identity_with_lease(900)
        async with opened(opener) as storage:
            await _cancelled_after(turns, asyncio.ensure_future(storage.save_identity(new)))
        again = opener()
        try:
            assert await again.open(context()) in (old, new)
        finally:
            await again.close()

    # --- L7: a failed write -------------------------------------------------------------------------------------------

    async def test_l7_what_was_durable_before_a_failed_write_still_is(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 5)))
            await self.make_next_write_fail(storage)
            with pytest.raises(StorageError):
                await write(storage, LogBatch(vote=vote(9), truncate_since=0, entries=entries(9, 0, 40, b"y" * 4096)))
        async with opened(opener) as storage:
            assert (await storage.read_state()).vote == vote(1)
            assert await read_all(storage, 0, 5) == entries(1, 0, 5)

    async def test_l7_a_dead_handle_closes_and_gives_its_claim_back(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            await self.make_next_write_fail(storage)
            with pytest.raises(StorageError):
                await write(storage, LogBatch(entries=entries(1, 0, 40, b"y" * 4096)))
            await storage.close()
            async with opened(opener) as again:
                await write(again, LogBatch(vote=vote(3)))

    # --- L11: close ---------------------------------------------------------------------------------------------------

    async def test_l11_closing_twice_at_once_is_closing_once(self) -> None:
        opener = self.opener()
        storage = opener()
        await storage.open(context())
        await asyncio.gather(storage.close(), storage.close())
        async with opened(opener):
            pass

    async def test_l11_a_closed_store_saves_no_identity(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            pass
        with pytest.raises(StorageError):
            await storage.save_identity(identity_with_lease(900))
        again = opener()
        try:
            assert await again.open(context()) == identity()
        finally:
            await again.close()

    async def test_l11_closing_a_stranger_does_not_close_the_holder(self) -> None:
        opener = self.opener()
        async with opened(opener) as storage:
            stranger: RaftLogStorage = opener()
            await stranger.close()
            await write(storage, LogBatch(vote=vote(1)))
            with pytest.raises(StorageLocked):
                await stranger.open(context())
            await stranger.close()


def identity_with_lease(milliseconds: int) -> StoreIdentity:
    return msgspec.structs.replace(identity(), largest_lease_ms=milliseconds)


async def _cancelled_after(turns: int, task: asyncio.Future[object]) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _kill_a_writer_after(acknowledged: int, url: str, folder: str) -> int:
    """Start a writer, kill it once it was told so many batches are durable. Gives how many it was told of."""
    command = [sys.executable, "-m", WRITER, url, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        count = 0
        for line in writer.stdout:
            count = int(line)
            if count >= acknowledged:
                break
        writer.kill()
        rest = writer.stdout.read().split()
        told = writer.stderr.read()
        writer.wait(KILL_LIMIT_S)
    assert count >= acknowledged, f"the writer ended by itself: {told[-2000:]}"
    return int(rest[-1]) if rest and rest[-1].isdigit() else count
