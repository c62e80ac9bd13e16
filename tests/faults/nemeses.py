"""What is done to real nodes while clients use them; each can be given to ``trial``."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from fuse_disk import FuseDisk
from nodes import RealCluster, others, pick_leader_first
from tcp_proxy import Links, Proxy, owner_among

from raftkit_cli.cluster.layout import free_ports

# --- processes ------------------------------------------------------------------------------------------------------


async def kills(cluster: RealCluster, chance: random.Random, *, rounds: int = 8) -> None:
    """One after another, the leader half of the time; every fourth time all at once."""
    for turn in range(rounds):
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        cluster.check_alive()
        victims = list(cluster.nodes) if turn % 4 == 3 else [await pick_leader_first(cluster, chance, cluster.nodes)]
        for victim in victims:
            cluster.kill(victim)
        await asyncio.sleep(chance.uniform(0.0, 1.5))
        cluster.start(*victims)


async def pauses(cluster: RealCluster, chance: random.Random) -> None:
    """Shorter and longer than a lease and an election; a resumed leader must not answer from the past."""
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.2, 0.8))
        victim = await pick_leader_first(cluster, chance, cluster.nodes)
        cluster.pause(victim)
        await asyncio.sleep(chance.choice([0.3, 0.8, 2.5]))
        cluster.nodes[victim].resume()


async def transfers(cluster: RealCluster, chance: random.Random) -> None:
    """Leadership is handed over, and half of the time the one that gave it or got it is killed at once."""
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.2, 0.8))
        before, to = await cluster.leader(), chance.choice(list(cluster.nodes))
        await cluster.transfer(to)
        if chance.random() < 0.5:
            victim = chance.choice([to, before or to])
            cluster.kill(victim)
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            cluster.start(victim)


# --- disks ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fuse_disks(folder: Path, count: int) -> Iterator[dict[str, FuseDisk]]:
    """A disk whose power can be cut under every node."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(FuseDisk(folder / f"{name}-below", folder / f"{name}-disk"))
            for name in (f"n{number}" for number in range(1, count + 1))
        }


class PowerCuts:
    """The power of one node, or of all at once, fails: the process and every byte that was not synced are gone."""

    def __init__(self, disks: dict[str, FuseDisk], rounds: int, *, always_all: bool = False) -> None:
        self._disks = disks
        self._rounds = rounds
        self._always_all = always_all

    async def __call__(self, cluster: RealCluster, chance: random.Random) -> None:
        for turn in range(self._rounds):
            await asyncio.sleep(chance.uniform(0.3, 1.2))
            cluster.check_alive()
            is_for_all = self._always_all or turn % 2 == 1
            victims = list(cluster.nodes) if is_for_all else [chance.choice(list(cluster.nodes))]
            for victim in victims:
                cluster.kill(victim, counted_as="power cut")
            for victim in victims:
                await asyncio.to_thread(self._disks[victim].lose_power)
            cluster.start(*victims)


# --- links ----------------------------------------------------------------------------------------------------------

LinkNemesis = Callable[[Links, RealCluster, random.Random], Awaitable[None]]


@asynccontextmanager
async def proxied(folder: Path, count: int = 3) -> AsyncIterator[tuple[RealCluster, Links]]:
    """A running cluster whose members know each other by their proxies; clients come in by the front door."""
    ports = free_ports(2 * count)
    names = [f"n{number}" for number in range(1, count + 1)]
    listen = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, ports[:count], strict=True)}
    peer = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, ports[count:], strict=True)}
    with RealCluster(folder, count, listen=listen, peer=peer) as cluster:

        def pids() -> dict[str, int]:
            return {node.id: node.process.pid for node in cluster.nodes.values() if node.process is not None}

        links = Links(owner_among(pids))
        proxies = [Proxy(links, name, port) for name, port in zip(names, ports[:count], strict=True)]
        for proxy, port in zip(proxies, ports[count:], strict=True):
            await proxy.start(port)
        try:
            cluster.start()
            yield cluster, links
        finally:
            for proxy in proxies:
                await proxy.close()


async def slow(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """Delays around a heartbeat, and up to an election, per direction."""
    for _ in range(4):
        for source in cluster.nodes:
            for target in others(cluster, source):
                longest = chance.choice([0.0, 0.02, 0.15, 0.6])
                links.link(source, target).delay_s = (longest / 4, longest)
        cluster.counts["slow links"] += 1
        await asyncio.sleep(2)


async def one_way(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """Somebody can speak and not hear, or hear and not speak."""
    for turn in range(4):
        victim = await pick_leader_first(cluster, chance, cluster.nodes)
        for other in others(cluster, victim):
            links.hold(*((victim, other) if turn % 2 == 0 else (other, victim)))
        cluster.counts["one-way cut"] += 1
        await asyncio.sleep(2)
        links.heal()
        await asyncio.sleep(0.7)


async def partitions(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """A leader alone, and connections that break under way."""
    for _ in range(4):
        victim = await pick_leader_first(cluster, chance, cluster.nodes)
        links.isolate(victim, others(cluster, victim))
        cluster.counts["partition"] += 1
        await asyncio.sleep(chance.uniform(1.2, 2.5))
        links.heal()
        links.cut(chance.choice(list(cluster.nodes)))
        await asyncio.sleep(0.7)


async def repeats(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """Every third frame arrives twice, and sometimes late."""
    for source in cluster.nodes:
        for target in others(cluster, source):
            links.link(source, target).repeat = 0.3
            links.link(source, target).delay_s = (0.0, 0.03)
    for _ in range(3):
        await asyncio.sleep(1.5)
        links.cut(chance.choice(list(cluster.nodes)))
    assert links.repeated > 50, "nothing was repeated: have peers another protocol now?"
    cluster.counts["repeated frame"] += links.repeated


async def garbles(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """One frame in twenty arrives as garbage: its connection ends, and nothing else."""
    for source in cluster.nodes:
        for target in others(cluster, source):
            links.link(source, target).garble = 0.05
    for _ in range(3):
        await asyncio.sleep(1.5)
        links.cut(chance.choice(list(cluster.nodes)))
    assert links.garbled > 20, "nothing was garbled: have peers another protocol now?"
    cluster.counts["garbled frame"] += links.garbled


def on(links: Links, nemesis: LinkNemesis) -> Callable[[RealCluster, random.Random], Awaitable[None]]:
    """``nemesis`` for ``trial``; the links are good again afterwards."""

    async def break_links(cluster: RealCluster, chance: random.Random) -> None:
        assert {("n1", "n2"), ("n2", "n1")} <= set(links.links), "the proxy does not know who dials"
        await nemesis(links, cluster, chance)
        links.heal()

    return break_links
