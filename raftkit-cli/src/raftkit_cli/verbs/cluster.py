"""``raftkit cluster``: begin one."""

from __future__ import annotations

import click

from raftkit_cli.client import with_client
from raftkit_cli.options import Invocation, NodeAssignment, VerbGroup, pass_invocation, split_client


@click.group(cls=VerbGroup, name="cluster", no_args_is_help=True)
def cluster() -> None:
    """Begin a cluster."""


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


def check_node_id(node_id: str) -> None:
    """Raises: click.UsageError when this cannot name a node."""
    from raftkit_core.types.ids import is_node_id

    if not is_node_id(node_id):
        raise click.UsageError(
            f"{node_id!r} is not a node id: use 1 to 63 letters, digits, '.', '_' or '-', first a letter or digit"
        )
