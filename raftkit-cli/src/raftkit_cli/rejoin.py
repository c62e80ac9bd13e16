"""What ``raftkit member rejoin`` does: the steps that are left, from what the cluster and the node say now.

Every step is safe to repeat, and the plan is made anew each time, so an interrupted rejoin is simply run again. The one
thing that is lost with an interruption is the address of a node that is removed already: then ``--url`` says it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from raftkit_cli.failures import CliError

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient, MemberStatus, NodeStatus
    from raftkit_core.types.membership import Node


class Rejoin:
    """``steps`` of remove, add, promote, in this order; none: there is nothing to do."""

    def __init__(self, node_id: str, node: Node, *, goal: str, steps: list[str], member: MemberStatus | None) -> None:
        self.node_id = node_id
        self.node = node
        self.goal = goal
        self.steps = steps
        self._member = member

    @classmethod
    async def plan(
        cls, client: ClusterClient, node_id: str, *, url: str | None, client_url: str | None, as_learner: bool
    ) -> Rejoin:
        """Raises: CliError if nobody knows where the node is, or it does not answer, or another node answers there."""
        from raftkit_cli.verbs.member import leader_view
        from raftkit_core.types.membership import Node

        status = await leader_view(client)
        member = next((item for item in status.members if item.id == node_id), None)
        if url is not None:
            node = Node(url, client_url)
        elif member is not None:
            node = Node(
                member.node.peer, member.node.client if client_url is None else client_url, None, member.node.tags
            )
        else:
            raise CliError(
                "UNKNOWN_NODE",
                f"{node_id} is not a member, so nobody knows its address",
                hint=f"say where it is: raftkit member rejoin {node_id} --url URL",
            )
        answer = await _ask(client, node_id, node)
        goal = "learner" if as_learner else "voter"
        is_same = member is not None and member.node.store_id in (None, answer.store_id)
        is_same = is_same and member is not None and (url is None or member.node.peer == node.peer)
        steps: list[str] = []
        if member is not None and not is_same:
            steps += ["remove", "add"]
        elif member is None:
            steps.append("add")
        if not as_learner and (steps or member is None or not member.voter):
            steps.append("promote")
        _check_can_join(answer, status, steps)
        return cls(node_id, node, goal=goal, steps=steps, member=member)

    @property
    def removes_member(self) -> bool:
        return "remove" in self.steps

    @property
    def words(self) -> str:
        if not self.steps:
            return f"{self.node_id}: the membership names the store it has, and its address"
        return f"{self.node_id}: {', '.join(self.steps)}"

    @property
    def fields(self) -> dict[str, Any]:
        return {"node": self.node_id, "address": self.node.peer, "goal": self.goal, "steps": self.steps}

    async def carry_out(
        self, client: ClusterClient, *, tell: Callable[[str], None], catch_up: Callable[[], Awaitable[None]]
    ) -> None:
        for step in self.steps:
            if step == "remove":
                tell(f"removing {self.node_id} as it was")
                await self._remove(client)
            elif step == "add":
                tell(f"adding {self.node_id} as a learner")
                await client.add_learner(self.node_id, self.node, blocking=False)
                await catch_up()
            else:
                tell(f"making {self.node_id} a voter")
                await catch_up()
                voters = await self._voters(client)
                await client.change_membership(sorted({*voters, self.node_id}), retain=True)

    async def _remove(self, client: ClusterClient) -> None:
        assert self._member is not None, "only a member is removed"
        if self._member.voter:
            others = [voter for voter in await self._voters(client) if voter != self.node_id]
            if not others:
                raise CliError(
                    "EMPTY_MEMBERSHIP",
                    f"{self.node_id} is the only voter: without its store there is no cluster to come back to",
                    hint="restore a backup: raftkit storage restore, then raftkit recover",
                )
            await client.change_membership(others, retain=False)
        else:
            await client.remove_nodes([self.node_id])

    async def _voters(self, client: ClusterClient) -> list[str]:
        from raftkit_cli.verbs.member import leader_view

        return sorted(item.id for item in (await leader_view(client)).members if item.voter)


async def _ask(client: ClusterClient, node_id: str, node: Node) -> NodeStatus:
    from raftkit_core.errors import RPCError

    try:
        answer = await client.status_of(node.client_address)
    except RPCError as error:
        raise CliError(
            "UNREACHABLE",
            f"{node_id} does not answer at {node.client_address}: {error.message}",
            hint=f"start it first, with an empty folder; if it is elsewhere: raftkit member rejoin {node_id} --url URL",
        ) from error
    if answer.id != node_id:
        raise CliError(
            "IDENTITY",
            f"at {node.client_address} there is {answer.id}, not {node_id}",
            hint="check the addresses: raftkit member list",
        )
    return answer


def _check_can_join(answer: NodeStatus, status: NodeStatus, steps: list[str]) -> None:
    """A store of another cluster (also: of this one before it was recovered) never comes in."""
    if steps and answer.cluster_id not in (None, status.cluster_id):
        raise CliError(
            "IDENTITY",
            f"the store of {answer.id} belongs to cluster {answer.cluster_id}, this is {status.cluster_id}",
            hint=f"stop {answer.id}, start it with an empty folder, then: raftkit member rejoin {answer.id}",
        )
