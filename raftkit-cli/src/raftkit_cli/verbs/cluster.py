"""``raftkit cluster``: begin one, and see what happened to it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.client import with_client
from raftkit_cli.options import Duration, Invocation, NodeAssignment, VerbGroup, pass_invocation, split_client

if TYPE_CHECKING:
    from raftkit_core.types.metrics import NodeEvent

FOREVER_S = 10 * 365 * 86400.0
"""Of --follow: it ends when it is interrupted."""


@click.group(cls=VerbGroup, name="cluster", no_args_is_help=True)
def cluster() -> None:
    """Begin a cluster, and see what happened to it."""


@cluster.command("init")
@click.argument("members", nargs=-1, required=True, type=NodeAssignment(), metavar="ID=URL…")
@pass_invocation
def init(invocation: Invocation, members: tuple[tuple[str, str], ...]) -> None:
    """Make the nodes ID=URL … the voters of a new cluster.

    Every node must run and be pristine. Without -e the listed nodes are asked. Done once; repeating it is harmless.

    \b
    raftkit cluster init n1=http://127.0.0.1:7401 n2=http://127.0.0.1:7402 n3=http://127.0.0.1:7403
    """
    from raftkit_core.network.client import ClusterClient
    from raftkit_core.types.membership import Node

    nodes = {node_id: Node(*split_client(url)) for node_id, url in members}
    if len(nodes) != len(members):
        raise click.UsageError("a node id is listed twice")
    if len({node.peer for node in nodes.values()}) != len(nodes):
        raise click.UsageError("two nodes have the same URL")
    for node_id in nodes:
        check_node_id(node_id)
    if not invocation.endpoints:
        invocation.endpoints = tuple(node.client_address for node in nodes.values())
    if len(nodes) == 2:
        invocation.out.warn("two voters tolerate no failure: neither can go on alone; three tolerate one")

    async def work(client: ClusterClient) -> None:
        await client.initialize(nodes)

    with_client(invocation, work, changes="the initialization")
    tolerated = (len(nodes) - 1) // 2
    data = {"members": [{"id": node_id, "address": node.peer} for node_id, node in nodes.items()]}
    invocation.out.result(
        "cluster.init",
        data,
        lambda: invocation.out.line(
            f"cluster of {len(nodes)} voters begun: {', '.join(nodes)} (tolerates {tolerated} failed). "
            "Look at it: raftkit status"
        ),
    )


@cluster.command("events")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C; with --json one document a line.")
@click.option("--node", "only", metavar="ID", help="Only of this node.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most the last N.")
@click.option("--interval", type=Duration(), default="1s", show_default=True, help="How often --follow asks.")
@pass_invocation
def events(invocation: Invocation, follow: bool, only: str | None, limit: int, interval: float) -> None:
    """Role changes, elections, membership changes, snapshots and stalls of every node, oldest first.

    Each node keeps its last 512 since it started. Times are those of the nodes' own clocks.
    """
    from raftkit_core.network.client import ClusterClient

    seen: dict[str, int] = {}

    async def ask(client: ClusterClient) -> list[tuple[str, NodeEvent]]:
        found = []
        for report in await client.survey(seen):
            if report.error is not None and not follow:
                invocation.out.note(f"{report.id}: {report.error}")
            for event in report.events:
                seen[report.id] = max(seen.get(report.id, 0), event.number)
                if only in (None, report.id):
                    found.append((report.id, event))
        return sorted(found, key=lambda item: (item[1].at_ms, item[1].number))[-limit:]

    async def go_on(client: ClusterClient) -> None:
        while True:
            for node_id, event in await ask(client):
                shown = partial(invocation.out.line, _line(event))
                invocation.out.streamed("cluster.events", _event_data(node_id, event), shown)
            await asyncio.sleep(interval)

    if follow:
        invocation.is_endless = True
        with_client(invocation, go_on, limit_s=FOREVER_S)
        return
    told = with_client(invocation, ask)
    data = {"events": [_event_data(node_id, event) for node_id, event in told]}

    def human() -> None:
        for _, event in told:
            invocation.out.line(_line(event))

    invocation.out.result("cluster.events", data, human)


def _event_data(node_id: str, event: NodeEvent) -> dict[str, Any]:
    at = datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "node": node_id,
        "number": event.number,
        "at": at,
        "at_ms": event.at_ms,
        "term": event.term,
        "kind": event.kind,
        "message": event.message,
    }


def _line(event: NodeEvent) -> str:
    at = datetime.fromtimestamp(event.at_ms / 1000).strftime("%H:%M:%S.%f")[:-3]
    term = f"term {event.term}" if event.term else ""
    return f"{at}  {event.kind:10}  {term:9}  {event.message}"


def check_node_id(node_id: str) -> None:
    """Raises: click.UsageError when this cannot name a node."""
    from raftkit_core.types.ids import is_node_id

    if not is_node_id(node_id):
        raise click.UsageError(
            f"{node_id!r} is not a node id: use 1 to 63 letters, digits, '.', '_' or '-', first a letter or digit"
        )
