"""The bank under faults: five nodes, a minute of crashes, partitions and slow disks, in a few seconds."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from bank import OPENING_BALANCE, Bank, Transfer

from raftkit_core.errors import RaftError

ACCOUNTS = ["ann", "bob", "cem", "dee"]


async def keep_transferring(cluster: Any, name: str) -> None:
    """A teller: one transfer after the other, each at any node, none ever repeated."""
    random = cluster.stream(name)
    while True:
        giver, taker = random.sample(ACCOUNTS, 2)
        with suppress(RaftError):  # no leader, no quorum, an unknown outcome, or not enough money
            node = random.choice(cluster.running or cluster.ids)
            await cluster.write(Transfer(giver, taker, random.randint(1, 60)), node=node, timeout=1.0)
        await asyncio.sleep(random.uniform(0.0, 0.2))


def check_books(bank: Bank) -> None:
    balances = [bank.balance(account) for account in ACCOUNTS]
    assert min(balances) >= 0
    assert sum(balances) == OPENING_BALANCE * len(ACCOUNTS)


@pytest.mark.raftkit_cluster(nodes=3, machine=Bank)
async def test_a_transfer_survives_the_crash_of_the_leader(raftkit_cluster: Any) -> None:
    leader = await raftkit_cluster.leader()
    assert await raftkit_cluster.write(Transfer("ann", "bob", 30)) == 70
    raftkit_cluster.crash(leader)
    assert await raftkit_cluster.leader() != leader
    assert await raftkit_cluster.read(lambda bank: bank.balance("bob")) == 130
    await raftkit_cluster.restart(leader)
    await raftkit_cluster.settle()
    assert raftkit_cluster.machine(leader).balance("ann") == 70


@pytest.mark.raftkit_cluster(nodes=5, machine=Bank)
@pytest.mark.parametrize("raftkit_cluster", [1], indirect=True)  # the seed; more of them find more
async def test_no_money_is_lost_in_a_minute_of_faults(raftkit_cluster: Any) -> None:
    await raftkit_cluster.leader()
    tellers = [asyncio.create_task(keep_transferring(raftkit_cluster, f"teller {number}")) for number in range(3)]
    try:
        await raftkit_cluster.disturb(60)
    finally:
        for teller in tellers:
            teller.cancel()
        await asyncio.wait(tellers)
    await raftkit_cluster.settle()
    banks = [raftkit_cluster.machine(node) for node in raftkit_cluster.running]
    for bank in banks:
        check_books(bank)
    assert all(bank.accounts == banks[0].accounts for bank in banks)
    assert banks[0].accounts, "something was transferred"
