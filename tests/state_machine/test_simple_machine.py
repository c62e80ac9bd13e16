"""``SimpleStateMachine`` makes a replicated machine of a plain ``apply(command)``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from raftkit_core.errors import BadCommand, CommandRejected, StorageCorrupt
from raftkit_core.state_machine.interface import AppliedEntry, MsgspecCodec, RaftStateMachine
from raftkit_core.state_machine.simple import SimpleStateMachine
from raftkit_core.state_machine.system import SYSTEM_MACHINE, TIME_RECORD, SystemMachine
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId

META = SnapshotMeta(LogId(LeaderId(1, "n1"), 9), StoredMembership(), "aa")


class Add(msgspec.Struct, frozen=True, tag="add"):
    amount: int


class Reset(msgspec.Struct, frozen=True, tag="reset"):
    pass


class Counter(SimpleStateMachine):
    name = "counter/1"
    command_type = Add | Reset
    result_type = int
    state_type = int

    def __init__(self) -> None:
        self.value = 0

    def apply(self, command: Add | Reset) -> int:
        if isinstance(command, Reset):
            self.value = 0
        elif command.amount < 0:
            raise CommandRejected(f"cannot add {command.amount}")
        else:
            self.value += command.amount
        return self.value

    def get_state(self) -> int:
        return self.value

    def set_state(self, state: int) -> None:
        self.value = state


class Journal(SimpleStateMachine):
    def __init__(self) -> None:
        self.lines: list[tuple[int, int, Any]] = []

    def apply(self, command: Any) -> None:
        self.lines.append((self.log_index, self.time_ms, command))

    def get_state(self) -> list[Any]:
        return list(self.lines)

    def set_state(self, state: list[Any]) -> None:
        self.lines = [tuple(line) for line in state]


class LoudCounter(Counter):
    def apply(self, command: Add | Reset) -> int:
        return super().apply(command) * 100


class _Batch:
    membership = None
    last_log_id = LogId(LeaderId(1, "n1"), 9)

    def __init__(self, *commands: Any) -> None:
        self.entries = [
            AppliedEntry(LogId(LeaderId(1, "n1"), index), 1000 * index, command)
            for index, command in enumerate(commands, start=3)
        ]

    def seal(self, results: Sequence[Any]) -> Sequence[tuple[bytes, bytes | None]]:
        return ()


async def _stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_a_batch_is_applied_command_by_command() -> None:
    machine: RaftStateMachine = Counter()
    assert machine.apply(_Batch(Add(2), Add(3), Reset(), Add(1))) == [2, 5, 0, 1]


def test_a_command_can_be_applied_by_hand() -> None:
    counter = Counter()
    assert counter.apply(Add(2)) == 2
    with pytest.raises(CommandRejected):
        counter.apply(Add(-1))


def test_a_raised_refusal_becomes_a_result_and_the_batch_goes_on() -> None:
    results: Any = Counter().apply(_Batch(Add(2), Add(-1), Add(1)))  # type: ignore[arg-type]
    assert (results[0], results[2]) == (2, 3)
    assert isinstance(results[1], CommandRejected)


def test_any_other_exception_is_the_caller_s() -> None:
    with pytest.raises(AttributeError):
        Counter().apply(_Batch("no command"))  # type: ignore[arg-type]


def test_a_subclass_may_call_its_parent_s_apply() -> None:
    assert LoudCounter().apply(_Batch(Add(2), Add(1))) == [200, 300]  # type: ignore[arg-type, comparison-overlap]


def test_index_and_cluster_time_are_there_while_a_command_is_applied() -> None:
    journal = Journal()
    journal.apply(_Batch("a", {"b": 1}))
    assert journal.lines == [(3, 3000, "a"), (4, 4000, {"b": 1})]
    assert journal.name == "Journal/1"


def test_the_codec_knows_the_command_types() -> None:
    codec = Counter().codec
    assert codec.decode_command(codec.encode_command(Add(4))) == Add(4)
    with pytest.raises(BadCommand):
        codec.encode_command("nonsense")
    with pytest.raises(BadCommand):
        codec.decode_command(b"\x93")
    assert codec.decode_result(codec.encode_result(7)) == 7


def test_a_command_with_what_cannot_be_hashed_in_a_set_is_a_bad_one() -> None:
    codec = MsgspecCodec(set[Any], int)
    assert codec.decode_command(codec.encode_command({1, "a"})) == {1, "a"}
    with pytest.raises(BadCommand):
        codec.decode_command(b"\x91\x80")


async def test_the_state_travels_in_snapshots_of_bounded_chunks() -> None:
    journal = Journal()
    journal.apply(_Batch(*(["x" * 500_000] * 5)))
    snapshot = journal.snapshot()
    digest = journal.digest()
    journal.apply(_Batch("later"))
    chunks = [chunk async for chunk in snapshot]
    assert max(map(len, chunks)) <= 1024 * 1024

    other = Journal()
    await other.restore(META, _stream(*chunks))
    assert len(other.lines) == 5
    assert other.digest() == digest != journal.digest()


class Waiting(SimpleStateMachine):
    """Who came first is served first; a number leaves the queue, text enters it."""

    command_type = str | int
    result_type = str | None
    state_type = dict[str, int]

    def __init__(self) -> None:
        self.queue: dict[str, int] = {}

    def apply(self, command: str | int) -> str | None:
        if isinstance(command, str):
            self.queue[command] = self.log_index
            return None
        first = next(iter(self.queue))
        del self.queue[first]
        return first

    def get_state(self) -> dict[str, int]:
        return self.queue

    def set_state(self, state: dict[str, int]) -> None:
        self.queue = state


async def test_a_restored_dict_has_the_order_it_had() -> None:
    """It came back sorted, and a machine that goes through it took another key than the other nodes."""
    machine, restored = Waiting(), Waiting()
    machine.apply(_Batch("zoe", "ann", "bob"))
    await restored.restore(META, _stream(*[chunk async for chunk in machine.snapshot()]))
    assert restored.digest() == machine.digest()
    assert [each.apply(_Batch(1, 1, 1)) for each in (machine, restored)] == [["zoe", "ann", "bob"]] * 2


class Tags(Waiting):
    state_type = set[str]  # type: ignore[assignment]

    def get_state(self) -> Any:
        return set(self.queue)


def test_the_digest_of_a_set_does_not_depend_on_how_it_was_filled() -> None:
    names = [f"name-{number}" for number in range(50)]
    one, other = Tags(), Tags()
    one.apply(_Batch(*names))
    other.apply(_Batch(*reversed(names)))
    assert one.digest() == other.digest()


async def test_a_state_that_cannot_be_read_leaves_the_machine_as_it_was() -> None:
    counter = Counter()
    counter.apply(Add(5))
    for wrong in (b"", b"\xa1x", b"\x01\x02"):
        with pytest.raises(StorageCorrupt, match="counter/1"):
            await counter.restore(META, _stream(wrong))
    assert counter.value == 5


def test_a_machine_without_apply_cannot_be_made() -> None:
    class Half(SimpleStateMachine):
        def get_state(self) -> None: ...

        def set_state(self, state: None) -> None: ...

    with pytest.raises(TypeError, match="apply"):
        Half()  # type: ignore[abstract]


# --- The system machine -----------------------------------------------------------------------------------------------


def test_cluster_time_never_falls() -> None:
    system = SystemMachine()
    for time_ms in (5, 9, 7):
        system.observe(time_ms)
    assert system.time_ms == 9


def test_the_system_machine_comes_back_from_a_snapshot_and_from_records() -> None:
    system, restored, recovered = SystemMachine(), SystemMachine(), SystemMachine()
    system.observe(77)
    records = {key: value for key, value in system.seal() if value is not None}
    assert list(records) == [TIME_RECORD]
    assert list(system.seal()) == []

    restored.restore(system.encode())
    recovered.restore_records(records)
    assert restored.time_ms == recovered.time_ms == 77
    assert restored.encode() == recovered.encode() == system.encode()
    assert list(restored.seal()) == list(recovered.seal()) == []
    restored.restore(b"")
    recovered.restore_records({})
    assert restored.time_ms == recovered.time_ms == 0


@pytest.mark.parametrize("damage", [b"\x01", b"\x80", b"\xc1", b"\x81\xa7time_ms\xa1x"])
def test_a_damaged_system_section_is_found(damage: bytes) -> None:
    system = SystemMachine()
    system.observe(3)
    with pytest.raises(StorageCorrupt):
        system.restore(damage)
    assert system.time_ms == 3


def test_an_unknown_system_command_is_refused_as_a_result() -> None:
    result = SystemMachine().apply(LogId(LeaderId(1, "n1"), 4), 0, b"?")
    assert isinstance(result, CommandRejected)
    assert SYSTEM_MACHINE in result.message
