"""Reads of one key, three nodes in three processes: by a remote client beside etcd, and in a node's own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..baselines.etcd import EtcdCluster
from ..cluster import RaftkitCluster
from ..drive import closed_loop
from ..measure import Contender, Sample, Setting
from ..pipelined import PipelinedClient
from . import processes

REMOTE = (("linearizable", "leader"), ("linearizable", "follower"), ("lease", "leader"), ("stale", "follower"))
GOAL = 3.0


def contenders(ours: RaftkitCluster, peer: EtcdCluster | None, outstanding: int, seconds: float) -> list[Contender]:
    """etcd's linearizable reads first, then ours by the same kind of client, then those without a client's network."""
    found: list[Contender] = []
    against = None
    if peer is not None:
        other = processes.etcd(peer, outstanding, seconds, 100, is_read=True)
        found.append(other)
        against = other.name
    for policy, where, is_shared in ((*each, is_shared) for is_shared in (True, False) for each in REMOTE):
        if policy == "stale" and not is_shared:
            continue
        setting, run = remote(ours, policy, where, outstanding, seconds, is_shared)
        has_target = against is not None and policy != "stale" and is_shared
        found.append(
            Contender(
                name=f"raftkit, remote client, {policy} at the {where}" + ("" if is_shared else ", a frame each"),
                setting=setting,
                run=run,
                against=against,
                goal=GOAL if has_target else None,
            )
        )
    for policy, where in REMOTE:
        setting, made = processes.reads(ours, policy, where, outstanding, seconds)
        found.append(
            Contender(name=f"raftkit, in the node, {policy} at the {where}", setting=setting, run=made, against=against)
        )
    return found


def remote(
    cluster: RaftkitCluster, policy: str, where: str, outstanding: int, seconds: float, is_shared: bool
) -> tuple[Setting, Callable[[], Any]]:
    """``is_shared``: what callers ask for in one turn of the loop leaves as one frame, as writes do. Else a frame a
    read, as etcd's client sends a request a read."""
    body = {"get": {"key": "key00001"}, "consistency": policy}

    async def run() -> Sample:
        leader = await cluster.leader()
        node = leader if where == "leader" else next(other for other in cluster.workers if other != leader)
        async with PipelinedClient(cluster.addresses[node]) as client:

            async def read(number: int) -> None:
                await (client.read_among(policy, "key00001") if is_shared else client.read(body))

            return await closed_loop(read, outstanding, seconds, every=True)

    setting = msgspec.structs.replace(
        processes.in_leader_setting("memory", 100, outstanding),
        durability="reads",
        client=f"remote, one pipelined WebSocket, at the {where}" + ("" if is_shared else ", a frame a read"),
    )
    return setting, run
