"""Membership changes: from a wish to the next configuration (openraft.md §2.12, DESIGN §4 and §5)."""

from __future__ import annotations

from collections.abc import Mapping

from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.errors import (
    ChangeMembershipError,
    EmptyMembership,
    InProgress,
    LearnerNotFound,
    StoreIdChange,
)
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import (
    AddNodes,
    AddVoterIds,
    AddVoters,
    ChangeMembers,
    Membership,
    Node,
    RemoveNodes,
    RemoveVoters,
    ReplaceAllNodes,
    ReplaceAllVoters,
    SetNodes,
)


def next_membership(
    state: MembershipState, change: ChangeMembers, *, retain: bool, store_ids: Mapping[NodeId, str]
) -> Membership | ChangeMembershipError:
    """The membership the next entry should hold, or why there is none.

    The goal is the change applied to the *last* configuration, so repeating a change after its joint step gives the
    uniform one. ``store_ids`` is what nodes said of themselves: it binds those that are new or not bound yet.
    """
    if not state.is_settled:
        return InProgress(
            f"a membership change at {state.effective.log_id} is not committed yet", hint="wait a moment and try again"
        )
    current = state.effective.membership
    nodes = _apply_to_nodes(current, change)
    if isinstance(nodes, ChangeMembershipError):
        return nodes
    for node_id, store_id in store_ids.items():
        node = nodes.get(node_id)
        # What a node said of itself beats what the caller says of it; a store once bound stays.
        if node is not None and (node.store_id is None or node_id not in current.nodes):
            nodes[node_id] = _bind(node, store_id)
    configs: tuple[tuple[NodeId, ...], ...] = current.configs
    goal = _goal(current, change)
    if goal is not None:
        if not goal:
            return EmptyMembership("the change would leave no voter", hint="keep at least one voter")
        configs = (goal,) if goal in current.configs else (current.configs[-1], goal)
        if not retain:
            left = {voter for config in configs for voter in config}
            for node_id in current.voter_ids:
                if node_id not in left:
                    nodes.pop(node_id, None)
    for config in configs:
        for voter in config:
            if voter not in nodes:
                return LearnerNotFound(
                    f"{voter} is not a member", hint=f"add it first: raftkit member add {voter} ADDRESS"
                )
    try:
        return Membership.of(configs, nodes)
    except ValueError as error:
        return ChangeMembershipError(str(error))


def _bind(node: Node, store_id: str) -> Node:
    return Node(node.peer, node.client, store_id, node.tags)


def _goal(current: Membership, change: ChangeMembers) -> tuple[NodeId, ...] | None:
    """The voters wished for; None if the change leaves voters alone."""
    last = set(current.configs[-1]) if current.configs else set()
    match change:
        case AddVoterIds(ids=ids):
            return tuple(sorted(last | set(ids)))
        case AddVoters(nodes=nodes):
            return tuple(sorted(last | set(nodes)))
        case RemoveVoters(ids=ids):
            return tuple(sorted(last - set(ids)))
        case ReplaceAllVoters(ids=ids):
            return tuple(sorted(set(ids)))
        case _:
            return None


def _apply_to_nodes(current: Membership, change: ChangeMembers) -> dict[NodeId, Node] | ChangeMembershipError:
    nodes = dict(current.nodes)
    match change:
        case AddVoters(nodes=added) | AddNodes(nodes=added):
            for node_id, node in added.items():
                nodes.setdefault(node_id, node)
        case SetNodes(nodes=added):
            for node_id, node in added.items():
                known = nodes.get(node_id)
                # A known node keeps its store id whatever was passed: rebinding is how a wiped voter would count.
                nodes[node_id] = node if known is None else Node(node.peer, node.client, known.store_id, node.tags)
        case RemoveNodes(ids=ids):
            for node_id in ids:
                if current.is_voter(node_id):
                    return LearnerNotFound(
                        f"{node_id} is a voter", hint=f"make it a learner first: raftkit member remove {node_id}"
                    )
                nodes.pop(node_id, None)
        case ReplaceAllNodes(nodes=replacement):
            for node_id, node in replacement.items():
                known = current.nodes.get(node_id)
                if known is not None and current.is_voter(node_id) and node.store_id not in (None, known.store_id):
                    return StoreIdChange(
                        f"{node_id} is a voter bound to store {known.store_id}",
                        hint=f"raftkit member rejoin {node_id}",
                    )
            nodes = {
                node_id: node
                if (known := current.nodes.get(node_id)) is None
                else Node(node.peer, node.client, known.store_id, node.tags)
                for node_id, node in replacement.items()
            }
        case _:
            pass
    return nodes
