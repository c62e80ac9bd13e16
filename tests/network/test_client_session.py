"""The client's half of a session: serials, room, and what may be said after several attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from raftkit_core.errors import (
    BadCommand,
    CommandRejected,
    ForwardToLeader,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    QuorumNotEnough,
    RaftError,
    ResultForgotten,
    SessionExpired,
    SessionFull,
    Stopped,
)
from raftkit_core.network.client_session import WINDOW, ClientSession, Serials
from raftkit_core.network.repeating import Attempts
from raftkit_core.state_machine.sessions import MAX_RESULTS
from raftkit_core.testing.cluster import outcome
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.session import SessionRef, SessionSerial

REF = SessionRef("5a" * 16, 7)


class Fake(ClientSession):
    """``answers`` says what becomes of a write; ``alive`` what becomes of a keep-alive."""

    def __init__(self, ttl_ms: int = 3000) -> None:
        self.sent: list[SessionSerial] = []
        self.kept: list[float] = []
        self.closed = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer: Callable[[SessionSerial], Any] = lambda once: once.serial
        self.alive: RaftError | None = None
        self.delay = 0.0
        super().__init__(REF, ttl_ms, sent_at=0.0, max_clock_drift=0.1, clock=VirtualClock())

    async def _send_keep_alive(self, timeout: float) -> None:
        self.kept.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.delay)
        if self.alive is not None:
            raise self.alive

    async def _send_write(self, command: Any, once: Callable[[], SessionSerial], timeout: float) -> Any:
        self.sent.append(once())
        if command != "fast":
            await self.gate.wait()
        told = self.answer(once())
        if isinstance(told, RaftError):
            raise told
        return told

    async def _send_close(self, timeout: float) -> None:
        self.closed += 1


def test_the_floor_is_below_the_oldest_that_waits_whatever_the_order() -> None:
    serials, rng = Serials(), Random(3)
    waiting = {serials.take() for _ in range(200)}
    for serial in rng.sample(sorted(waiting), len(waiting)):
        waiting.discard(serial)
        serials.settle(serial)
        assert serials.floor == (min(waiting) - 1 if waiting else 200)
    assert serials.ahead == 0
    assert serials.take() == 201


DEFINITE = [
    (BadCommand("no"), BadCommand),
    (SessionExpired("over"), SessionExpired),
    (CommandRejected("no"), CommandRejected),
    (ResultForgotten("gone"), ResultForgotten),
]
AGAIN = [ForwardToLeader(), QuorumNotEnough(), Overloaded(), NotApplied(), SessionFull(), OutcomeUnknown(), Stopped()]


@pytest.mark.parametrize(("error", "told"), DEFINITE)
def test_what_settles_a_write_that_was_sent_once(error: RaftError, told: type[RaftError]) -> None:
    assert type(Attempts("w").failed(error)) is told


@pytest.mark.parametrize("error", AGAIN, ids=lambda error: error.code)
def test_what_is_sent_again(error: RaftError) -> None:
    attempts = Attempts("w")
    assert attempts.failed(error) is None
    assert attempts.is_uncertain == (error.outcome == "unknown")


@pytest.mark.parametrize("error", [BadCommand("no"), SessionExpired("over"), QuorumNotEnough("none")])
def test_after_an_attempt_without_an_answer_only_an_answer_from_applying_is_definite(error: RaftError) -> None:
    attempts = Attempts("write 3")
    assert attempts.failed(OutcomeUnknown("lost")) is None
    told = attempts.given_up(error) if error.retryable else attempts.failed(error)
    assert isinstance(told, OutcomeUnknown)
    assert told.__cause__ is error
    assert "write 3" in told.message
    refused = CommandRejected("no")
    assert attempts.failed(refused) is refused


@pytest.mark.virtual_time
async def test_each_write_takes_the_next_serial_and_acknowledges_what_is_settled() -> None:
    async with Fake() as session:
        session.gate.clear()
        slow = asyncio.ensure_future(session.write("slow"))
        await asyncio.sleep(0)
        for _ in range(3):
            await session.write("fast")
        session.gate.set()
        await slow
        await session.write("fast")
        assert [(once.serial, once.acknowledged_floor) for once in session.sent] == [
            (1, 0),
            (2, 0),
            (3, 0),
            (4, 0),
            (5, 4),
        ]
    assert session.closed == 1


@pytest.mark.virtual_time
async def test_serials_run_no_further_ahead_than_the_cluster_remembers() -> None:
    assert MAX_RESULTS >= 2 * WINDOW
    async with Fake(ttl_ms=60_000) as session:
        session.gate.clear()
        slow = asyncio.ensure_future(session.write("slow", timeout=60))
        await asyncio.sleep(0)
        for _ in range(WINDOW - 1):
            await session.write("fast")
        assert isinstance(await outcome(session.write("fast", timeout=1)), Overloaded)
        waiting = asyncio.ensure_future(session.write("fast", timeout=30))
        await asyncio.sleep(1)
        assert not waiting.done()
        session.gate.set()
        assert await waiting == WINDOW + 1
        await slow


@pytest.mark.virtual_time
async def test_a_session_that_is_over_says_so_before_anything_is_sent() -> None:
    async with Fake() as session:
        session.answer = lambda _once: SessionExpired("over")
        assert isinstance(await outcome(session.write("fast")), SessionExpired)
        sent = len(session.sent)
        assert isinstance(await outcome(session.write("fast")), SessionExpired)
        assert (len(session.sent), session.is_expired, session.is_valid) == (sent, True, False)
    assert session.closed == 0, "there is nothing to close"


@pytest.mark.virtual_time
async def test_keep_alives_go_three_times_in_a_valid_time_and_faster_when_unanswered() -> None:
    async with Fake(ttl_ms=3000) as session:
        await asyncio.sleep(9.1)
        assert len(session.kept) == 10
        assert session.seconds_left > 1.7
        session.alive = QuorumNotEnough("nobody")
        before = len(session.kept)
        await asyncio.sleep(2.8)
        assert len(session.kept) - before > 15
        assert not session.is_valid
        session.alive = None
        await asyncio.sleep(0.2)
        assert session.is_valid, "it was not over after all"
        session.alive = SessionExpired("over")
        await asyncio.sleep(1)
        assert session.is_expired
        count = len(session.kept)
        await asyncio.sleep(5)
        assert len(session.kept) == count


@pytest.mark.virtual_time
async def test_the_time_counts_from_the_send_of_a_keep_alive_not_from_its_answer() -> None:
    async with Fake(ttl_ms=10_000) as session:
        session.delay = 2.0
        await asyncio.sleep(3.0)  # sent at 3.0
        await asyncio.sleep(2.001)  # answered at 5.0
        assert session.kept == [3.0]
        assert session.seconds_left == pytest.approx(3.0 + 9.0 - 5.001)


@pytest.mark.virtual_time
async def test_waiting_for_room_ends_with_the_session() -> None:
    session = Fake(ttl_ms=60_000)
    session.gate.clear()
    slow = asyncio.ensure_future(session.write("slow", timeout=60))
    await asyncio.sleep(0)
    for _ in range(WINDOW - 1):
        await session.write("fast")
    waiting = asyncio.ensure_future(outcome(session.write("fast", timeout=60)))
    await asyncio.sleep(0)
    await session.close()
    assert isinstance(await waiting, SessionExpired)
    session.gate.set()
    await slow
