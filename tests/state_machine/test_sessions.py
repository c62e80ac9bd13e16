"""Client sessions as replicated state: what is new, what is remembered, and that equal logs give equal bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.errors import (
    BadCommand,
    CommandRejected,
    PreconditionFailed,
    RaftError,
    ResultForgotten,
    SerialReused,
    SessionExpired,
    SessionFull,
    StorageCorrupt,
    TooManySessions,
)
from raftkit_core.state_machine.sessions import MAX_RESULTS, MAX_SESSIONS, Limits, Remembered, Sessions
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

GOLDEN = Path(__file__).parent.parent / "golden" / "system-1-sessions.hex"


def log_id(index: int) -> LogId:
    return LogId(LeaderId(1, "n1"), index)


class Applying:
    """Plays entries on a :class:`Sessions` the way the worker does, batch by batch."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.sessions = Sessions(limits)
        self.index = 0
        self.carried_out: list[Any] = []
        self._pending: dict[int, Any] = {}
        self._told: dict[int, Any] = {}

    def opened(self, ttl_ms: int = 5000) -> int:
        self.index += 1
        refused = self.sessions.open(log_id(self.index), ttl_ms)
        if refused is not None:
            raise refused
        return self.index

    def push(self, session: int, serial: int, floor: int = 0, command: Any = None, result: Any = None) -> int:
        """A write in the batch that is being made; gives its index."""
        self.index += 1
        content = msgspec.msgpack.encode([serial if command is None else command])
        seen = self.sessions.admit(
            log_id(self.index), session, serial, floor, content, msgspec.msgpack.encode, self.index
        )
        if seen is None:
            self.carried_out.append((session, serial))
            self._pending[self.index] = f"{session}/{serial}" if result is None else result
        self._told[self.index] = seen
        return self.index

    def settle(self) -> None:
        self.sessions.settle(self._pending.__getitem__)
        self.sessions.settle(self._pending.__getitem__)

    def told(self, index: int) -> Any:
        """What the entry's client is told, in a form that compares."""
        seen = self._told[index]
        if isinstance(seen, Remembered):
            seen = seen.refusal() or msgspec.msgpack.decode(seen.body or b"")
        return self._pending[index] if seen is None else seen

    def write(self, session: int, serial: int, floor: int = 0, command: Any = None, result: Any = None) -> Any:
        """One write as a batch of its own."""
        index = self.push(session, serial, floor, command, result)
        self.settle()
        return self.told(index)


@pytest.fixture
def applying() -> Applying:
    return Applying()


def test_a_session_s_id_is_the_index_of_its_entry(applying: Applying) -> None:
    applying.index = 41
    assert applying.opened() == 42
    assert 42 in applying.sessions
    assert applying.sessions.ttl_ms(42) == 5000


def test_a_duplicate_gets_the_result_of_the_first_and_is_not_carried_out(applying: Applying) -> None:
    session = applying.opened()
    assert applying.write(session, 1) == f"{session}/1"
    assert applying.write(session, 1) == f"{session}/1"
    assert applying.carried_out == [(session, 1)]


def test_a_duplicate_in_the_same_batch_gets_the_result_too(applying: Applying) -> None:
    session = applying.opened()
    first, second = applying.push(session, 1), applying.push(session, 1)
    applying.settle()
    assert applying.told(first) == applying.told(second) == f"{session}/1"
    assert applying.carried_out == [(session, 1)]


def test_a_refusal_of_the_machine_is_remembered_like_a_result(applying: Applying) -> None:
    session = applying.opened()
    applying.write(session, 1, result=PreconditionFailed("key 'k' has revision 7"))
    again = applying.write(session, 1)
    assert isinstance(again, PreconditionFailed)
    assert (again.message, again.outcome) == ("key 'k' has revision 7", "applied")


def test_serials_may_overtake_each_other(applying: Applying) -> None:
    session = applying.opened()
    for serial in (3, 1, 2, 3, 2, 1):
        assert applying.write(session, serial) == f"{session}/{serial}"
    assert applying.carried_out == [(session, 3), (session, 1), (session, 2)]


def test_an_unknown_session_is_refused_and_never_taken_as_new(applying: Applying) -> None:
    assert isinstance(applying.write(7, 1), SessionExpired)
    session = applying.opened()
    assert applying.sessions.end(session)
    assert not applying.sessions.end(session)
    assert isinstance(applying.write(session, 1), SessionExpired)
    assert applying.carried_out == []
    assert applying.sessions.records() == {}


def test_what_the_client_acknowledged_is_forgotten_and_not_carried_out_again(applying: Applying) -> None:
    session = applying.opened()
    applying.write(session, 1)
    applying.write(session, 2, floor=1)
    late = applying.write(session, 1)
    assert isinstance(late, ResultForgotten)
    assert late.outcome == "unknown"
    assert applying.write(session, 2) == f"{session}/2"
    assert applying.carried_out == [(session, 1), (session, 2)]


