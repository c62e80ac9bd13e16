"""Clause M5 of the state machine kit: what a durable machine holds after a restart, a kill, a failed write."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StorageLocked
from raftkit_core.state_machine.interface import AppliedState
from raftkit_core.testing.conformance.machine_case import (
    MadeBatch,
    StateMachineCase,
    apply,
    apply_all,
    batch_of,
    batches_of,
    chunks_of,
    fingerprint,
    log_id,
    membership_at,
    meta_at,
    stream,
)
from raftkit_core.types.kv import KV_MACHINE, Get
from raftkit_core.types.log_id import index_of
from raftkit_core.types.membership import StoredMembership

WRITER = "raftkit_core.testing.conformance.machine_writer"
KILL_LIMIT_S = 30.0


class MachineDurabilityCases(StateMachineCase):
    """Skipped for volatile machines."""

    async def test_m5_a_new_machine_stands_at_nothing(self) -> None:
        _, machine = await self.open_durable()
        assert await machine.applied_state() == AppliedState()
        await machine.close()

    async def test_m5_position_membership_and_records_are_those_of_the_last_batch_also_when_opened_again(self) -> None:
        opener, machine = await self.open_durable()
        membership = membership_at(4, "n1", "n2")
        batch = batch_of(1, self.commands(5), membership=membership, records=[(b"a", b"1"), (b"\x00\xff", b"")])
        await apply(machine, batch)
        expected = AppliedState(log_id(5), membership, {b"a": b"1", b"\x00\xff": b""})
        assert await machine.applied_state() == expected
        await machine.close()
        async with self.opened(opener) as again:
            assert await again.applied_state() == expected

    async def test_m5_a_machine_opened_again_goes_on_like_one_that_never_stopped(self) -> None:
        opener, machine = await self.open_durable()
        await machine.close()
        batches = batches_of(self.commands(120), 20)
        results = []
        for batch in batches:
            async with self.opened(opener) as machine:
                results += await apply_all(machine, [batch])
        async with self.opened(self.opener()) as other, self.opened(opener) as machine:
            assert await apply_all(other, batches) == results
            assert await fingerprint(machine) == await fingerprint(other)
            assert await machine.applied_state() == await other.applied_state()

    async def test_m5_a_batch_without_entries_moves_the_position_and_keeps_its_records(self) -> None:
        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, self.commands(2), records=[(b"time", b"1")]))
        before = await fingerprint(machine)
        await apply(machine, batch_of(9, [], records=[(b"time", b"2")]))
        await machine.close()
        async with self.opened(opener) as again:
            assert await again.applied_state() == AppliedState(log_id(9), StoredMembership(), {b"time": b"2"})
            assert await fingerprint(again) == before

    async def test_m5_a_batch_without_a_membership_keeps_the_last_one(self) -> None:
        opener, machine = await self.open_durable()
        membership = membership_at(1, "n1")
        await apply(machine, batch_of(1, [], membership=membership))
        await apply(machine, batch_of(2, self.commands(3)))
        await machine.close()
        async with self.opened(opener) as again:
            state = await again.applied_state()
            assert (state.applied, state.membership) == (log_id(4), membership)

    async def test_m5_records_are_put_replaced_and_deleted_by_key(self) -> None:
        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, [], records=[(b"a", b"1"), (b"b", b"1"), (b"c", b"1")]))
        await apply(machine, batch_of(2, [], records=[(b"b", b"2"), (b"a", None), (b"absent", None)]))
        await apply(machine, batch_of(3, self.commands(1), records=[(b"d", bytes(range(256)))]))
        await machine.close()
        async with self.opened(opener) as again:
            assert (await again.applied_state()).records == {b"b": b"2", b"c": b"1", b"d": bytes(range(256))}

    async def test_m5_thousands_of_records_are_kept(self) -> None:
        opener, machine = await self.open_durable()
        records = {b"s%d" % number: b"x" * (number % 50) for number in range(3000)}
        await apply(machine, batch_of(1, [], records=list(records.items())))
        await machine.close()
        async with self.opened(opener) as again:
            assert (await again.applied_state()).records == records

    async def test_m5_a_batch_is_sealed_once_with_its_results(self) -> None:
        _, machine = await self.open_durable()
        batch = batch_of(1, self.commands(20))
        results = await apply(machine, batch)
        assert batch.sealed == [list(results)]
        empty = batch_of(21, [])
        await apply(machine, empty)
        assert empty.sealed == [[]]
        await machine.close()

    async def test_m5_a_batch_that_cannot_be_sealed_leaves_nothing(self) -> None:
        class Unsealable(MadeBatch):
            def seal(self, results: object) -> list[tuple[bytes, bytes | None]]:
                raise RuntimeError("no seal")

        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, self.commands(10), records=[(b"a", b"1")]))
        before, state = await fingerprint(machine), await machine.applied_state()
        made = batch_of(11, self.commands(30))
        with pytest.raises(Exception, match="no seal"):
            await apply(machine, Unsealable(made.entries, 40))
        await machine.close()
        async with self.opened(opener) as again:
            assert await again.applied_state() == state
            assert await fingerprint(again) == before

    async def test_m5_a_failed_write_stops_the_machine_and_leaves_nothing_half_done(self) -> None:
        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, self.commands(10), records=[(b"a", b"1")]))
        before, state = await fingerprint(machine), await machine.applied_state()
        await self.make_next_write_fail(machine)
        for _ in range(2):  # once failed, always failed: a disk that lost a write is not asked again
            with pytest.raises(StorageError):
                await apply(machine, batch_of(11, self.commands(2000), records=[(b"a", b"2")]))
        await machine.close()
        async with self.opened(opener) as again:
            assert await again.applied_state() == state
            assert await fingerprint(again) == before

    async def test_m5_a_restore_sets_position_membership_and_records_for_good(self) -> None:
        opener, machine = await self.open_durable()
        async with self.opened(self.opener()) as source:
            await apply(source, batch_of(1, self.commands(100)))
            chunks = await chunks_of(source)
            expected = await fingerprint(source)
        await apply(machine, batch_of(1, self.commands(20), records=[(b"old", b"1"), (b"both", b"1")]))
        membership = membership_at(90, "n1", "n3")
        await machine.restore_all(meta_at(100, membership), stream(chunks), {b"both": b"2", b"new": b"3"})
        state = AppliedState(log_id(100), membership, {b"both": b"2", b"new": b"3"})
        assert await machine.applied_state() == state
        await machine.close()
        async with self.opened(opener) as again:
            assert await again.applied_state() == state
            assert await fingerprint(again) == expected
            await apply(again, batch_of(101, self.commands(5)))
            assert index_of((await again.applied_state()).applied) == 105

    async def test_m5_a_failed_restore_leaves_position_membership_and_records(self) -> None:
        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, self.commands(200), records=[(b"a", b"1")], membership=membership_at(1, "n1")))
        state, before = await machine.applied_state(), await fingerprint(machine)
        chunks = await chunks_of(machine)
        with pytest.raises(StorageCorrupt):
            await machine.restore_all(meta_at(900), stream(chunks, StorageCorrupt("cut off")), {b"a": b"2"})
        assert await machine.applied_state() == state
        await machine.close()
        async with self.opened(opener) as again:
            assert await again.applied_state() == state
            assert await fingerprint(again) == before

    async def test_m5_a_restore_of_an_older_state_is_believed(self) -> None:
        """The toolkit restores what it must; which state is newer is not the machine's to judge."""
        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, self.commands(10)))
        chunks, older = await chunks_of(machine), await fingerprint(machine)
        await apply(machine, batch_of(11, self.commands(30)))
        await machine.restore_all(meta_at(10), stream(chunks), {})
        await machine.close()
        async with self.opened(opener) as again:
            assert index_of((await again.applied_state()).applied) == 10
            assert await fingerprint(again) == older

    async def test_m5_a_second_opener_is_refused_and_told_who_holds_the_state(self) -> None:
        opener, machine = await self.open_durable()
        second = opener()
        with pytest.raises(StorageLocked, match="n1") as refused:
            await second.open(self.context())
        await second.close()
        assert refused.value.hint
        await apply(machine, batch_of(1, self.commands(3)))  # the holder is not disturbed
        await machine.close()
        async with self.opened(opener) as again:
            assert index_of((await again.applied_state()).applied) == 3

    @pytest.mark.parametrize(("node_id", "group"), [("n2", "default"), ("n1", "other")])
    async def test_m5_the_state_of_another_node_or_group_is_refused_untouched(self, node_id: str, group: str) -> None:
        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, self.commands(10)))
        await machine.close()
        stranger = opener()
        with pytest.raises(IdentityError) as refused:
            await stranger.open(self.context(node_id, group))
        await stranger.close()
        assert refused.value.hint
        async with self.opened(opener) as again:
            assert index_of((await again.applied_state()).applied) == 10

    async def test_m5_closing_twice_does_no_harm_and_a_closed_machine_takes_no_batch(self) -> None:
        opener, machine = await self.open_durable()
        await apply(machine, batch_of(1, self.commands(2)))
        await machine.close()
        await machine.close()
        with pytest.raises(StorageError):
            await apply(machine, batch_of(3, self.commands(2)))
        async with self.opened(opener) as again:
            assert index_of((await again.applied_state()).applied) == 2

    @pytest.mark.process
    @pytest.mark.timeout(120)
    @pytest.mark.parametrize("kills", [5])
    async def test_m5_a_killed_process_leaves_data_position_and_records_of_one_batch(self, kills: int) -> None:
        opener, machine = await self.open_durable()
        await machine.close()
        if machine.name != KV_MACHINE or self.url is None:
            pytest.skip("the writer of this case speaks kv/1 and needs a url")
        for kill in range(kills):
            told = _kill_a_writer_after(3 + 7 * kill, self.url, str(self.folder))
            async with self.opened(opener) as again:
                state = await again.applied_state()
                applied = index_of(state.applied)
                assert applied >= told, f"{told} was confirmed, {applied} is there"
                assert state.records == {b"count": b"%d" % applied, b"r%d" % applied: b""}
                assert index_of(state.membership.log_id) == (applied - applied % 3 or -1)
                held = again.query(Get("count"))
                held = held if held is None or hasattr(held, "value") else await held
                assert (held.value, held.revision) == (b"%d" % applied, applied)


def _kill_a_writer_after(acknowledged: int, url: str, folder: str) -> int:
    """Start a writer, kill it once it was told so many batches are durable. Gives the last index it was told of."""
    command = [sys.executable, "-m", WRITER, url, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        last = count = 0
        for line in writer.stdout:
            last, count = int(line), count + 1
            if count >= acknowledged:
                break
        writer.kill()
        # The last line may have been cut short.
        rest = [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        problem = writer.stderr.read()
        writer.wait(KILL_LIMIT_S)
    assert count >= acknowledged, f"the writer ended by itself: {problem[-2000:]}"
    return int(rest[-1]) if rest else last
