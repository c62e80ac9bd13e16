"""``raftkit leader``: who leads, and handing it over."""

from __future__ import annotations

import click

from raftkit_cli.client import with_client
from raftkit_cli.completion import members
from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation, VerbGroup, pass_invocation


@click.group(cls=VerbGroup, name="leader", no_args_is_help=True)
def leader() -> None:
    """Show or hand over leadership."""


@leader.command("show")
@pass_invocation
def show(invocation: Invocation) -> None:
    """Say who leads, and in which term."""
    from raftkit_cli.survey import PER_NODE_S, find_leader
    from raftkit_core.network.client import ClusterClient, NodeStatus

    async def work(client: ClusterClient) -> tuple[NodeStatus, NodeStatus | None]:
        return await find_leader(client)

    asked, found = with_client(invocation, work, limit_s=2 * invocation.timeout_s + 2 * PER_NODE_S)
    seen = found or asked  # a leader that cannot be reached from here leads all the same
    if seen.leader is None:
        raise CliError(
            "NO_LEADER",
            f"{asked.id} knows no leader in term {asked.term}",
            hint="an election may be under way: try again, or see who is missing: raftkit status",
            data={"leader": None, "term": asked.term, "asked": asked.id},
        )
    address = next((member.node.client_address for member in seen.members if member.id == seen.leader), None)
    data = {"leader": seen.leader, "term": seen.term, "address": address, "asked": asked.id}
    invocation.out.result(
        "leader.show",
        data,
        lambda: invocation.out.line(f"{seen.leader}  term {seen.term}  {address or ''}".rstrip()),
    )


@leader.command("transfer")
@click.argument("node", required=False, shell_complete=members)
@pass_invocation
def transfer(invocation: Invocation, node: str | None) -> None:
    """Hand leadership to NODE, or to the voter that is furthest along."""
    from raftkit_core.network.client import ClusterClient

    async def work(client: ClusterClient) -> tuple[str | None, str]:
        before = (await client.status()).leader
        return before, await client.transfer_leader(node)

    before, after = with_client(invocation, work, changes="the transfer")
    invocation.out.result(
        "leader.transfer",
        {"from": before, "to": after},
        lambda: invocation.out.line(
            f"{after} leads already" if before == after else f"{after} leads now (was {before or 'nobody'})"
        ),
    )