def test_a_serial_that_was_skipped_below_the_floor_is_not_carried_out(applying: Applying) -> None:
    session = applying.opened()
    applying.write(session, 5, floor=4)
    assert isinstance(applying.write(session, 3), ResultForgotten)
    assert applying.carried_out == [(session, 5)]


def test_a_floor_that_goes_backwards_forgets_nothing_and_brings_nothing_back(applying: Applying) -> None:
    session = applying.opened()
    for serial in (1, 2, 3):
        applying.write(session, serial)
    applying.write(session, 4, floor=2)
    applying.write(session, 5, floor=0)
    assert isinstance(applying.write(session, 2, floor=1), ResultForgotten)
    assert applying.write(session, 3) == f"{session}/3"
    assert [serial for _, serial in applying.carried_out] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("serial", "floor"), [(0, 0), (-1, 0), (1, 1), (2, 5), (3, -1), (2**53, 0)])
def test_impossible_serials_and_floors_change_nothing(applying: Applying, serial: int, floor: int) -> None:
    session = applying.opened()
    before = applying.sessions.records()
    assert isinstance(applying.write(session, serial, floor), BadCommand)
    assert applying.sessions.records() == before


def test_another_command_under_a_used_serial_is_refused(applying: Applying) -> None:
    session = applying.opened()
    applying.write(session, 1, command="one")
    assert isinstance(applying.write(session, 1, command="another"), SerialReused)
    assert applying.write(session, 1, command="one") == f"{session}/1"


def test_a_session_that_acknowledges_nothing_is_refused_at_its_limit_and_goes_on_after_it(applying: Applying) -> None:
    session = applying.opened()
    for serial in range(1, MAX_RESULTS + 1):
        applying.write(session, serial)
    full = applying.write(session, MAX_RESULTS + 1)
    assert isinstance(full, SessionFull)
    assert (full.outcome, full.retryable) == ("not_applied", True)
    assert applying.write(session, 5) == f"{session}/5", "a duplicate needs no room"
    assert applying.write(session, MAX_RESULTS + 1, floor=1) == f"{session}/{MAX_RESULTS + 1}"
    assert len(applying.carried_out) == MAX_RESULTS + 1


def test_more_sessions_than_are_kept_are_refused() -> None:
    applying = Applying(Limits(sessions=2))
    first = applying.opened()
    applying.opened()
    with pytest.raises(TooManySessions):
        applying.opened()
    applying.sessions.end(first)
    applying.opened()
    assert MAX_SESSIONS == 10_000


def test_all_sessions_together_have_a_limit_of_results() -> None:
    applying = Applying(Limits(total_results=3))
    one, two = applying.opened(), applying.opened()
    for session, serial in ((one, 1), (two, 1), (one, 2)):
        applying.write(session, serial)
    assert isinstance(applying.write(two, 2), SessionFull)
    restored = Sessions.from_records(applying.sessions.records(), applying.sessions.limits)
    assert restored._total_results == applying.sessions._total_results == 3
    assert applying.write(two, 2, floor=1) == f"{two}/2"
    applying.sessions.end(one)
    applying.settle()
    assert applying.sessions._total_results == 1
    assert applying.write(two, 3) == f"{two}/3"


@pytest.mark.parametrize("limits", [Limits(session_bytes=1000), Limits(total_bytes=1000)])
def test_beyond_the_limit_of_bytes_only_that_it_was_applied_is_remembered(limits: Limits) -> None:
    applying = Applying(limits)
    session = applying.opened()
    applying.write(session, 1, result="x" * 600)
    applying.write(session, 2, result="x" * 600)
    applying.write(session, 3, result=CommandRejected("x" * 600))
    assert applying.write(session, 1) == "x" * 600
    for serial in (2, 3):
        again = applying.write(session, serial)
        assert isinstance(again, ResultForgotten)
        assert again.outcome == "applied"
    applying.write(session, 4, floor=1, result="x" * 600)
    assert applying.write(session, 4) == "x" * 600, "there is room again"


def test_a_result_that_cannot_be_encoded_stops_nobody(applying: Applying) -> None:
    session = applying.opened()
    applying.write(session, 1, result=object())
    again = applying.write(session, 1)
    assert isinstance(again, ResultForgotten)
    assert again.outcome == "applied"


