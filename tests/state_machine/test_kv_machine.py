"""``kv/1``: commands, refusals, queries, snapshots and the digest."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.errors import BadCommand, CommandRejected, PreconditionFailed, StorageCorrupt
from raftkit_core.state_machine.interface import AppliedEntries, AppliedEntry, decoder_of
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.state_machine.kv_stream import RowDecoder, encode_rows
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.kv import CompareAndSet, Delete, Get, KeyValue, ListKeys, Put, WriteResult
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId

GOLDEN = Path(__file__).parent.parent / "golden" / "kv-1-stream.hex"
MIB = 1024 * 1024


class _Batch:
    membership = None

    def __init__(self, first_index: int, commands: Sequence[Any]) -> None:
        self.entries = [
            AppliedEntry(_log_id(first_index + offset), 0, command) for offset, command in enumerate(commands)
        ]
        self.last_log_id = _log_id(first_index + len(commands))

    def seal(self, results: Sequence[Any]) -> Sequence[tuple[bytes, bytes | None]]:
        return ()


def _log_id(index: int) -> LogId:
    return LogId(LeaderId(1, "n1"), index)


def _meta(index: int) -> SnapshotMeta:
    return SnapshotMeta(_log_id(index), StoredMembership(), "aa")


def _machine(*commands: Any) -> KvStateMachine:
    """A machine after ``commands`` at log indexes 1, 2, 3…"""
    machine = KvStateMachine()
    machine.apply(_Batch(1, commands))
    return machine


def _apply(machine: KvStateMachine, index: int, command: Any) -> Any:
    [result] = machine.apply(_Batch(index, [command]))
    return result


async def _snapshot(machine: KvStateMachine) -> list[bytes]:
    return [chunk async for chunk in machine.snapshot()]


async def _stream(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


# --- Commands ---------------------------------------------------------------------------------------------------------


def test_a_put_sets_the_value_at_the_log_index_as_revision() -> None:
    machine = _machine()
    assert _apply(machine, 5, Put("k", b"v")) == WriteResult(revision=5, previous_revision=0)
    assert _apply(machine, 9, Put("k", b"w")) == WriteResult(revision=9, previous_revision=5)
    assert machine.query(Get("k")) == KeyValue(key="k", value=b"w", revision=9)


def test_a_delete_removes_the_key_and_an_absent_one_changes_nothing() -> None:
    machine = _machine(Put("k", b"v"))
    assert _apply(machine, 2, Delete("k")) == WriteResult(revision=2, previous_revision=1)
    assert _apply(machine, 3, Delete("k")) == WriteResult(revision=3, changed=False)
    assert machine.query(Get("k")) is None
    assert len(machine) == 0


@pytest.mark.parametrize(
    ("command", "accepted"),
    [
        (Put("old", b"new", if_revision=1), True),
        (Put("old", b"new", if_revision=2), False),
        (Put("old", b"new", if_revision=0), False),
        (Put("none", b"new", if_revision=0), True),
        (Put("none", b"new", if_revision=1), False),
        (Delete("old", if_revision=1), True),
        (Delete("old", if_revision=0), False),
        (Delete("none", if_revision=0), True),
        (Delete("none", if_revision=1), False),
        (CompareAndSet("old", b"v", b"new"), True),
        (CompareAndSet("old", b"other", b"new"), False),
        (CompareAndSet("old", None, b"new"), False),
        (CompareAndSet("none", None, b"new"), True),
        (CompareAndSet("none", b"", b"new"), False),
    ],
)
def test_a_precondition_decides_and_a_refusal_is_a_result_that_changes_nothing(command: Any, accepted: bool) -> None:
    machine = _machine(Put("old", b"v"))
    before = machine.digest()
    result = _apply(machine, 2, command)
    if accepted:
        assert isinstance(result, WriteResult)
    else:
        assert isinstance(result, PreconditionFailed)
        assert command.key in result.message
        assert machine.digest() == before


def test_equal_batches_give_equal_results_and_digests() -> None:
    commands = [Put("a", b"1"), Delete("b"), CompareAndSet("a", b"2", b"3"), Put("ключ", b"", if_revision=7)]
    runs = []
    for _ in range(2):
        machine = KvStateMachine()
        results = machine.apply(_Batch(1, commands))
        runs.append(([getattr(result, "message", result) for result in results], machine.digest()))
    assert runs[0] == runs[1]


# --- Codec ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [Put("k", b"v"), Put("k", b"", 3), Delete("ключ"), CompareAndSet("k", None, b"v"), Put("k" * 4096, b"")]
)
def test_commands_travel_as_bytes(command: Any) -> None:
    codec = KvStateMachine().codec
    assert codec.decode_command(codec.encode_command(command)) == command


def test_results_travel_as_bytes() -> None:
    codec = KvStateMachine().codec
    result = WriteResult(revision=4, previous_revision=2)
    assert codec.decode_result(codec.encode_result(result)) == result


@pytest.mark.parametrize(
    "command",
    [
        Put("", b"v"),
        Put("k" * 4097, b"v"),
        Put("й" * 2049, b"v"),
        Delete(""),
        CompareAndSet("", None, b""),
        Put("k", b"v", if_revision=-1),
        Put("\ud800", b"v"),
        Put("k", "text"),  # type: ignore[arg-type]
        Get("k"),
        "put",
        None,
    ],
)
def test_a_wrong_command_is_refused_before_it_enters_the_log(command: Any) -> None:
    codec = KvStateMachine().codec
    with pytest.raises(BadCommand):
        codec.encode_command(command)
    if isinstance(command, Put | Delete | CompareAndSet) and command.key != "\ud800":
        with pytest.raises(BadCommand):
            codec.decode_command(msgspec.msgpack.encode(command))


@given(st.binary(max_size=60))
def test_noise_is_a_bad_command(body: bytes) -> None:
    try:
        command = KvStateMachine().codec.decode_command(body)
    except BadCommand:
        return
    assert isinstance(command, Put | Delete | CompareAndSet)


# --- Queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        (ListKeys(), ["a", "b/1", "b/2", "b/3", "c", "й", "😀"]),
        (ListKeys("b/"), ["b/1", "b/2", "b/3"]),
        (ListKeys("b/", limit=2), ["b/1", "b/2"]),
        (ListKeys("b/", after="b/2"), ["b/3"]),
        (ListKeys("b/", after="a"), ["b/1", "b/2", "b/3"]),
        (ListKeys("b/", after="c"), []),
        (ListKeys(after="c"), ["й", "😀"]),
        (ListKeys("x"), []),
        (ListKeys("b/", max_bytes=0), ["b/1"]),
        (ListKeys("b/", max_bytes=6), ["b/1"]),
        (ListKeys("b/", max_bytes=7), ["b/1", "b/2"]),
        (ListKeys("b/", max_bytes=7, limit=1), ["b/1"]),
        (ListKeys("b/", max_bytes=100), ["b/1", "b/2", "b/3"]),
    ],
)
def test_a_list_gives_the_keys_of_a_prefix_in_order(query: ListKeys, keys: list[str]) -> None:
    machine = _machine(*(Put(key, key.encode()) for key in ["c", "😀", "b/2", "a", "b/1", "gone", "й", "b/3"]))
    _apply(machine, 20, Delete("gone"))
    found = machine.query(query)
    assert [item.key for item in found] == keys
    assert all(item.value == item.key.encode() for item in found)


def test_a_wrong_query_is_rejected() -> None:
    for query in (ListKeys(limit=0), Put("k", b"v"), "k"):
        with pytest.raises(CommandRejected):
            _machine().query(query)


# --- Snapshots --------------------------------------------------------------------------------------------------------


async def test_a_snapshot_restores_the_same_state() -> None:
    machine = _machine(*(Put(f"k{number % 700}", bytes([number % 256]) * 3000) for number in range(1000)))
    chunks = await _snapshot(machine)
    assert len(chunks) > 1
    assert max(map(len, chunks)) <= MIB

    other = _machine(Put("gone", b"v"))
    await other.restore(_meta(1000), _stream(chunks))
    assert other.digest() == machine.digest()
    assert other.query(ListKeys()) == machine.query(ListKeys())
    assert other.query(Get("gone")) is None
    assert _apply(other, 1001, Put("k1", b"")) == _apply(machine, 1001, Put("k1", b""))


async def test_the_cut_of_the_stream_does_not_matter_and_values_may_be_larger_than_a_chunk() -> None:
    machine = _machine(Put("a", b"x" * (3 * MIB)), Put("b", b"y"))
    data = b"".join(await _snapshot(machine))
    for size in (MIB // 2, len(data)):
        other = KvStateMachine()
        await other.restore(_meta(2), _stream([data[at : at + size] for at in range(0, len(data), size)]))
        assert other.digest() == machine.digest()


async def test_an_empty_machine_has_an_empty_stream() -> None:
    assert await _snapshot(_machine()) == []
    machine = _machine(Put("k", b"v"))
    await machine.restore(_meta(1), _stream([]))
    assert (len(machine), machine.digest()) == (0, hashlib.sha256().hexdigest())


async def test_a_snapshot_is_the_view_of_the_moment_it_was_asked_for() -> None:
    machine = _machine(Put("a", b"old"), Put("b", b"old"))
    digest = machine.digest()
    chunks = machine.snapshot()
    for index, command in enumerate([Put("a", b"new"), Delete("b"), Put("c", b"new")], start=3):
        _apply(machine, index, command)
    taken = hashlib.sha256(b"".join([chunk async for chunk in chunks])).hexdigest()
    assert taken == digest != machine.digest()


async def test_a_damaged_stream_is_refused_and_the_state_stays() -> None:
    [good] = await _snapshot(_machine(Put("a", b"1"), Put("b", b"2")))
    half = len(good) // 2
    machine = _machine(Put("mine", b"v"))
    before = machine.digest()
    for wrong in (
        good[:-1],
        good[:3],
        good[half:] + good[:half],
        good[:half] * 2,
        good[:half] + b"\xff" * 40,
        good[:half].replace(b"a", b"\xff"),
        good + b"x",
        b"\0" * 16,
    ):
        with pytest.raises(StorageCorrupt):
            await machine.restore(_meta(2), _stream([wrong]))
        assert machine.digest() == before
    with pytest.raises(StorageCorrupt, match="revision 2"):
        await machine.restore(_meta(1), _stream([good]))


async def test_the_stream_and_the_digest_are_the_golden_file_s() -> None:
    golden = bytes.fromhex("".join(GOLDEN.read_text().split()))
    machine = _machine(Put("b", b"two"), Put("ключ", b"\x00\xff"), Put("a", b""), Put("b", b"four"))
    assert b"".join(await _snapshot(machine)).hex(" ", 4) == golden.hex(" ", 4)
    assert machine.digest() == hashlib.sha256(golden).hexdigest()


@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.tuples(st.binary(max_size=50), st.integers(1, 2**60))),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_rows_survive_any_cut(cells: dict[str, tuple[bytes, int]], size: int) -> None:
    rows = [(key, *cells[key]) for key in sorted(cells)]
    data = b"".join(encode_rows(rows))
    decoder = RowDecoder()
    found = [row for at in range(0, len(data), size) for row in decoder.feed(data[at : at + size])]
    decoder.finish()
    assert found == rows


SOME_COMMANDS = st.builds(
    Put, st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), st.binary(max_size=9), st.none() | st.just(3)
)


@settings(max_examples=40)
@given(st.integers(0, 2**32))
async def test_snapshots_are_views_of_their_moments_whatever_happens_until_they_are_written(seed: int) -> None:
    """Commands are applied, other snapshots asked for, read on, given up, and the machine is restored meanwhile."""
    random = Random(seed)
    machine, index = KvStateMachine(), 0
    under_way: list[tuple[Any, bytes, list[bytes]]] = []

    def now() -> bytes:
        rows = [(key, value, revision) for key, (value, revision) in sorted(machine._cells.items())]
        return b"".join(encode_rows(iter(rows)))

    for _ in range(random.randrange(5, 60)):
        match random.randrange(8):
            case 0 | 1:
                under_way.append((machine.snapshot(), now(), []))
            case 2 if under_way:
                under_way.pop(random.randrange(len(under_way)))
            case 3 if under_way:
                stream, expected, chunks = random.choice(under_way)
                if (chunk := await anext(stream, None)) is not None:
                    chunks.append(chunk)
                    assert expected.startswith(b"".join(chunks))
            case 4 if random.random() < 0.3:
                chunks = [chunk async for chunk in machine.snapshot()]
                await machine.restore(_meta(index), _stream(chunks))
            case _:
                count = random.choice([1, 2, 9])
                keys = random.choices("abcdefghij", k=count)
                value = bytes(random.choice([1, 300_000]))
                commands = [random.choice([Put(key, value), Put(key, b"x"), Delete(key)]) for key in keys]
                machine.apply(_Batch(index + 1, commands))
                index += count
    for stream, expected, chunks in under_way:
        assert b"".join([*chunks, *[chunk async for chunk in stream]]) == expected
    under_way, stream = [], None
    gc.collect()
    for _ in range(5):
        await asyncio.sleep(0)  # the loop ends those that were given up on the way
    assert machine._views == [], "nothing is kept for snapshots that are written or given up"


@given(
    st.one_of(
        st.builds(
            Put,
            st.text(min_size=0, max_size=9) | st.text("é", min_size=1020, max_size=4100),
            st.binary(max_size=9) | st.binary(max_size=9).map(bytearray) | st.binary(max_size=9).map(memoryview),
            st.none() | st.integers(-1, 3),
        ),
        st.builds(Delete, st.text(max_size=9), st.none() | st.integers(-1, 3)),
        st.builds(CompareAndSet, st.text(max_size=9), st.none() | st.binary(max_size=9), st.binary(max_size=9)),
    )
)
def test_what_a_command_is_said_to_decode_to_is_what_it_decodes_to(command: Any) -> None:
    """A leader applies the one, everybody else the other."""
    codec = KvCodec()
    try:
        body, decoded = codec.encode_checked(command)
    except BadCommand:
        with pytest.raises(BadCommand):
            codec.encode_command(command)
        return
    found = codec.decode_command(body)
    assert body == codec.encode_command(command)
    assert (type(decoded), decoded) == (type(found), found)
    for name in found.__struct_fields__:
        assert type(getattr(decoded, name)) is type(getattr(found, name))


@given(st.lists(st.one_of(SOME_COMMANDS, st.binary(max_size=30)), max_size=8))
def test_a_batch_decodes_as_its_commands_do_one_by_one(items: list[Any]) -> None:
    codec = KvStateMachine().codec
    bodies = [item if isinstance(item, bytes) else codec.encode_command(item) for item in items]
    try:
        one_by_one = [codec.decode_command(body) for body in bodies]
    except BadCommand:
        with pytest.raises(BadCommand):
            decoder_of(codec)(bodies)
    else:
        assert decoder_of(codec)(bodies) == one_by_one


def test_entries_made_when_asked_for_are_those_of_the_log() -> None:
    log = [Entry(_log_id(index), 10 * index, NORMAL, b"") for index in range(5, 9)]
    made = [AppliedEntry(entry.log_id, entry.time_ms, name) for entry, name in zip(log, "abcd", strict=True)]
    entries = AppliedEntries(log, list("abcd"))
    assert list(entries) == made
    assert [entries[0], entries[-1]] == [made[0], made[-1]]
    assert entries[1:3] == made[1:3]
    assert (len(entries), entries.first_index, made[2] in entries) == (4, 5, True)


COMMANDS_ON_FEW_KEYS = st.one_of(
    st.builds(Put, st.sampled_from("abc"), st.binary(max_size=3), st.none() | st.integers(0, 9)),
    st.builds(Delete, st.sampled_from("abc"), st.none() | st.integers(0, 9)),
)


@given(st.lists(st.lists(COMMANDS_ON_FEW_KEYS, min_size=1, max_size=9), max_size=4))
def test_a_batch_gives_what_its_commands_give_one_by_one(batches: list[list[Any]]) -> None:
    together, alone = KvStateMachine(), KvStateMachine()
    index = 1
    for machine in (together, alone):
        machine.apply(_Batch(index, [Put("a", b"0"), Put("b", b"0")]))
    for commands in batches:
        index += 10
        log = [Entry(_log_id(index + at), 0, NORMAL, b"") for at in range(len(commands))]
        batch = _Batch(index, commands)
        batch.entries = AppliedEntries(log, commands)  # type: ignore[assignment]
        results = together.apply(batch)
        one_by_one = [_apply(alone, index + at, command) for at, command in enumerate(commands)]
        # A refusal is an error, equal to no other one: compared by its words.
        assert list(map(repr, results)) == list(map(repr, one_by_one))
        assert [repr(results[at]) for at in range(len(commands))] == list(map(repr, one_by_one))
        assert len(results) == len(commands)
        assert list(map(repr, results[1:])) == list(map(repr, one_by_one[1:]))
    assert together.digest() == alone.digest()
