"""``raftkit member``: who belongs to the cluster, and changing it one safe step at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.client import with_client
from raftkit_cli.completion import members
from raftkit_cli.failures import CliError
from raftkit_cli.options import Duration, Invocation, VerbGroup, pass_invocation
from raftkit_cli.verbs.cluster import check_node_id

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient, MembershipResult, MemberStatus, NodeStatus

CAUGHT_UP_ENTRIES = 10
"""A learner this close to the leader counts as caught up: a promotion costs no visible pause."""

_dry_run = click.option("--dry-run", is_flag=True, help="Only say what it would do.")
_force = click.option("--force", is_flag=True, help="Also when the reachable voters could not survive it.")


@click.group(cls=VerbGroup, name="member", no_args_is_help=True)
def member() -> None:
    """List, add, promote and remove members."""


@member.command("list")
@pass_invocation
def list_members(invocation: Invocation) -> None:
    """Every member, voter or learner, with its address."""

    async def work(client: ClusterClient) -> NodeStatus:
        return await leader_view(client)

    status = with_client(invocation, work)
    data = {"members": [_fields(item) for item in status.members], "joint": status.joint, "leader": status.leader}

    def human() -> None:
        rows = [
            (item.id, "voter" if item.voter else "learner", "leader" if item.id == status.leader else "", address(item))
            for item in status.members
        ]
        invocation.out.table(("NODE", "MEMBER", "", "ADDRESS"), rows)
        if status.joint:
            invocation.out.note("a membership change is under way")

    invocation.out.result("member.list", data, human)


@member.command("add")
@click.argument("node")
@click.argument("url")
@click.option("--client", "client_url", metavar="URL", help="Where clients reach it, if that is another address.")
@click.option("--wait", type=Duration(), default="60s", show_default=True, help="How long it may take to catch up.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the learner is a member.")
@click.option("--voter", is_flag=True, help="Make it a voter as soon as it has caught up.")
@_dry_run
@pass_invocation
def add(
    invocation: Invocation,
    node: str,
    url: str,
    client_url: str | None,
    wait: float,
    no_wait: bool,
    voter: bool,
    dry_run: bool,
) -> None:
    """Add NODE at URL as a learner, and wait until it has caught up.

    Start it first: raftkit node run --id NODE --network URL …   Make it a voter at once by --voter, or afterwards by
    raftkit member promote.
    """
    from raftkit_core.types.membership import Node

    check_node_id(node)
    if voter and no_wait:
        raise click.UsageError("a voter is made when it has caught up: leave out --no-wait, or --voter")

    async def work(client: ClusterClient) -> tuple[dict[str, Any], MembershipResult | None]:
        status = await leader_view(client)
        before = _voters(status)
        change = _plan("add", node, before, sorted({*before, node}) if voter else before)
        if any(item.id == node and item.voter for item in status.members):
            raise CliError("CHANGE_MEMBERSHIP", f"{node} is a voter already", hint="raftkit member list")
        if voter:
            _tell(invocation, change)
        if dry_run:
            return change, None
        result = await client.add_learner(node, Node(url, client_url), blocking=False)
        if not no_wait:
            await _catch_up(invocation, client, node, wait)
        if voter:
            voters = _voters(await leader_view(client))
            result = await client.change_membership(sorted({*voters, node}), retain=True)
        return change, result

    limit = invocation.timeout_s if no_wait else wait + 4 * invocation.timeout_s
    change, result = with_client(invocation, work, changes="the addition", limit_s=limit)
    done = "is a learner" if no_wait else "is a learner and has caught up"
    text = f"{node} {done}. Make it a voter: raftkit member promote {node}"
    if voter:
        text = f"{node} has caught up and is a voter"
    _report(invocation, "member.add", change, result, text)


async def _catch_up(invocation: Invocation, client: ClusterClient, node: str, wait_s: float) -> None:
    """Watch the leader's view of a learner until it is close, telling how far it is."""
    told: int | None = None
    contact: str | None = None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        status = await leader_view(client)
        peer = (status.replication or {}).get(node)
        if peer is not None and peer.matching is not None:
            behind = max(0, (status.last_log_index or 0) - peer.matching)
            if behind != told:
                invocation.out.note(f"{node}: {behind} entries behind {status.id} ({peer.state})")
                told = behind
            if behind <= CAUGHT_UP_ENTRIES:
                return
        elif peer is not None and peer.last_error != contact:
            contact = peer.last_error
            invocation.out.note(f"{node}: no contact yet" + (f" ({contact})" if contact else ""))
        if loop.time() >= deadline:
            behind_text = "was not reached" if told is None else f"is {told} entries behind"
            raise CliError(
                "TIMEOUT",
                f"{node} is a learner, but {behind_text} after {wait_s:g} s",
                hint=f"check that it runs and is reachable (raftkit status), then: raftkit member promote {node}",
            )
        await asyncio.sleep(0.1)


