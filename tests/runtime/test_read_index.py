"""Reads of a follower that wait share a call to the leader, but never one that left before they began (DESIGN §4)."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import RPCTimeout, Unreachable
from raftkit_core.runtime.read_index import SharedReadIndex
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

pytestmark = pytest.mark.virtual_time
HURRY = 0.1
BOTH = ReadPolicy.READ_INDEX, ReadPolicy.LEASE


def at(index: int) -> LogId:
    return LogId(LeaderId(1, "n1"), index)


class Leader:
    """Takes the position when a call arrives, and answers when it is told to."""

    def __init__(self) -> None:
        self.committed = 1
        self.calls: list[tuple[ReadPolicy, int, asyncio.Future[None]]] = []
        self.waiting = WaitingClients()
        self.shared = SharedReadIndex(self.waiting, asyncio.get_running_loop().time, self.ask, HURRY)

    async def ask(self, policy: ReadPolicy) -> LogId | None:
        position = at(self.committed)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls.append((policy, position.index, answered))
        await answered
        return position

    def read(self, policy: ReadPolicy = ReadPolicy.READ_INDEX) -> asyncio.Task[object]:
        return asyncio.ensure_future(self.shared.position(policy, 5.0))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("policy", BOTH)
async def test_a_read_is_never_answered_by_a_call_that_left_before_it_began(policy: ReadPolicy) -> None:
    leader = Leader()
    early = leader.read(policy)
    await settle()
    leader.committed = 2  # a write is acknowledged: what begins from now on must see it
    late = [leader.read(policy) for _ in range(3)]
    await settle()
    assert [call[:2] for call in leader.calls] == [(policy, 1)], "the next call waits for the one under way"
    leader.calls[0][2].set_result(None)
    await settle()
    assert await early == at(1)
    assert not any(read.done() for read in late)
    leader.calls[1][2].set_result(None)
    assert [await read for read in late] == [at(2)] * 3
    assert len(leader.calls) == 2


async def test_reads_that_come_while_the_next_call_gathers_join_it() -> None:
    leader = Leader()
    first = leader.read()
    await settle()
    joined = []
    for _ in range(3):
        joined.append(leader.read())
        await settle()
    leader.calls[0][2].set_result(None)
    await settle()
    leader.calls[1][2].set_result(None)
    await asyncio.gather(first, *joined)
    assert len(leader.calls) == 2


async def test_policies_do_not_share_calls() -> None:
    leader = Leader()
    reads = [leader.read(policy) for policy in BOTH]
    await settle()
    assert {policy for policy, _, _ in leader.calls} == set(BOTH)
    for _, _, answered in leader.calls:
        answered.set_result(None)
    await asyncio.gather(*reads)


async def test_a_call_that_hangs_holds_up_the_next_one_for_a_heartbeat() -> None:
    leader = Leader()
    hung = leader.read()
    await settle()
    late = leader.read()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(0.9 * HURRY)
    assert len(leader.calls) == 1
    await asyncio.sleep(0.2 * HURRY)
    assert len(leader.calls) == 2, f"{loop.time() - began} s after it was asked"
    leader.calls[1][2].set_result(None)
    assert await late == at(1)
    assert not hung.done()
    await leader.shared.close()
    hung.cancel()
    await asyncio.wait([hung])


async def test_all_who_share_a_call_learn_why_it_failed_and_the_next_one_leaves() -> None:
    leader = Leader()
    reads = [leader.read() for _ in range(2)]
    await settle()
    after = leader.read()
    await settle()
    leader.calls[0][2].set_exception(Unreachable("no leader there"))
    assert [type(await read) for read in reads] == [Unreachable] * 2
    await settle()
    leader.calls[1][2].set_result(None)
    assert await after == at(1)


async def test_what_is_no_error_of_ours_is_raised_at_every_reader() -> None:
    leader = Leader()
    reads = [leader.read() for _ in range(2)]
    await settle()
    leader.calls[0][2].set_exception(LookupError("a plugin's own"))
    for read in reads:
        with pytest.raises(LookupError):
            await read


async def test_a_reader_s_deadline_is_its_own() -> None:
    leader = Leader()
    patient, hasty = leader.read(), asyncio.ensure_future(leader.shared.position(ReadPolicy.READ_INDEX, 0.5))
    await asyncio.sleep(1)
    leader.waiting.sweep(asyncio.get_running_loop().time())
    with pytest.raises(RPCTimeout):
        await hasty
    leader.calls[0][2].set_result(None)
    assert await patient == at(1)


async def test_closing_ends_the_calls_under_way() -> None:
    leader = Leader()
    reads = [leader.read(), leader.read(ReadPolicy.LEASE)]
    await settle()
    await leader.shared.close()
    leader.waiting.fail_all(lambda: Unreachable("the node has ended"))
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(result) for result in results] == [Unreachable] * 2
