"""Whoever waits for an entry hears what became of that entry, and of no other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.errors import CommandRejected, NotApplied, OutcomeUnknown, Stopped
from raftkit_core.runtime.messages import ClientWriteResponse, Write
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

pytestmark = pytest.mark.virtual_time

N1, N2 = LeaderId(1, "n1"), LeaderId(2, "n2")
N1_AGAIN = LeaderId(3, "n1")


def writes(count: int, deadline: float = 10.0) -> list[Write]:
    loop = asyncio.get_running_loop()
    return [(b"", loop.create_future(), deadline) for _ in range(count)]


def entries(leader_id: LeaderId, first: int, last: int) -> list[Entry]:
    return [Entry(LogId(leader_id, index), 0, NORMAL, b"") for index in range(first, last + 1)]


def told(write: Write) -> Any:
    """A result, an error, or None while there is nothing."""
    future = write[1]
    if not future.done():
        return None
    error = future.exception()
    return future.result().data if error is None else type(error)


async def test_one_append_may_be_applied_in_pieces_and_several_together() -> None:
    waiting = WaitingClients()
    first, second = writes(4), writes(2)
    waiting.wait_for_all(LogId(N1, 5), first)
    waiting.wait_for_all(LogId(N1, 9), second)
    waiting.resolve_all(entries(N1, 3, 6), ["c", "d", "e", "f"])
    assert [told(write) for write in first] == ["e", "f", None, None]
    assert len(waiting) == 4
    waiting.resolve_all(entries(N1, 7, 9), ["g", "h", CommandRejected("no")])
    assert [told(write) for write in first + second] == ["e", "f", "g", "h", CommandRejected, None]
    waiting.resolve(LogId(N1, 10), ClientWriteResponse(LogId(N1, 10), "j"))
    assert told(second[1]) == "j"
    assert not waiting.writers
    waiting.resolve_all(entries(N1, 11, 11), ["k"])
    assert first[2][1].result().log_id == LogId(N1, 7)


async def test_who_waits_under_an_earlier_leader_id_does_not_hold_up_who_waits_under_a_later_one() -> None:
    waiting = WaitingClients()
    old, new = writes(6), writes(2)
    waiting.wait_for_all(LogId(N1, 5), old)  # truncated from 6 on
    waiting.wait_for_all(LogId(N1_AGAIN, 7), new)
    log = entries(N1, 5, 5) + entries(N2, 6, 6) + entries(N1_AGAIN, 7, 8)
    waiting.resolve_all(log, ["a", "b", "c", "d"])
    assert [told(write) for write in old] == ["a", NotApplied, NotApplied, NotApplied, None, None]
    assert [told(write) for write in new] == ["c", "d"]
    waiting.resolve(LogId(N1_AGAIN, 9), ClientWriteResponse(LogId(N1_AGAIN, 9), "x"))
    assert told(old[4]) is NotApplied
    assert told(old[5]) is None


async def test_what_a_snapshot_replaced_is_unknown_also_if_later_entries_are_applied_first() -> None:
    waiting = WaitingClients()
    some = writes(6)
    waiting.wait_for_all(LogId(N1, 5), some)
    waiting.superseded(6)
    assert [told(write) for write in some] == [OutcomeUnknown] * 2 + [None] * 4
    waiting.resolve_all(entries(N1, 9, 10), ["i", "j"])
    assert [told(write) for write in some[2:]] == [OutcomeUnknown, OutcomeUnknown, "i", "j"]


async def test_who_gave_up_is_left_alone_and_forgotten() -> None:
    waiting = WaitingClients()
    some = writes(3, deadline=1.0)
    waiting.wait_for_all(LogId(N1, 5), some)
    some[0][1].cancel()
    waiting.sweep(0.5)
    assert len(waiting) == 3
    waiting.sweep(1.0)
    assert [told(write) for write in some[1:]] == [OutcomeUnknown] * 2
    assert not waiting.writers
    late = writes(2)
    late[0][1].cancel()
    waiting.wait_for_all(LogId(N1, 8), late)
    waiting.resolve_all(entries(N1, 8, 9), ["h", "i"])
    assert late[0][1].cancelled()
    assert told(late[1]) == "i"


async def test_at_the_end_everybody_is_told() -> None:
    waiting = WaitingClients()
    some = writes(2) + writes(1)
    waiting.wait_for_all(LogId(N1, 5), some[:2])
    waiting.wait_for_all(LogId(N1_AGAIN, 6), some[2:])
    waiting.fail_all(lambda: Stopped("the end"))
    assert [told(write) for write in some] == [OutcomeUnknown] * 3
    assert not waiting.writers
