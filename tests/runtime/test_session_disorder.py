"""Clients with sessions among lost answers, lost leaders and restarts: every (session, serial) has one effect."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec
import pytest
from three_nodes import ALL

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import RaftError
from raftkit_core.network.disturbances import DROP
from raftkit_core.raft import Raft
from raftkit_core.runtime.held_sessions import Session
from raftkit_core.state_machine.simple import SimpleStateMachine
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome

pytestmark = pytest.mark.virtual_time

SECONDS = 15.0


class Mark(msgspec.Struct, frozen=True, tag="mark"):
    client: str
    number: int


class Ledger(SimpleStateMachine):
    """Which marks were made, and how often: a second effect shows."""

    name = "ledger/1"
    command_type = Mark
    result_type = tuple[str, int, int]
    state_type = dict[str, int]

    def __init__(self) -> None:
        self.made: dict[str, int] = {}

    def apply(self, command: Mark) -> tuple[str, int, int]:
        name = f"{command.client}/{command.number}"
        self.made[name] = self.made.get(name, 0) + 1
        return (command.client, command.number, self.made[name])

    def get_state(self) -> dict[str, int]:
        return self.made

    def set_state(self, state: dict[str, int]) -> None:
        self.made = state


class Client:
    """Writes marks from one node, several at a time, and opens another session when its own is over."""

    def __init__(self, name: str, cluster: MemoryCluster, node_id: str, rng: Random) -> None:
        self.name = name
        self.told: dict[str, str] = {}
        self.sessions = 0
        self._cluster = cluster
        self._node_id = node_id
        self._rng = rng
        self._number = 0

    async def run(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            raft = self._cluster.rafts.get(self._node_id)
            opened = None if raft is None else await outcome(_open(raft, self._rng.choice((1.0, 3.0, 30.0))))
            if not isinstance(opened, Session):
                await asyncio.sleep(0.2)
                continue
            self.sessions += 1
            while loop.time() < until and not opened.is_expired and not opened.is_closed:
                await asyncio.gather(*(self._mark(opened) for _ in range(self._rng.randint(1, 6))))
                await asyncio.sleep(self._rng.random() * 0.3)
            await opened.close(timeout=0.5)

    async def _mark(self, session: Session) -> None:
        self._number += 1
        mark = Mark(self.name, self._number)
        name = f"{mark.client}/{mark.number}"
        done = await outcome(session.write(mark, timeout=self._rng.choice((0.3, 2.0, 20.0))))
        if isinstance(done, RaftError):
            assert done.outcome != "applied", f"{name}: {done}"
            self.told[name] = done.outcome
        else:
            assert tuple(done.data) == (mark.client, mark.number, 1)
            self.told[name] = "applied"


async def _open(raft: Raft, ttl: float) -> Session:
    session: Session = await raft.open_session(ttl, timeout=2.0)
    return session


async def disorder(cluster: MemoryCluster, rng: Random, until: float) -> None:
    """Answers get lost, nodes are cut off, killed and started again; a quorum runs most of the time."""
    loop, hub = asyncio.get_running_loop(), cluster.hub
    losses = 0.0
    hub.post_hook = lambda _src, _dst, kind: DROP if kind == "forward" and rng.random() < losses else None
    hub.pre_hook = lambda _src, _dst, kind, _m: DROP if kind == "forward" and rng.random() < losses / 2 else None
    while loop.time() < until:
        losses = rng.choice((0.0, 0.2, 0.7))
        victim = rng.choice(ALL)
        match rng.choice(("cut", "isolate", "kill", "snapshot", "hand over", "quiet")):
            case "cut":
                hub.cut(victim, rng.choice([node_id for node_id in ALL if node_id != victim]))
            case "isolate":
                hub.isolate(victim)
            case "kill":
                await cluster.kill(victim)
            case "snapshot":
                cluster.raft(victim).trigger().snapshot()
            case "hand over":
                cluster.raft(victim).trigger().transfer_leader()
        await asyncio.sleep(rng.choice((0.3, 1.0, 2.5)))
        hub.heal()
        if victim not in cluster.rafts:
            await cluster.start(victim)
        await asyncio.sleep(rng.random())
    hub.pre_hook = hub.post_hook = None


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(3, 60))])
async def test_every_write_of_a_session_has_one_effect_whatever_is_lost(seed: int) -> None:
    rng = Random(seed)
    config = Config(snapshot_policy=SnapshotPolicy.LogsSinceLast(40), max_in_snapshot_log_to_keep=5, purge_batch_size=1)
    async with memory_cluster(3, machine=Ledger, seed=seed, config=config) as cluster:
        clients = [Client(f"c{number}", cluster, rng.choice(ALL), Random(f"{seed}/{number}")) for number in range(4)]
        until = asyncio.get_running_loop().time() + SECONDS
        await asyncio.gather(disorder(cluster, rng, until), *(client.run(until) for client in clients))
        leader = await cluster.leader()
        await leader.ensure_linearizable()
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        made: dict[str, int] = await leader.read(lambda machine: dict(machine.made))
        told: dict[str, Any] = {}
        for client in clients:
            told |= client.told
        assert set(made.values()) <= {1}, [name for name, count in made.items() if count > 1]
        assert {name for name, what in told.items() if what == "applied"} <= made.keys()
        assert not {name for name, what in told.items() if what == "not_applied"} & made.keys()
        assert sum(what == "applied" for what in told.values()) > 30
        states = {cluster.raft(node_id)._core.worker.system.encode() for node_id in ALL}
        assert len(states) == 1, "equal logs give equal bytes"
