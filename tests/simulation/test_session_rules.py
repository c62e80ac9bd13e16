"""The second model of client sessions: what it wants of machines, and what clients may count on."""

from __future__ import annotations

import pytest

from raftkit_core.state_machine.system import system_payload
from raftkit_core.state_machine.system_commands import CloseSession, ExpireSessions, OpenSession
from raftkit_core.testing import Simulation
from raftkit_core.testing.simulation.session_rules import SessionRules
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.types.entry import BLANK, ENVELOPE_VERSION, NORMAL, Entry, Envelope, encode_envelope
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

SESSION = 1
"""The session that :class:`Log` opens with its second entry."""


class Log:
    """A committed log, entry by entry, and what broke."""

    def __init__(self) -> None:
        self.broken: list[tuple[str, str]] = []
        self.trace = Trace()
        self.rules = SessionRules(self.trace, lambda rule, node, detail: self.broken.append((rule, detail)))
        self.committed: dict[int, Entry] = {}
        self.add(b"", BLANK)
        self.add(system_payload(OpenSession(1000)))

    def add(self, payload: bytes, kind: int = NORMAL, *, known: bool = True) -> Entry:
        entry = Entry(LogId(LeaderId(1, "n1"), len(self.committed)), 0, kind, payload)
        self.committed[entry.index] = entry
        if known:
            self.rules.follow(self.committed)
        return entry

    def write(self, serial: int, floor: int = 0, session: int = SESSION) -> Entry:
        return self.add(encode_envelope(Envelope(ENVELOPE_VERSION, "kv/1", session, serial, floor, b"put")))

    def applied(self, entry: Entry, reached: bool) -> list[str]:
        self.rules.applied("n1", entry, reached)
        return [rule for rule, _ in self.broken]


def test_a_new_write_must_reach_the_machine() -> None:
    log = Log()
    entry = log.write(1)
    assert log.applied(entry, True) == []
    assert log.applied(entry, False) == ["S23"]


def repeat(log: Log) -> Entry:
    log.write(1)
    return log.write(1)


def copy_below_the_floor(log: Log) -> Entry:
    log.write(1)
    log.write(2, floor=1)
    return log.write(1)


def after_its_end(log: Log) -> Entry:
    log.add(system_payload(CloseSession(SESSION)))
    return log.write(1)


def after_it_expired(log: Log) -> Entry:
    log.add(system_payload(ExpireSessions((SESSION,))))
    return log.write(1)


def of_no_session(log: Log) -> Entry:
    return log.write(1, session=77)


def floor_above_itself(log: Log) -> Entry:
    return log.write(3, floor=3)


@pytest.mark.parametrize(
    "what", [repeat, copy_below_the_floor, after_its_end, after_it_expired, of_no_session, floor_above_itself]
)
def test_what_must_not_reach_it(what: object) -> None:
    log = Log()
    entry = what(log)  # type: ignore[operator]
    assert log.applied(entry, False) == []
    assert log.applied(entry, True) == ["S23"]


def test_a_serial_that_was_overtaken_is_new() -> None:
    log = Log()
    log.write(2)
    assert log.applied(log.write(1), True) == []
    assert log.trace.coverage["session.overtaken"] == 1


def test_what_a_machine_did_early_is_compared_when_it_is_known() -> None:
    log = Log()
    log.write(1)
    entry = log.add(encode_envelope(Envelope(ENVELOPE_VERSION, "kv/1", SESSION, 1, 0, b"put")), known=False)
    assert log.applied(entry, True) == []
    log.add(b"", BLANK)
    assert [rule for rule, _ in log.broken] == ["S23"]


def test_a_session_that_is_counted_on_must_not_end() -> None:
    log = Log()
    log.rules.promised(SESSION, lambda: True)
    log.rules.look_at_promises()
    assert log.broken == []
    log.add(system_payload(ExpireSessions((SESSION,))))
    assert [rule for rule, _ in log.broken] == ["S31"]


def test_one_that_is_not_may_end_and_must_not_be_promised_again() -> None:
    log = Log()
    is_counted_on = False
    log.rules.promised(SESSION, lambda: is_counted_on)
    log.add(system_payload(ExpireSessions((SESSION,))))
    assert log.broken == []
    is_counted_on = True  # a keep-alive was answered after its end
    log.rules.look_at_promises()
    assert [rule for rule, _ in log.broken] == ["S31"]


@pytest.mark.virtual_time
async def test_simulated_sessions_are_kept_alive_left_and_expire() -> None:
    async with Simulation(seed=3, nodes=3) as sim:
        sim.session_ttl_ms = 1000
        await sim.settle()
        first, second = sim.client("c1"), sim.client("c2")
        first.session_name = second.session_name = "shared"
        await first.put_once("a", "1")
        await second.put_once("a", "2")
        session = sim.sessions["shared"]
        assert session.next_serial == 3, "two clients write under one session"
        await sim.run_for(3)
        assert session.is_valid, "it is kept alive beyond its time"
        await first.leave_session(close=False)
        assert session.is_counted_on
        await sim.run_for(2)
        assert not session.is_counted_on
        assert sim.trace.coverage["session.expired"] == 1
        await second.put_once("a", "3")
        assert sim.sessions["shared"].id != session.id
        await second.leave_session(close=True)
        await sim.run_for(1)
        assert sim.trace.coverage["session.closed"] == 1
        sim.check()
