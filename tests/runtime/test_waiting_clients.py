"""Whoever waits for an entry hears what became of that entry, and of no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkit_core.errors import CommandRejected, NotApplied, OutcomeUnknown, Stopped
from raftkit_core.runtime.messages import ClientWrite, ClientWriteResponse
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.state_machine.kv import Overwritten
from raftkit_core.types.entry import NORMAL, Entries, Entry
from raftkit_core.types.kv import WriteResult
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

pytestmark = pytest.mark.virtual_time

N1, N2 = LeaderId(1, "n1"), LeaderId(2, "n2")
N1_AGAIN = LeaderId(3, "n1")


def writes(count: int, deadline: float = 10.0, commands: list[Any] | None = None) -> ClientWrite:
    loop = asyncio.get_running_loop()
    since = 0.25
    futures = [loop.create_future() for _ in range(count)]
    return ClientWrite([b""] * count, commands or [None] * count, futures, [deadline - since] * count, since)


def entries(leader_id: LeaderId, first: int, last: int) -> list[Entry]:
    return [Entry(LogId(leader_id, index), 0, NORMAL, b"") for index in range(first, last + 1)]


def told(future: asyncio.Future[Any]) -> Any:
    """A result, an error, or None while there is nothing."""
    if not future.done():
        return None
    error = future.exception()
    return future.result().data if error is None else type(error)


async def test_one_append_may_be_applied_in_pieces_and_several_together() -> None:
    waiting = WaitingClients()
    first, second = writes(4), writes(2)
    waiting.wait_for_all(LogId(N1, 5), [first])
    waiting.wait_for_all(LogId(N1, 9), [second])
    waiting.resolve_all(entries(N1, 3, 6), ["c", "d", "e", "f"])
    assert [told(each) for each in first.futures] == ["e", "f", None, None]
    assert len(waiting) == 4
    waiting.resolve_all(entries(N1, 7, 9), ["g", "h", CommandRejected("no")])
    assert [told(each) for each in first.futures + second.futures] == ["e", "f", "g", "h", CommandRejected, None]
    waiting.resolve(LogId(N1, 10), ClientWriteResponse(LogId(N1, 10), "j"))
    assert told(second.futures[1]) == "j"
    assert not waiting.writers
    waiting.resolve_all(entries(N1, 11, 11), ["k"])
    assert first.futures[2].result().log_id == LogId(N1, 7)


async def test_who_waits_under_an_earlier_leader_id_does_not_hold_up_who_waits_under_a_later_one() -> None:
    waiting = WaitingClients()
    old, new = writes(6), writes(2)
    waiting.wait_for_all(LogId(N1, 5), [old])  # truncated from 6 on
    waiting.wait_for_all(LogId(N1_AGAIN, 7), [new])
    log = entries(N1, 5, 5) + entries(N2, 6, 6) + entries(N1_AGAIN, 7, 8)
    waiting.resolve_all(log, ["a", "b", "c", "d"])
    assert [told(each) for each in old.futures] == ["a", NotApplied, NotApplied, NotApplied, None, None]
    assert [told(each) for each in new.futures] == ["c", "d"]
    waiting.resolve(LogId(N1_AGAIN, 9), ClientWriteResponse(LogId(N1_AGAIN, 9), "x"))
    assert told(old.futures[4]) is NotApplied
    assert told(old.futures[5]) is None


async def test_what_a_snapshot_replaced_is_unknown_also_if_later_entries_are_applied_first() -> None:
    waiting = WaitingClients()
    some = writes(6)
    waiting.wait_for_all(LogId(N1, 5), [some])
    waiting.superseded(6)
    assert [told(each) for each in some.futures] == [OutcomeUnknown] * 2 + [None] * 4
    waiting.resolve_all(entries(N1, 9, 10), ["i", "j"])
    assert [told(each) for each in some.futures[2:]] == [OutcomeUnknown, OutcomeUnknown, "i", "j"]


async def test_who_gave_up_is_left_alone_and_forgotten() -> None:
    waiting = WaitingClients()
    some = writes(3, deadline=1.0)
    waiting.wait_for_all(LogId(N1, 5), [some])
    some.futures[0].cancel()
    waiting.sweep(0.5)
    assert len(waiting) == 3
    waiting.sweep(1.0)
    assert [told(each) for each in some.futures[1:]] == [OutcomeUnknown] * 2
    assert not waiting.writers
    late = writes(2)
    late.futures[0].cancel()
    waiting.wait_for_all(LogId(N1, 8), [late])
    waiting.resolve_all(entries(N1, 8, 9), ["h", "i"])
    assert late.futures[0].cancelled()
    assert told(late.futures[1]) == "i"


@pytest.mark.parametrize("results", [Overwritten(8, [3, 4, 5]), list(Overwritten(8, [3, 4, 5]))])
async def test_results_none_of_which_is_a_refusal_are_told_as_others_are(results: Sequence[WriteResult]) -> None:
    waiting = WaitingClients()
    some = [writes(1), writes(2)]
    waiting.wait_for_all(LogId(N1, 8), some)
    futures = some[0].futures + some[1].futures
    futures[1].cancel()
    waiting.resolve_all(entries(N1, 8, 10), results)
    assert futures[1].cancelled()
    assert [told(futures[0]), told(futures[2])] == [WriteResult(8, 3), WriteResult(10, 5)]
    assert [future.result().log_id for future in futures[::2]] == [LogId(N1, 8), LogId(N1, 10)]


async def test_at_the_end_everybody_is_told() -> None:
    waiting = WaitingClients()
    some = [writes(2), writes(1)]
    waiting.wait_for_all(LogId(N1, 5), some[:1])
    waiting.wait_for_all(LogId(N1_AGAIN, 6), some[1:])
    waiting.fail_all(lambda: Stopped("the end"))
    assert [told(each) for message in some for each in message.futures] == [OutcomeUnknown] * 3
    assert not waiting.writers


class Caller:
    """Who waits, for which entry, until when; and ``fate``, once it is decided."""

    def __init__(self, future: asyncio.Future[Any], place: LogId, deadline: float) -> None:
        self.future = future
        self.place = place
        self.deadline = deadline
        self.fate: Any = None

    def heard(self) -> Any:
        future = self.future
        if future.cancelled():
            return "cancelled"
        if not future.done() or future.exception() is not None:
            return told(future)
        return future.result().log_id, future.result().data


async def test_commands_are_asked_for_nothing_but_whether_they_are_known() -> None:
    class Undecided:
        def __bool__(self) -> bool:
            raise ValueError("neither true nor false")

        def __eq__(self, other: object) -> bool:
            raise ValueError("equal to nothing")

        __hash__ = None  # type: ignore[assignment]

    waiting, commands = WaitingClients(), [Undecided(), 0, ""]
    waiting.wait_for_all(LogId(N1, 5), [writes(3, commands=commands)])
    assert waiting.commands_of(LogId(N1, 5), LogId(N1, 7)) is commands


async def test_a_batch_that_says_nothing_was_refused_has_a_result_for_each() -> None:
    waiting = WaitingClients()
    waiting.wait_for_all(LogId(N1, 5), [writes(3)])
    with pytest.raises(AssertionError, match="a result for each entry"):
        waiting.resolve_all(entries(N1, 5, 7), Overwritten(5, [1, 2]))


async def test_commands_are_those_of_all_entries_or_of_none() -> None:
    waiting = WaitingClients()
    waiting.wait_for_all(LogId(N1, 5), [writes(3, commands=["e", "f", "g"]), writes(2, commands=["h", "i"])])
    waiting.wait_for_all(LogId(N1, 10), [writes(2, commands=["j", None])])

    def found(leader_id: LeaderId, first: int, last: int) -> list[Any] | None:
        return waiting.commands_of(LogId(leader_id, first), LogId(leader_id, last))

    assert found(N1, 5, 7) == ["e", "f", "g"]
    assert found(N1, 5, 9) == ["e", "f", "g", "h", "i"]
    assert found(N1, 6, 8) == ["f", "g", "h"]
    assert found(N1, 10, 10) == ["j"]
    assert found(N1, 9, 11) is None, "one is not known"
    assert found(N1, 4, 6) is None
    assert found(N1, 10, 12) is None
    assert found(N2, 5, 7) is None, "entries of another leader"
    waiting.resolve_all(entries(N1, 5, 6), [0, 0])
    assert found(N1, 5, 7) is None
    assert found(N1, 7, 9) == ["g", "h", "i"]


@given(st.integers(0, 2**32))
async def test_everybody_hears_what_became_of_their_own_entry_and_hears_it_once(seed: int) -> None:
    """Leaders come and go, and truncate; what is committed is applied in pieces, by log or by snapshot; time passes."""
    random = Random(seed)
    waiting = WaitingClients()
    log: list[LogId] = []
    callers: list[Caller] = []
    proposed: dict[LogId, Any] = {}
    applied, term, now = 0, 1, 0.0
    leader_id = LeaderId(term, "n1")

    def settle(results: dict[int, Any]) -> None:
        for caller in callers:
            if caller.fate is None and caller.place.index in results:
                result = results[caller.place.index]
                if caller.place != log[caller.place.index]:
                    caller.fate = NotApplied
                else:
                    caller.fate = CommandRejected if isinstance(result, CommandRejected) else (caller.place, result)

    for _ in range(random.randrange(1, 40)):
        match random.randrange(8):
            case 0 | 1 | 2:
                deadline = now + random.choice([1.0, 5.0, 1000.0])
                messages = [writes(random.choice([1, 1, 2, 5]), deadline) for _ in range(random.choice([1, 1, 3]))]
                futures = [future for message in messages for future in message.futures]
                places = [LogId(leader_id, len(log) + at) for at in range(len(futures))]
                if leader_id.node_id == "n1":
                    for message in messages:
                        message.commands = [random.choice([object(), object(), None]) for _ in message.futures]
                    commands = [command for message in messages for command in message.commands]
                    proposed.update(zip(places, commands, strict=True))
                    waiting.wait_for_all(places[0], messages)
                    callers += [Caller(*each, deadline) for each in zip(futures, places, strict=True)]
                log += places
            case 3:
                term += 1
                leader_id = LeaderId(term, random.choice(["n1", "n2"]))
                del log[random.randrange(applied, len(log) + 1) :]
            case 4 | 5 if len(log) > applied:
                part = log[applied : random.randrange(applied, len(log)) + 1]
                results: Sequence[Any] = [CommandRejected("no") if at.index % 7 == 3 else f"{at}" for at in part]
                if random.random() < 0.3:
                    results = Overwritten(part[0].index, [at.index + 5 for at in part])
                settle(dict(enumerate(results, applied)))
                if part:
                    commands_found = waiting.commands_of(part[0], part[-1])
                    assert commands_found in (None, [proposed.get(log_id) for log_id in part])
                    assert commands_found is None or None not in commands_found
                _apply(waiting, part, results, random)
                applied += len(part)
            case 6 if len(log) > applied and random.random() < 0.3:
                applied = random.randrange(applied, len(log)) + 1
                for caller in callers:
                    if caller.fate is None and caller.place.index < applied:
                        caller.fate = OutcomeUnknown
                waiting.superseded(applied - 1)
            case 7:
                now += 1.0
                waiting.sweep(now)
                for caller in callers:
                    if caller.fate is None and caller.deadline <= now:
                        caller.fate = OutcomeUnknown
                for caller in random.sample(callers, len(callers) // 8):
                    if caller.future.cancel():
                        caller.fate = "cancelled"
            case _:
                pass
        assert [caller.heard() for caller in callers] == [caller.fate for caller in callers]
    assert len(waiting) >= sum(caller.fate is None for caller in callers)
    waiting.fail_all(lambda: Stopped("the end"))
    assert [caller.heard() for caller in callers] == [caller.fate or OutcomeUnknown for caller in callers]
    assert len(waiting) == 0


def _apply(waiting: WaitingClients, part: list[LogId], results: Sequence[Any], random: Random) -> None:
    """Tell of it in one of the ways in which it is told."""
    log: Sequence[Entry] = [Entry(log_id, 0, NORMAL, b"") for log_id in part]
    if random.random() < 0.2:
        for entry, result in zip(log, results, strict=True):
            is_refused = isinstance(result, CommandRejected)
            waiting.resolve(entry.log_id, result if is_refused else ClientWriteResponse(entry.log_id, result))
        return
    if part[0].leader_id == part[-1].leader_id and random.random() < 0.7:
        log = Entries(part[0], 0, NORMAL, [b""] * len(part))
    waiting.resolve_all(log, results)
