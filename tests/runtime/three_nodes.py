"""A cluster of three: its nodes by name, how far one is, and writers at its leader."""

from __future__ import annotations

import asyncio

from raftkit_core.raft import Raft
from raftkit_core.types.kv import Put

ALL = ("n1", "n2", "n3")


def others(leader: Raft) -> list[str]:
    return [node_id for node_id in ALL if node_id != leader.id]


def last_index(raft: Raft) -> int:
    return raft.metrics().value.last_log_index or 0


async def six_writers(leader: Raft) -> None:
    """A hundred writes each, every one of a key of its own."""

    async def writer(name: str) -> None:
        for number in range(100):
            await leader.client_write(Put(f"{name}/{number}", b"v"))

    await asyncio.gather(*(writer(f"w{number}") for number in range(6)))
