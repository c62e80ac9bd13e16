"""Whoever waits for an entry hears what became of that entry, and of no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from raftkit_core.errors import CommandRejected, NotApplied, OutcomeUnknown, Stopped
from raftkit_core.runtime.messages import ClientWrite, ClientWriteResponse
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.state_machine.kv import Overwritten
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.kv import WriteResult
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

pytestmark = pytest.mark.virtual_time

N1, N2 = LeaderId(1, "n1"), LeaderId(2, "n2")
N1_AGAIN = LeaderId(3, "n1")


def writes(count: int, deadline: float = 10.0) -> ClientWrite:
    loop = asyncio.get_running_loop()
    since = 0.25
    return ClientWrite([b""] * count, [loop.create_future() for _ in range(count)], [deadline - since] * count, since)


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