@member.command("promote")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE…", shell_complete=members)
@_force
@_dry_run
@pass_invocation
def promote(invocation: Invocation, nodes: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Make learners voters."""

    async def work(client: ClusterClient) -> tuple[dict[str, Any], MembershipResult | None]:
        status = await leader_view(client)
        known = {item.id for item in status.members}
        for node in nodes:
            if node not in known:
                raise CliError(
                    "UNKNOWN_NODE", f"{node} is not a member", hint=f"add it first: raftkit member add {node} URL"
                )
        before = _voters(status)
        after = sorted({*before, *nodes})
        change = _plan("promote", ", ".join(nodes), before, after)
        _tell(invocation, change)
        if dry_run:
            return change, None
        if after == before and not status.joint:
            invocation.out.note("voters already: nothing to do")
            return change, None
        return change, await client.change_membership(after, retain=True, force=force)

    change, result = with_client(invocation, work, changes="the promotion", limit_s=3 * invocation.timeout_s)
    _report(invocation, "member.promote", change, result, f"voters now: {', '.join(change['voters_after'])}")


@member.command("remove")
@click.argument("node", shell_complete=members)
@_force
@_dry_run
@pass_invocation
def remove(invocation: Invocation, node: str, force: bool, dry_run: bool) -> None:
    """Take NODE out of the cluster, voter or learner."""

    async def look(client: ClusterClient) -> tuple[dict[str, Any], bool]:
        status = await leader_view(client)
        found = next((item for item in status.members if item.id == node), None)
        if found is None:
            raise CliError("UNKNOWN_NODE", f"{node} is not a member", hint="raftkit member list")
        before = _voters(status)
        after = [voter for voter in before if voter != node]
        if not after:
            raise CliError(
                "EMPTY_MEMBERSHIP",
                f"{node} is the last voter; without it there is no cluster",
                hint="stop the node and delete its data folder if the cluster is no longer wanted",
            )
        return _plan("remove", node, before, after), found.voter

    change, is_voter = with_client(invocation, look)
    _tell(invocation, change)
    if dry_run:
        _report(invocation, "member.remove", change, None, "")
        return
    invocation.confirm(f"Remove {node} from the cluster?")

    async def work(client: ClusterClient) -> MembershipResult:
        if is_voter:
            return await client.change_membership(change["voters_after"], retain=False, force=force)
        return await client.remove_nodes([node])

    result = with_client(invocation, work, changes="the removal", limit_s=3 * invocation.timeout_s)
    _report(
        invocation,
        "member.remove",
        change,
        result,
        f"{node} is no longer a member; stop it and keep or delete its data",
    )


@member.command("rejoin")
@click.argument("node", shell_complete=members)
@click.option("--url", metavar="URL", help="Where it is reached. [default: the address it has as a member]")
@click.option("--client", "client_url", metavar="URL", help="Where clients reach it, if that is another address.")
@click.option("--learner", is_flag=True, help="Leave it a learner.")
@click.option("--wait", type=Duration(), default="60s", show_default=True, help="How long it may take to catch up.")
@_dry_run
@pass_invocation
def rejoin(
    invocation: Invocation,
    node: str,
    url: str | None,
    client_url: str | None,
    learner: bool,
    wait: float,
    dry_run: bool,
) -> None:
    """Let NODE come back with an empty or restored store, or at another address: remove, add as a learner, promote.

    Start it first. A node that lost its store has forgotten votes and entries, so its old membership must not count any
    more. Interrupted, run it again: it goes on with what is left to do.
    """
    from raftkit_cli.rejoin import Rejoin

    check_node_id(node)

    async def look(client: ClusterClient) -> Rejoin:
        return await Rejoin.plan(client, node, url=url, client_url=client_url, as_learner=learner)

    plan = with_client(invocation, look, limit_s=3 * invocation.timeout_s)
    invocation.out.note(plan.words)
    if plan.steps and not dry_run:
        if plan.removes_member:
            invocation.confirm(f"Remove {node} and add it again as it is now?")

        async def work(client: ClusterClient) -> None:
            await plan.carry_out(
                client, tell=invocation.out.note, catch_up=lambda: _catch_up(invocation, client, node, wait)
            )

        with_client(invocation, work, changes="the rejoin", limit_s=wait + 8 * invocation.timeout_s)
    data = {**plan.fields, "dry_run": dry_run, "done": bool(plan.steps) and not dry_run}

    def human() -> None:
        if not plan.steps:
            invocation.out.line(f"{node} is a {plan.goal} with the store it has: nothing to do")
        elif dry_run:
            invocation.out.line("nothing was changed")
        else:
            invocation.out.line(f"{node} is a {plan.goal} again")

    invocation.out.result("member.rejoin", data, human)


async def leader_view(client: ClusterClient) -> NodeStatus:
    """The leader's own status: the newest membership and the replication of every peer.

    Raises: CliError when nobody leads.
    """
    from raftkit_cli.survey import find_leader

    status, leader = await find_leader(client)
    if leader is not None:
        return leader
    if not status.members:
        raise CliError(
            "NO_LEADER", f"{status.id} belongs to no cluster yet", hint="begin one: raftkit cluster init ID=URL …"
        )
    raise CliError(
        "NO_LEADER",
        f"{status.id} knows no leader that answers (term {status.term})",
        hint="an election may be under way: try again, or see who is missing: raftkit status",
    )


def address(item: MemberStatus) -> str:
    """Where a member is reached, both addresses where they differ."""
    if item.node.client_address == item.node.peer:
        return item.node.peer
    return f"{item.node.peer} (clients: {item.node.client_address})"


def _fields(item: MemberStatus) -> dict[str, Any]:
    return {
        "id": item.id,
        "voter": item.voter,
        "peer": item.node.peer,
        "client": item.node.client_address,
        "store_id": item.node.store_id,
    }


def _voters(status: NodeStatus) -> list[str]:
    return sorted(item.id for item in status.members if item.voter)


def _plan(action: str, node: str, before: list[str], after: list[str]) -> dict[str, Any]:
    return {
        "action": action,
        "node": node,
        "voters_before": before,
        "voters_after": after,
        "quorum_before": len(before) // 2 + 1,
        "quorum_after": len(after) // 2 + 1,
        "tolerates_before": (len(before) - 1) // 2,
        "tolerates_after": (len(after) - 1) // 2,
    }


def _tell(invocation: Invocation, change: dict[str, Any]) -> None:
    """What a change does to the quorum, before it is made."""
    for moment in ("before", "after"):
        voters = change[f"voters_{moment}"]
        invocation.out.note(
            f"{moment:6}: {len(voters)} voters ({', '.join(voters)}), quorum {change[f'quorum_{moment}']},"
            f" tolerates {change[f'tolerates_{moment}']} failed"
        )
    if change["voters_before"] != change["voters_after"] and len(change["voters_after"]) == 2:
        invocation.out.warn("two voters tolerate no failure; three tolerate one")


def _report(
    invocation: Invocation, verb: str, change: dict[str, Any], result: MembershipResult | None, done: str
) -> None:
    data = {
        **change,
        "changed": result is not None,
        "members": None if result is None else [_fields(item) for item in result.members],
        "log_index": None if result is None else result.log_index,
    }

    def human() -> None:
        if result is None:
            invocation.out.line(f"nothing was changed ({change['action']} {change['node']})")
        else:
            invocation.out.line(done)

    invocation.out.result(verb, data, human)
