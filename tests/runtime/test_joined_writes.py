"""Writes of several callers share a message and an append, and have nothing else to do with each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.config import Config, ReadPolicy
from raftkit_core.errors import BadCommand, Fatal, Overloaded
from raftkit_core.raft import Raft
from raftkit_core.runtime import inbox
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.entry import NORMAL, Envelope, encode_body, encode_envelope, envelope_head
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.messages import AppendEntriesRequest

pytestmark = pytest.mark.virtual_time


def sizes_of_appends(cluster: Any) -> list[int]:
    sent: list[int] = []

    def look(_src: str, dst: str, _kind: str, message: Any) -> None:
        if isinstance(message, AppendEntriesRequest) and message.entries and dst == "n2":
            sent.append(len(message.entries))

    cluster.hub.pre_hook = look
    return sent


async def write_all(leader: Raft, commands: list[Put]) -> list[Any]:
    return await asyncio.gather(*(outcome(leader.client_write(command)) for command in commands))


async def test_writes_of_one_moment_are_one_append_and_each_gets_its_own_result() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        sent = sizes_of_appends(cluster)
        done = await write_all(leader, [Put(f"k{number}", b"v") for number in range(50)])
        assert sent == [50]
        first = done[0].log_id.index
        assert [each.log_id.index for each in done] == list(range(first, first + 50))
        assert [each.data.revision for each in done] == list(range(first, first + 50))


async def test_what_comes_between_writes_keeps_its_place() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        sent = sizes_of_appends(cluster)
        before = [leader.client_write_ff(Put("k", b"1")) for _ in range(2)]
        read = asyncio.ensure_future(leader.read(Get("k"), ReadPolicy.READ_INDEX))
        await asyncio.sleep(0)
        after = leader.client_write_ff(Put("k", b"2"))
        await asyncio.gather(*before, after)
        assert (await read).value in (b"1", b"2")
        assert sent == [2, 1]


async def test_many_small_writes_are_not_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_JOINED", 4)
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        core = leader._core
        futures = [leader.client_write_ff(Put("k", b"v")) for _ in range(9)]
        assert [len(message.payloads) for message in core._inbox] == [4, 4, 1]  # type: ignore[union-attr]
        assert core._joined + len(core._payloads) == 9
        await asyncio.gather(*futures)
        assert core._joined == 0
        assert not core._payloads


async def test_large_writes_of_one_moment_are_no_burst() -> None:
    """They wait in one message; an append takes as many as may be taken at once, in order, and at least one."""
    async with memory_cluster(3, config=Config(max_uncommitted_bytes=10_000, max_entry_bytes=30_000)) as cluster:
        leader = await cluster.leader()
        core = leader._core
        sent = sizes_of_appends(cluster)
        commands = [Put(f"k{at}", b"x" * size) for at, size in enumerate((4000, 4000, 3000, 20_000, 9000, 100))]
        futures = [leader.client_write_ff(command) for command in commands]
        assert [len(message.payloads) for message in core._inbox] == [6]  # type: ignore[union-attr]
        done = await asyncio.gather(*(outcome(future) for future in futures))
        assert core._joined == 0
        first = done[0].log_id.index
        taken = [each.log_id.index - first for each in done if not isinstance(each, Overloaded)]
        assert taken == list(range(sum(sent)))
        assert sent[0] == 2
        assert await leader.read(Get("k1"))


async def test_writes_that_lost_their_futures_end_the_node_rather_than_answer_somebody_else() -> None:
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        core = leader._core
        futures = [leader.client_write_ff(Put("k", b"v")) for _ in range(3)]
        core._payloads.append(core._payloads[0])  # as if the second half of a call had not happened
        futures.append(leader.client_write_ff(Put("k", b"w")))
        done = await asyncio.gather(*futures, return_exceptions=True)
        assert [(type(each), getattr(each, "outcome", None)) for each in done] == [(Fatal, "not_applied")] * 4
        assert isinstance(core.fatal, AssertionError)


async def test_a_bound_holds_for_writes_that_share_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_QUEUED", 20)
    monkeypatch.setattr(inbox, "MAX_JOINED", 4)
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        taken: list[asyncio.Future[Any]] = []
        with pytest.raises(Overloaded):
            taken.extend(leader.client_write_ff(Put("k", b"v")) for _ in range(100))
        assert 16 <= len(taken) <= 24
        await asyncio.gather(*taken)
        await leader.client_write(Put("k", b"v"))


async def test_too_much_at_once_is_refused_one_by_one() -> None:
    async with memory_cluster(3, config=Config(max_uncommitted_bytes=10_000)) as cluster:
        leader = await cluster.leader()
        cluster.hub.cut("n1", "n2")
        cluster.hub.cut("n1", "n3")
        first = leader.client_write_ff(Put("k", b"x" * 4000))
        await asyncio.sleep(0.001)
        alone = [leader.client_write_ff(Put("k", b"x" * 2500)) for _ in range(3)]
        whole = await leader.client_write_many([Put("m", b"x" * 400) for _ in range(3)])
        assert [future.done() for future in (first, *alone)] == [False, False, False, True]
        assert isinstance(alone[2].exception(), Overloaded)
        assert [type(each) for each in whole] == [Overloaded] * 3, "one request is refused as a whole"
        cluster.hub.heal()
        await asyncio.gather(first, *alone[:2])


async def test_a_damaged_entry_among_others_is_refused_alone_on_every_node() -> None:
    """Decoding a batch together must give what decoding each by itself gives: a body cannot reach its neighbours."""
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        core = leader._core
        good, _ = leader._envelopes.of(Put("k", b"v"))
        damaged = [
            encode_envelope(Envelope(1, "kv/1", 0, 0, 0, b"\x93\xa3put\xa1k")),
            encode_envelope(Envelope(1, "kv/1", 0, 0, 0, KvCodec().encode_command(Put("k", b"v")) + b"\xc0")),
            good + b"\x01",
            b"\xc1",
            encode_envelope(Envelope(1, "other/1", 0, 0, 0, b"")),
        ]
        futures = [core.propose(payload, 5.0) for bad in damaged for payload in (good, bad, good)]
        done = await asyncio.gather(*futures, return_exceptions=True)
        assert [isinstance(each, Exception) for each in done] == [False, True, False] * 5
        assert [isinstance(each, BadCommand) for each in done[1::3]] == [True] * 4 + [False]
        last = leader.metrics().value.last_log_index or 0
        await cluster.applied(last)
        assert len({cluster.raft(node_id).machine.digest() for node_id in ("n1", "n2", "n3")}) == 1


async def test_a_leader_applies_what_it_checked_and_decodes_what_it_did_not_propose() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id))
        applied: dict[str, list[Any]] = {leader.id: [], follower.id: []}
        for raft in (leader, follower):
            watch_applied(raft, applied[raft.id])
        commands = [Put(f"k{number}", b"v" * number) for number in range(1, 4)]
        await write_all(leader, commands)
        commands.append(Put("k9", bytearray(b"v")))  # type: ignore[arg-type]
        commands[-1].value.append(1)  # type: ignore[attr-defined]
        written = leader.client_write_ff(commands[-1])
        commands[-1].value.append(2)  # type: ignore[attr-defined]
        done = await written
        async with leader.open_session() as session:
            again = await session.write(Put("k1", b"once"))
        await cluster.applied(again.log_id.index)
        expected = [*commands[:3], Put("k9", b"v\x01"), Put("k1", b"once")]
        assert applied[leader.id] == applied[follower.id] == expected
        assert [ours is theirs for ours, theirs in zip(applied[leader.id], commands, strict=False)] == [
            True,
            True,
            True,
            False,
        ], "what a caller can still change is not what is applied"
        assert not any(ours is theirs for ours, theirs in zip(applied[follower.id], commands, strict=False))
        assert done.data.revision < again.data.revision
        assert leader.machine.digest() == follower.machine.digest()


def watch_applied(raft: Raft, commands: list[Any]) -> None:
    apply = raft.machine.apply

    def noted(batch: Any) -> Any:
        commands.extend(entry.command for entry in batch.entries)
        return apply(batch)

    raft.machine.apply = noted


async def test_a_machine_whose_codec_knows_no_batches_works_as_before() -> None:
    class OneByOne:
        def __init__(self) -> None:
            codec = KvCodec()
            self.encode_command, self.decode_command = codec.encode_command, codec.decode_command
            self.encode_result, self.decode_result = codec.encode_result, codec.decode_result

    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        leader.machine.codec = OneByOne()
        done = await write_all(leader, [Put("a", b"1"), Put("b", b"2")])
        assert [each.data.changed for each in done] == [True, True]


def test_the_short_way_to_an_envelope_gives_the_same_bytes() -> None:
    for machine in ("kv/1", "m" * 40 + "/12"):
        for size in (0, 1, 255, 256, 70_000):
            whole = encode_envelope(Envelope(1, machine, 0, 0, 0, b"x" * size))
            assert envelope_head(machine) + encode_body(b"x" * size) == whole
    assert NORMAL == 1
