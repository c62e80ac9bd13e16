"""Clauses M1 to M4 of :class:`~raftkit_core.state_machine.interface.RaftStateMachine`, each as named tests.

::

    class TestMyMachine(StateMachineConformance):
        def opener(self):
            return MyMachine

        def commands(self, count):
            return [Add(amount=number % 7) for number in range(count)]

        def refusal(self):
            return [Add(amount=1)], Add(amount=-5)

M5, which is about durable machines, is in ``machine_durability``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from raftkit_core.errors import BadCommand, CommandRejected, StorageCorrupt
from raftkit_core.state_machine.interface import checked_encoder_of
from raftkit_core.testing.conformance.kit import same_bytes
from raftkit_core.testing.conformance.machine_case import (
    Opener,
    apply,
    apply_all,
    batch_of,
    batches_of,
    chunks_of,
    comparable,
    fingerprint,
    meta_at,
    stream,
)
from raftkit_core.testing.conformance.machine_durability import MachineDurabilityCases

__all__ = ["Opener", "StateMachineConformance"]

CHUNK_BYTES_MAX = 1024 * 1024
VOLUME = 10_000


class StateMachineConformance(MachineDurabilityCases):
    """Give ``url`` or :meth:`opener`, and :meth:`commands` and :meth:`refusal` unless the machine is ``kv/1``."""

    # --- M1: deterministic ------------------------------------------------------------------------------------------

    async def test_m1_two_instances_give_equal_results_and_states(self) -> None:
        runs = []
        for _ in range(2):
            async with self.opened(self.opener()) as machine:
                results = await apply_all(machine, batches_of(self.commands(200), 20))
                runs.append((results, await fingerprint(machine)))
        assert runs[0] == runs[1]

    async def test_m1_how_entries_are_cut_into_batches_changes_nothing(self) -> None:
        runs = []
        for size in (1, 7, 120):
            async with self.opened(self.opener()) as machine:
                results = await apply_all(machine, batches_of(self.commands(120), size))
                runs.append((results, await fingerprint(machine)))
        assert runs[0] == runs[1] == runs[2]

    async def test_m1_looking_at_the_state_does_not_change_it(self) -> None:
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as undisturbed:
            for batch in batches_of(self.commands(60), 20):
                await apply(machine, batch)
                assert await fingerprint(machine) == await fingerprint(machine)
                assert same_bytes(b"".join(await chunks_of(machine)), b"".join(await chunks_of(machine)))
            await apply_all(undisturbed, batches_of(self.commands(60), 20))
            assert await fingerprint(machine) == await fingerprint(undisturbed)

    async def test_m1_commands_and_results_survive_the_codec(self) -> None:
        codec = self.opener()().codec
        commands = self.commands(100)
        decoded = [codec.decode_command(codec.encode_command(command)) for command in commands]
        checked = [checked_encoder_of(codec)(command) for command in commands]
        assert [body for body, _ in checked] == [codec.encode_command(command) for command in commands]
        applied_by_a_leader = [
            theirs if ours is None else ours for (_, ours), theirs in zip(checked, decoded, strict=True)
        ]
        assert [codec.encode_command(ours) for ours in applied_by_a_leader] == [body for body, _ in checked]
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as other:
            results = await apply(machine, batch_of(1, applied_by_a_leader))
            assert [comparable(result) for result in results] == await apply_all(other, [batch_of(1, decoded)])
            for result in results:
                if not isinstance(result, CommandRejected):
                    assert codec.decode_result(codec.encode_result(result)) == result

    @pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\xff" * 40, b"\x91" * 3000])
    async def test_m1_what_is_no_command_is_refused_before_it_may_enter_a_log(self, garbage: bytes) -> None:
        with pytest.raises(BadCommand):
            self.opener()().codec.decode_command(garbage)

    # --- M2: one result per entry -----------------------------------------------------------------------------------

    async def test_m2_there_is_one_result_per_entry(self) -> None:
        async with self.opened(self.opener()) as machine:
            start = 1
            for count in (1, 2, 50):
                results = await apply(machine, batch_of(start, self.commands(count)))
                assert isinstance(results, Sequence)
                assert len(results) == count
                start += count

    async def test_m2_a_batch_without_entries_has_no_results_and_changes_nothing(self) -> None:
        async with self.opened(self.opener()) as machine:
            await apply(machine, batch_of(1, self.commands(10)))
            before = await fingerprint(machine)
            assert list(await apply(machine, batch_of(11, []))) == []
            assert await fingerprint(machine) == before

    async def test_m2_a_refusal_is_a_result_and_changes_nothing(self) -> None:
        commands, refused = self.refusal()
        async with self.opened(self.opener()) as machine:
            for result in await apply(machine, batch_of(1, commands)):
                assert not isinstance(result, Exception)
            before = await fingerprint(machine)
            [result] = await apply(machine, batch_of(10, [refused]))
            assert isinstance(result, CommandRejected)
            assert result.message
            assert await fingerprint(machine) == before

    async def test_m2_entries_after_a_refusal_are_applied(self) -> None:
        commands, refused = self.refusal()
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as other:
            results = await apply(machine, batch_of(1, [*commands, refused, *commands]))
            assert isinstance(results[len(commands)], CommandRejected)
            expected = await apply(other, batch_of(1, commands))
            expected = [*expected, *await apply(other, batch_of(len(commands) + 2, commands))]
            assert [comparable(result) for result in results if result is not results[len(commands)]] == [
                comparable(result) for result in expected
            ]
            assert await fingerprint(machine) == await fingerprint(other)

    async def test_m2_ten_thousand_entries_are_applied(self) -> None:
        commands = self.commands(VOLUME)
        async with self.opened(self.opener()) as machine:
            results = await apply_all(machine, batches_of(commands, 1000))
            assert len(results) == VOLUME
            taken = await chunks_of(machine)
            async with self.opened(self.opener()) as other:
                await other.restore_all(meta_at(VOLUME), stream(taken), {})
                assert await fingerprint(other) == await fingerprint(machine)

    # --- M3: snapshots are views ------------------------------------------------------------------------------------

    async def test_m3_no_chunk_is_empty_or_larger_than_a_mebibyte(self) -> None:
        async with self.opened(self.opener()) as machine:
            await apply_all(machine, batches_of(self.commands(3000), 500))
            chunks = await chunks_of(machine)
            assert chunks
            for chunk in chunks:
                assert isinstance(chunk, bytes)
                assert 0 < len(chunk) <= CHUNK_BYTES_MAX

    async def test_m3_a_snapshot_restored_elsewhere_is_the_replayed_state(self) -> None:
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as other:
            await apply_all(machine, batches_of(self.commands(150), 30))
            await other.restore_all(meta_at(150), stream(await chunks_of(machine)), {})
            assert await fingerprint(other) == await fingerprint(machine)

    async def test_m3_a_snapshot_is_of_the_moment_of_the_call_not_of_its_first_chunk(self) -> None:
        async with self.opened(self.opener()) as machine:
            first, then = _halves(self.commands(200))
            await apply(machine, batch_of(1, first))
            expected = b"".join(await chunks_of(machine))
            view = machine.snapshot()
            await apply(machine, batch_of(1 + len(first), then))
            assert b"".join(await chunks_of(machine)) != expected
            assert b"".join([chunk async for chunk in view]) == expected

    async def test_m3_a_half_read_snapshot_is_not_disturbed_by_what_is_applied_meanwhile(self) -> None:
        async with self.opened(self.opener()) as machine:
            first, then = _halves(self.commands(6000))
            await apply(machine, batch_of(1, first))
            expected = b"".join(await chunks_of(machine))
            view = machine.snapshot()
            found = [await anext(view)]
            for batch in batches_of(then, 500, start=1 + len(first)):
                await apply(machine, batch)  # and does not wait for the reader
                found += [chunk for chunk in [await anext(view, b"")] if chunk]
            found += [chunk async for chunk in view]
            assert b"".join(found) == expected

    async def test_m3_two_views_of_two_moments_do_not_mix(self) -> None:
        async with self.opened(self.opener()) as machine:
            first, then = _halves(self.commands(100))
            await apply(machine, batch_of(1, first))
            expected_old = b"".join(await chunks_of(machine))
            old = machine.snapshot()
            await apply(machine, batch_of(1 + len(first), then))
            expected_new = b"".join(await chunks_of(machine))
            new = machine.snapshot()
            await apply(machine, batch_of(101, first))
            assert b"".join([chunk async for chunk in new]) == expected_new
            assert b"".join([chunk async for chunk in old]) == expected_old

    async def test_m3_the_snapshot_of_an_empty_machine_restores_an_empty_machine(self) -> None:
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as other:
            empty = await fingerprint(machine)
            await apply(other, batch_of(1, self.commands(20)))
            await other.restore_all(meta_at(30), stream(await chunks_of(machine)), {})
            assert await fingerprint(other) == empty

    async def test_m3_snapshots_that_nobody_reads_to_the_end_cost_nothing_later(self) -> None:
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as other:
            for number, batch in enumerate(batches_of(self.commands(400), 10)):
                view = machine.snapshot()  # never begun, begun, or given back half read
                if number % 3:
                    await anext(view, None)
                close = getattr(view, "aclose", None)
                if number % 3 == 2 and close is not None:
                    await close()
                del view, close
                await apply(machine, batch)
            await apply_all(other, batches_of(self.commands(400), 10))
            assert same_bytes(b"".join(await chunks_of(machine)), b"".join(await chunks_of(other)))

    # --- M4: restore is all or nothing ------------------------------------------------------------------------------

    async def test_m4_a_restore_leaves_nothing_of_the_state_before(self) -> None:
        source = await self._snapshot_of(self.commands(40))
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as fresh:
            await apply(machine, batch_of(1, self.commands(300)))
            await machine.restore_all(meta_at(400), stream(source), {})
            await fresh.restore_all(meta_at(400), stream(source), {})
            assert await fingerprint(machine) == await fingerprint(fresh)
            assert same_bytes(b"".join(await chunks_of(machine)), b"".join(await chunks_of(fresh)))

    async def test_m4_a_restored_machine_goes_on_like_one_that_applied_everything(self) -> None:
        first, then = _halves(self.commands(200))
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as other:
            await apply(machine, batch_of(1, first))
            await other.restore_all(meta_at(len(first)), stream(await chunks_of(machine)), {})
            rest = batches_of(then, 10, start=1 + len(first))
            assert await apply_all(other, rest) == await apply_all(machine, rest)
            assert await fingerprint(other) == await fingerprint(machine)

    @pytest.mark.parametrize("upto", [0, 1, None], ids=["at-once", "after-one-chunk", "at-the-end"])
    async def test_m4_a_damaged_stream_leaves_the_old_state(self, upto: int | None) -> None:
        source = await self._snapshot_of(self.commands(300))
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as undisturbed:
            for at in (machine, undisturbed):
                await apply(at, batch_of(1, self.commands(50)))
            before = await fingerprint(machine)
            with pytest.raises(StorageCorrupt):
                await machine.restore_all(
                    meta_at(900), stream(source[:upto], StorageCorrupt("the checksum does not fit")), {}
                )
            assert await fingerprint(machine) == before
            more = batch_of(51, self.commands(70))
            assert await apply_all(machine, [more]) == await apply_all(undisturbed, [more])
            assert await fingerprint(machine) == await fingerprint(undisturbed)

    async def test_m4_bytes_that_are_no_state_are_refused_and_leave_the_old_one(self) -> None:
        whole = b"".join(await self._snapshot_of(self.commands(300)))
        async with self.opened(self.opener()) as machine:
            await apply(machine, batch_of(1, self.commands(50)))
            before = await fingerprint(machine)
            for damaged in (whole[:-1], whole + b"\xc1", b"\xc1" * 100):
                with pytest.raises(StorageCorrupt):
                    await machine.restore_all(meta_at(900), stream([damaged]), {})
                assert await fingerprint(machine) == before

    async def test_m4_a_good_restore_works_after_a_failed_one(self) -> None:
        source = await self._snapshot_of(self.commands(100))
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as fresh:
            for _ in range(2):
                with pytest.raises(StorageCorrupt):
                    await machine.restore_all(meta_at(900), stream(source, StorageCorrupt("cut off")), {})
            await machine.restore_all(meta_at(100), stream(source), {})
            await fresh.restore_all(meta_at(100), stream(source), {})
            assert await fingerprint(machine) == await fingerprint(fresh)

    async def test_m4_chunks_may_be_cut_anywhere(self) -> None:
        whole = b"".join(await self._snapshot_of(self.commands(60)))
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as fresh:
            await machine.restore_all(meta_at(60), stream(whole[at : at + 7] for at in range(0, len(whole), 7)), {})
            await fresh.restore_all(meta_at(60), stream([whole]), {})
            assert await fingerprint(machine) == await fingerprint(fresh)

    async def test_m4_a_view_taken_before_a_restore_keeps_the_state_before_it(self) -> None:
        source = await self._snapshot_of(self.commands(30))
        async with self.opened(self.opener()) as machine:
            await apply(machine, batch_of(1, self.commands(6000)))
            expected = b"".join(await chunks_of(machine))
            view = machine.snapshot()
            found = [await anext(view)]
            await machine.restore_all(meta_at(7000), stream(source), {})
            await apply(machine, batch_of(7001, self.commands(100)))
            found += [chunk async for chunk in view]
            assert b"".join(found) == expected

    @pytest.mark.parametrize("turns", [0, 2, 10])
    async def test_m4_a_cancelled_restore_leaves_the_old_state_or_the_new_one(self, turns: int) -> None:
        source = await self._snapshot_of(self.commands(100))
        async with self.opened(self.opener()) as machine, self.opened(self.opener()) as fresh:
            await apply(machine, batch_of(1, self.commands(20)))
            old = await fingerprint(machine)
            await fresh.restore_all(meta_at(100), stream(source), {})
            task = asyncio.ensure_future(machine.restore_all(meta_at(100), _slow(source), {}))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await fingerprint(machine) in (old, await fingerprint(fresh))
            await machine.restore_all(meta_at(100), stream(source), {})
            assert await fingerprint(machine) == await fingerprint(fresh)

    async def test_m4_snapshots_go_between_all_implementations_of_the_machine(self) -> None:
        openers = [self.opener(), *self.relatives()]
        if len(openers) == 1:
            pytest.skip("this machine has no relatives")
        commands = self.commands(500)
        found = []
        for opener in openers:
            async with self.opened(opener) as machine:
                results = await apply_all(machine, batches_of(commands, 50))
                found.append((results, await fingerprint(machine), b"".join(await chunks_of(machine))))
        assert all(each == found[0] for each in found)
        for opener in [self.opener(), *self.relatives()]:
            async with self.opened(opener) as machine:
                await machine.restore_all(meta_at(500), stream([found[0][2]]), {})
                assert await fingerprint(machine) == found[0][1]

    async def _snapshot_of(self, commands: Sequence[Any]) -> list[bytes]:
        async with self.opened(self.opener()) as machine:
            await apply(machine, batch_of(1, commands))
            return await chunks_of(machine)


def _halves(commands: list[Any]) -> tuple[list[Any], list[Any]]:
    return commands[: len(commands) // 2], commands[len(commands) // 2 :]


async def _slow(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        for at in range(0, len(chunk), 256):
            yield chunk[at : at + 256]
            await asyncio.sleep(0)