def test_changes_add_up_to_the_records() -> None:
    applying, stored = Applying(Limits(session_bytes=900)), dict[bytes, bytes]()

    def store() -> None:
        for key, value in applying.sessions.take_changes():
            if value is None:
                stored.pop(key, None)
            else:
                stored[key] = value
        assert stored == applying.sessions.records()

    one, two = applying.opened(), applying.opened()
    store()
    for serial in range(1, 20):
        applying.push(one, serial, floor=max(0, serial - 3), result="y" * 300)
        applying.push(two, serial)
        applying.push(two, serial)
        if serial % 4 == 0:
            applying.settle()
            store()
    applying.sessions.end(two)
    applying.settle()
    store()
    restored = Applying()
    restored.sessions = Sessions.from_records(stored, Limits(session_bytes=900))
    assert restored.sessions.records() == stored
    assert restored.sessions._total_bytes == applying.sessions._total_bytes
    assert restored.sessions.take_changes() == []


Step = tuple[str, int, int, int]
_STEPS = st.lists(
    st.tuples(st.sampled_from("wwwwwoce"), st.integers(1, 12), st.integers(1, 8), st.integers(0, 7)), max_size=60
)


@settings(max_examples=60)
@given(_STEPS, st.lists(st.integers(1, 60), max_size=12))
def test_the_cut_into_batches_changes_neither_what_is_told_nor_the_bytes(steps: list[Step], cuts: list[int]) -> None:
    """Nodes cut the log differently, also across a restart from records in between."""
    limits = Limits(sessions=3, results=4, total_results=7, session_bytes=400, total_bytes=700)

    def play(cut_at: set[int], restart: bool) -> tuple[list[Any], list[Any], dict[bytes, bytes]]:
        applying = Applying(limits)
        applying.opened()
        indexes = []
        for number, (kind, session, serial, floor) in enumerate(steps):
            if kind == "o":
                with suppress(TooManySessions):
                    applying.opened()
            elif kind in "ce":
                applying.index += 1
                applying.sessions.end(session)
            else:
                result = PreconditionFailed("no") if serial == 3 else "z" * (session * serial * 11)
                indexes.append(applying.push(session, serial, floor, result=result))
            if number in cut_at:
                applying.settle()
                if restart:
                    applying.sessions = Sessions.from_records(applying.sessions.records(), limits)
        applying.settle()
        told = [str(applying.told(index)) for index in indexes]
        return told, applying.carried_out, applying.sessions.records()

    one_by_one = play(set(range(60)), False)
    assert play(set(cuts), False) == one_by_one
    assert play(set(), False) == one_by_one
    assert play(set(cuts), True) == one_by_one
    assert len(set(one_by_one[1])) == len(one_by_one[1]), "nothing is carried out twice"


def _filled() -> SystemMachine:
    system = SystemMachine()
    system.observe(1234)
    sessions = system.sessions
    assert sessions.open(log_id(3), 30_000) is None
    assert sessions.open(log_id(4), 1000) is None
    results: dict[int, Any] = {5: {"revision": 5}, 6: PreconditionFailed("no"), 7: None}
    for index, (session, serial, floor) in {5: (3, 1, 0), 6: (3, 2, 0), 7: (4, 9, 8)}.items():
        assert (
            sessions.admit(log_id(index), session, serial, floor, b"kv/1\0put", msgspec.msgpack.encode, index) is None
        )
    sessions.settle(results.__getitem__)
    return system


def test_the_golden_snapshot_section_of_sessions() -> None:
    assert _filled().encode().hex() == GOLDEN.read_text().strip()
    restored = SystemMachine()
    restored.restore(bytes.fromhex(GOLDEN.read_text().strip()))
    assert restored.records() == _filled().records()
    assert restored.encode() == _filled().encode()


def test_sessions_come_back_from_a_snapshot_and_from_records_with_equal_bytes() -> None:
    system, recovered = _filled(), SystemMachine()
    recovered.restore_records({key: value for key, value in system.seal() if value is not None})
    assert recovered.encode() == system.encode()
    assert list(system.seal()) == []


@pytest.mark.parametrize(
    "records",
    [
        {b"session/x": b"\x92\x01\x00"},
        {b"session/\0\0\0\0\0\0\0\x01": b"\xc1"},
        {b"result/" + bytes(16): b"\x94"},
        {b"lock/1": b""},
    ],
)
def test_damaged_and_unknown_records_are_found(records: dict[bytes, bytes]) -> None:
    system = _filled()
    before = system.encode()
    with pytest.raises(StorageCorrupt):
        system.restore_records(records)
    assert system.encode() == before


def test_every_refusal_says_what_it_means_for_the_write() -> None:
    told: dict[type[RaftError], str] = {
        SessionExpired: "not_applied",
        SessionFull: "not_applied",
        SerialReused: "not_applied",
        TooManySessions: "not_applied",
        ResultForgotten: "unknown",
    }
    assert {kind: kind("").outcome for kind in told} == told
