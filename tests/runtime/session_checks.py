"""What the tests of client sessions share."""

from __future__ import annotations

from typing import Any

from raftkit_core.network.disturbances import DROP
from raftkit_core.raft import Raft
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.testing.counting import Counter
from raftkit_core.types.operations import OpenSession, SessionOpened
from raftkit_core.types.session import SessionRef


def counters(**options: Any) -> Any:
    return memory_cluster(3, machine=Counter, **options)


def sessions_of(raft: Raft) -> Any:
    return raft._core.worker.system.sessions


async def total(raft: Raft) -> int:
    found: int = await raft.read(lambda machine: machine.value)
    return found


async def opened(raft: Raft, ttl_ms: int = 5000) -> SessionRef:
    """A session nobody keeps alive."""
    done: SessionOpened = await raft.call(OpenSession(ttl_ms), timeout=5)
    return done.session


def lose_answers(cluster: MemoryCluster) -> None:
    """Nobody hears what became of what was forwarded."""
    cluster.hub.post_hook = lambda _src, _dst, kind: DROP if kind == "forward" else None


def lose_requests(cluster: MemoryCluster, kind: str, src: str | None = None) -> None:
    cluster.hub.pre_hook = lambda sender, _dst, sent, _message: DROP if sent == kind and src in (None, sender) else None


def clear(cluster: MemoryCluster) -> None:
    cluster.hub.pre_hook = cluster.hub.post_hook = None


async def sessions_gone(cluster: MemoryCluster, raft: Raft, session_id: int) -> None:
    await cluster.eventually(lambda: session_id not in sessions_of(raft), "the session expires", timeout=120)
