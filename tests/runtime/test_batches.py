"""What committed entries are for the machine: decoded together or one by one, and what never reaches it."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_core.errors import BadCommand, CommandRejected, RaftError, SessionExpired
from raftkit_core.runtime.batches import Batch, BatchMaker, Duplicate
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.system import SYSTEM_MACHINE, SystemMachine
from raftkit_core.state_machine.system_commands import CloseSession, OpenSession, encode_system_command
from raftkit_core.testing.builders import blank, entry, log_id, membership, membership_entry
from raftkit_core.types.entry import ENVELOPE_VERSION, Entry, Envelope, encode_envelope
from raftkit_core.types.kv import KV_MACHINE, Put, WriteResult

CODEC = KvStateMachine().codec
A = CODEC.encode_command(Put("a", b"1"))


class Machines:
    """A kv machine and the system machine. Entry 0, which makes a cluster, is behind them."""

    def __init__(self) -> None:
        self.kv = KvStateMachine()
        self.system = SystemMachine()
        self.maker = BatchMaker(self.kv, self.system)
        self.applied = 0

    def take(self, *payloads: bytes | Entry) -> tuple[Batch, dict[int, Any]]:
        """One batch of normal entries; gives it with what each of them is told, by index."""
        first = self.applied + 1
        log = [
            given if isinstance(given, Entry) else entry(log_id(1, "n1", index), given, time_ms=10 * index)
            for index, given in enumerate(payloads, first)
        ]
        batch = self.maker.prepare(log, self.applied)
        results = self.kv.apply(batch)
        if not batch.is_alike:
            batch.settle(results)
        self.applied = log[-1].index
        told = dict(zip((each.log_id.index for each in batch.entries), results, strict=True)) | dict(batch.refused)
        return batch, told

    def opened(self) -> int:
        _, told = self.take(in_envelope(encode_system_command(OpenSession(5000)), SYSTEM_MACHINE))
        return int(told[self.applied])


def in_envelope(body: bytes, machine: str = KV_MACHINE, session: int = 0, serial: int = 0) -> bytes:
    return encode_envelope(Envelope(ENVELOPE_VERSION, machine, session, serial, 0, body))


@pytest.fixture
def machines() -> Machines:
    return Machines()


def test_commands_for_the_machine_are_decoded_together(machines: Machines) -> None:
    batch, told = machines.take(in_envelope(A), in_envelope(A))
    assert (batch.is_alike, batch.commands(), len(batch.entries)) == (True, batch.log, 2)
    assert told == {1: WriteResult(1, 0), 2: WriteResult(2, 1)}
    assert machines.system.time_ms == 20


@pytest.mark.parametrize("damage", [b"\xc1", in_envelope(b"\xc1"), in_envelope(b"\x91" * 5000)])
def test_an_entry_that_cannot_be_read_is_refused_and_its_neighbours_are_applied(
    machines: Machines, damage: bytes
) -> None:
    batch, told = machines.take(in_envelope(A), damage, in_envelope(A))
    assert isinstance(told.pop(2), BadCommand)
    assert told == {1: WriteResult(1, 0), 3: WriteResult(3, 1)}
    assert [each.index for each in batch.commands()] == [1, 3]


def test_an_entry_for_a_machine_that_does_not_run_here_is_refused(machines: Machines) -> None:
    session = machines.opened()
    _, told = machines.take(in_envelope(A, "bank/1"), in_envelope(A, "bank/1", session, 1), in_envelope(A))
    assert isinstance(told[2], CommandRejected)
    assert isinstance(told[3], CommandRejected)
    assert told[4] == WriteResult(4, 0)


def test_memberships_and_blanks_reach_no_machine(machines: Machines) -> None:
    first = membership_entry(log_id(1, "n1", 1), membership("n1"))
    last = membership_entry(log_id(1, "n1", 3), membership("n1 n2"))
    batch, told = machines.take(first, blank(log_id(1, "n1", 2)), last, in_envelope(A))
    assert told == {4: WriteResult(4, 0)}
    assert batch.membership is not None
    assert (batch.membership.log_id, batch.membership.membership) == (last.log_id, membership("n1 n2"))
    assert batch.memberships == {1: membership("n1"), 3: membership("n1 n2")}
    assert batch.last_log_id == log_id(1, "n1", 4)


def test_a_write_sent_twice_under_a_session_reaches_the_machine_once(machines: Machines) -> None:
    session = machines.opened()
    once = in_envelope(A, session=session, serial=1)
    batch, told = machines.take(once, once)
    assert len(batch.entries) == 1
    assert isinstance(told[3], Duplicate)
    assert told[3].outcome() == (log_id(1, "n1", 2), WriteResult(2, 0))
    _, told = machines.take(once, in_envelope(A, session=99, serial=1))
    assert told[4].outcome() == (log_id(1, "n1", 2), WriteResult(2, 0))
    assert isinstance(told[5], SessionExpired)


def test_a_command_of_the_system_machine_is_carried_out_once_under_a_session_too(machines: Machines) -> None:
    kept, other = machines.opened(), machines.opened()
    close = in_envelope(encode_system_command(CloseSession(other)), SYSTEM_MACHINE, kept, 1)
    _, told = machines.take(close, close)
    assert told[3] is True
    assert told[4].outcome() == (log_id(1, "n1", 3), True)
    assert other not in machines.system.sessions


def test_a_remembered_result_that_cannot_be_read_was_applied_all_the_same(machines: Machines) -> None:
    session = machines.opened()
    once = in_envelope(A, session=session, serial=1)
    machines.take(once)
    machines.system.sessions._sessions[session].results[1].body = b"\xc1"
    _, told = machines.take(once)
    at, refusal = told[3].outcome()
    assert at == log_id(1, "n1", 2)
    assert isinstance(refusal, RaftError)
    assert refusal.outcome == "applied"


def test_cluster_time_is_the_greatest_of_a_batch(machines: Machines) -> None:
    machines.take(
        *(entry(log_id(1, "n1", index), in_envelope(A), time_ms=ms) for index, ms in enumerate((5, 40, 7), 1))
    )
    assert machines.system.time_ms == 40


def test_entries_that_do_not_follow_what_is_applied_are_not_taken(machines: Machines) -> None:
    machines.take(in_envelope(A))
    for index in (1, 3):
        with pytest.raises(AssertionError, match="does not follow"):
            machines.maker.prepare([entry(log_id(1, "n1", index), in_envelope(A))], machines.applied)
