"""Three nodes in three processes, over HTTP: memory and SQLite, a client in the leader and a remote one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec

from raftkit_core.types.kv import Put

from ..baselines.etcd import EtcdCluster
from ..baselines.pysyncobj import SyncObjCluster
from ..cluster import RaftkitCluster
from ..drive import closed_loop
from ..measure import Contender, Sample, Setting
from ..pipelined import PipelinedClient

SHORT = {"memory": "memory", "sqlite": "SQLite"}
DURABLE = {"memory": "none (memory)", "sqlite": "every write synced (SQLite FULL)"}


def _setting(storage: str, payload: int, outstanding: int, client: str) -> Setting:
    return Setting(
        durability=DURABLE[storage],
        processes="three",
        transport="HTTP upgraded to frames, loopback",
        payload=f"{payload} B",
        client=client,
        outstanding=outstanding,
    )


def in_leader_setting(storage: str, payload: int, outstanding: int) -> Setting:
    return _setting(storage, payload, outstanding, "in the leader's loop")


def in_leader(
    cluster: RaftkitCluster, storage: str, outstanding: int, seconds: float, payload: int
) -> tuple[Setting, Callable[[], object]]:
    async def run() -> Sample:
        leader = await cluster.leader()
        order = {"do": "write", "outstanding": outstanding, "seconds": seconds, "payload": payload}
        return Sample(**await cluster.workers[leader].ask(order, timeout=seconds + 30))

    return in_leader_setting(storage, payload, outstanding), run


def remote(
    cluster: RaftkitCluster, storage: str, outstanding: int, seconds: float, payload: int
) -> tuple[Setting, Callable[[], object]]:
    encoder = msgspec.msgpack.Encoder()
    commands = [encoder.encode(Put(f"key{number:05d}", b"v" * (payload - 12))) for number in range(1000)]

    async def run() -> Sample:
        async with PipelinedClient(cluster.addresses[await cluster.leader()]) as client:

            async def write(number: int) -> None:
                await client.write(commands[number % 1000])

            return await closed_loop(write, outstanding, seconds, every=True)

    return _setting(storage, payload, outstanding, "remote, one pipelined WebSocket"), run


def per_request(
    cluster: RaftkitCluster, storage: str, outstanding: int, seconds: float, payload: int
) -> tuple[Setting, Callable[[], object]]:
    """One HTTP request per write. A connection carries one at a time, so that each caller has its own, kept open: with
    fewer, what is measured is whom the client's pool lets wait (aiohttp's prefers who has just had a connection)."""
    import aiohttp

    body = msgspec.msgpack.encode(Put("key00001", b"v" * (payload - 12)))

    async def run() -> Sample:
        url = f"{cluster.addresses[await cluster.leader()]}/v1/write"
        async with AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)))
                for _ in range(outstanding)
            ]

            async def write(number: int) -> None:
                headers = {"Content-Type": "application/msgpack"}
                async with sessions[number].post(url, data=body, headers=headers) as answer:
                    if answer.status != 200:
                        raise RuntimeError(await answer.text())
                    await answer.read()

            return await closed_loop(write, outstanding, seconds, every=True)

    return _setting(storage, payload, outstanding, f"remote, a POST per write, {outstanding} connections"), run


def reads(
    cluster: RaftkitCluster, policy: str, where: str, outstanding: int, seconds: float
) -> tuple[Setting, Callable[[], object]]:
    async def run() -> Sample:
        leader = await cluster.leader()
        node = leader if where == "leader" else next(other for other in cluster.workers if other != leader)
        order = {"do": "read", "policy": policy, "outstanding": outstanding, "seconds": seconds}
        return Sample(**await cluster.workers[node].ask(order, timeout=seconds + 30))

    setting = Setting(
        durability="reads",
        processes="three",
        transport="HTTP upgraded to frames, loopback",
        payload="100 B",
        client=f"in the {where}'s loop",
        outstanding=outstanding,
    )
    return setting, run


def syncobj(cluster: SyncObjCluster, mode: str, outstanding: int, seconds: float, payload: int) -> Contender:
    return Contender(
        name=f"PySyncObj, {mode}",
        setting=Setting(
            durability="none (memory)",
            processes="three",
            transport="TCP, loopback",
            payload=f"{payload} B",
            client="in the leader's process, callbacks",
            outstanding=outstanding,
        ),
        run=lambda: cluster.write(outstanding, seconds, payload),
    )


def etcd(cluster: EtcdCluster, outstanding: int, seconds: float, payload: int, *, is_read: bool = False) -> Contender:
    return Contender(
        name=f"etcd {cluster.version}" + (", linearizable reads" if is_read else ""),
        setting=Setting(
            durability="reads" if is_read else "every write synced (WAL)",
            processes="three",
            transport="gRPC, loopback",
            payload=f"{payload} B",
            client=f"remote, aetcd, {min(8, outstanding)} connections, at the leader",
            outstanding=outstanding,
        ),
        run=lambda: cluster.read(outstanding, seconds) if is_read else cluster.write(outstanding, seconds, payload),
    )
