"""Waiting for a local cluster: until a leader serves, until one node answers; with the log of a node that died."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from raftkit_cli.client import make_client, run
from raftkit_cli.cluster.layout import ClusterFolder, LocalNode
from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_core.errors import RaftError
from raftkit_core.network.client import ClusterClient, NodeStatus

POLL_S = 0.05
TAIL_LINES = 15
PROBE_KEY = "raftkit/serving"
"""Read, never written: a linearizable read is answered by a leader that can commit."""


class Served:
    """A leader that answered a linearizable read."""

    def __init__(self, leader: str, term: int) -> None:
        self.leader = leader
        self.term = term


def wait_until_served(
    invocation: Invocation, folder: ClusterFolder, started: Iterable[LocalNode], *, wait_s: float
) -> Served:
    """Raises: CliError when a node that was started died, or nobody leads within ``wait_s``."""

    async def work() -> Served:
        async with make_client(invocation, folder.cluster.endpoints, timeout_s=1.0) as client:
            return await until_served(client, folder, list(started), wait_s=wait_s)

    return run(work())


async def until_served(
    client: ClusterClient, folder: ClusterFolder, started: list[LocalNode], *, wait_s: float
) -> Served:
    """See :func:`wait_until_served`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    reason = "nobody was asked"
    while True:
        check_alive(folder, started)
        try:
            status = await client.status()
            if status.leader is not None:
                await client.kv_get(PROBE_KEY)
                return Served(status.leader, status.term)
            reason = f"{status.id} knows no leader in term {status.term}"
        except RaftError as error:
            reason = error.message
        if loop.time() >= deadline:
            raise CliError(
                "NO_LEADER",
                f"no leader serves after {wait_s:g} s: {reason}",
                hint=f"raftkit local ps --dir {folder.path}, then raftkit local logs --dir {folder.path}",
            )
        await asyncio.sleep(POLL_S)


def wait_until_answers(invocation: Invocation, folder: ClusterFolder, node: LocalNode, *, wait_s: float) -> NodeStatus:
    """Raises: CliError when the node died or does not answer within ``wait_s``."""

    async def work() -> NodeStatus:
        async with make_client(invocation, [folder.cluster.url(node)], timeout_s=1.0) as client:
            return await until_answers(client, folder, node, wait_s=wait_s)

    return run(work())


async def until_answers(client: ClusterClient, folder: ClusterFolder, node: LocalNode, *, wait_s: float) -> NodeStatus:
    """See :func:`wait_until_answers`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    address = folder.cluster.url(node)
    while True:
        check_alive(folder, [node])
        try:
            return await client.status_of(address)
        except RaftError as error:
            reason = error.message
        if loop.time() >= deadline:
            raise CliError(
                "NODE_FAILED",
                f"{node.id} does not answer after {wait_s:g} s: {reason}",
                hint=f"read its log: raftkit local logs {node.id} --dir {folder.path}",
            )
        await asyncio.sleep(POLL_S)


def check_alive(folder: ClusterFolder, nodes: Iterable[LocalNode]) -> None:
    """Raises: CliError with the end of its log when one of ``nodes`` has died."""
    for node in nodes:
        if folder.state(node) == "gone":
            lines = folder.log_tail(node, TAIL_LINES)
            told = "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"
            raise CliError(
                "NODE_FAILED",
                f"{node.id} ended by itself. Its last words:\n{told}",
                hint=f"correct what it says, then run the same command again; all of it: {folder.log_path(node)}",
                data={"node": node.id, "log": lines},
            )
