"""Real nodes whose links are slow, one-way, repeating and breaking: a proxy in user space stands on every link."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nodes import RealCluster, others, pick_leader_first, said, trial
from tcp_proxy import Links, Messages, Proxy, owner_among

from raftkit_cli.cluster.layout import free_ports

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="finding out who dialled needs Linux's /proc"),
]

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
        await asyncio.sleep(2)


async def one_way(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """Somebody can speak and not hear, or hear and not speak."""
    for turn in range(4):
        victim = await pick_leader_first(cluster, chance, cluster.nodes)
        for other in others(cluster, victim):
            links.hold(*((victim, other) if turn % 2 == 0 else (other, victim)))
        await asyncio.sleep(2)
        links.heal()
        await asyncio.sleep(0.7)


async def partitions(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """A leader alone, and connections that break under way."""
    for _ in range(4):
        victim = await pick_leader_first(cluster, chance, cluster.nodes)
        links.isolate(victim, others(cluster, victim))
        await asyncio.sleep(chance.uniform(1.2, 2.5))
        links.heal()
        links.cut(chance.choice(list(cluster.nodes)))
        await asyncio.sleep(0.7)


async def repeats(links: Links, cluster: RealCluster, chance: random.Random) -> None:
    """Every third message arrives twice, and sometimes late."""
    for source in cluster.nodes:
        for target in others(cluster, source):
            links.link(source, target).repeat = 0.3
            links.link(source, target).delay_s = (0.0, 0.03)
    for _ in range(3):
        await asyncio.sleep(1.5)
        links.cut(chance.choice(list(cluster.nodes)))
    assert links.repeated > 50, "nothing was repeated: have peers another protocol now?"


@pytest.mark.parametrize(
    ("nemesis", "seed"),
    [
        pytest.param(slow, 31, id="slow"),
        pytest.param(one_way, 32, id="one way"),
        pytest.param(partitions, 33, id="partitions"),
        pytest.param(repeats, 34, id="repeats"),
    ],
)
async def test_bad_links_lose_nothing_and_show_nothing_stale(nemesis: LinkNemesis, seed: int, tmp_path: Path) -> None:
    async with proxied(tmp_path) as (cluster, links):

        async def break_links(cluster: RealCluster, chance: random.Random) -> None:
            await cluster.serving()
            assert {("n1", "n2"), ("n2", "n1")} <= set(links.links), "the proxy does not know who dials"
            await nemesis(links, cluster, chance)
            links.heal()

        result = await trial(cluster, break_links, seed=seed, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 20


def test_the_proxy_finds_whole_messages() -> None:
    small = bytes([0x82, 0x80 | 3, 1, 2, 3, 4]) + b"abc"
    large = bytes([0x82, 0x80 | 126]) + (300).to_bytes(2, "big") + b"mask" + b"x" * 300
    text = bytes([0x81, 2]) + b"hi"
    head = b"GET /x HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
    stream = head + small + text + large
    for size in (1, 7, len(stream)):
        messages = Messages()
        pieces = [piece for at in range(0, len(stream), size) for piece in messages.feed(stream[at : at + size])]
        assert pieces == [(head, False), (small, True), (text, False), (large, True)]
    plain = Messages()
    assert plain.feed(b"PUT /x HTTP/1.1\r\n\r\nbody") == [(b"PUT /x HTTP/1.1\r\n\r\nbody", False)]
    assert plain.feed(b"more") == [(b"more", False)]
