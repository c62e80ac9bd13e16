"""``raftkit ui``: where the cluster can be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raftkit_cli.client import with_client
from raftkit_cli.options import Invocation, Verb, pass_invocation

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient, NodeStatus


@click.command(cls=Verb, name="ui")
@click.option("--open", "opens", is_flag=True, help="Open it in the browser, too.")
@pass_invocation
def ui(invocation: Invocation, opens: bool) -> None:
    """Where a page shows the cluster.

    Prints the address of the page of a node that answers. With tokens the page asks for one; the role read is enough.
    """

    from raftkit_core.errors import NotFound

    async def work(client: ClusterClient) -> NodeStatus:
        return await client.status()

    status = with_client(invocation, work)
    own = next((member.node.client_address for member in status.members if member.id == status.id), None)
    if own is None:
        raise NotFound(
            f"{status.id} belongs to no cluster yet, so it does not say its address",
            hint="open /ui at the address it listens on; or begin a cluster: raftkit cluster init ID=URL",
        )
    address = f"{own.rstrip('/')}/ui"
    if opens:
        click.launch(address)
    invocation.out.result("ui", {"node": status.id, "url": address}, lambda: invocation.out.line(address))
