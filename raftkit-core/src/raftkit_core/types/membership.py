"""Who belongs to the cluster: nodes, voter configurations, and the ways to change them (openraft 2.2, 2.12)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from raftkit_core.types.ids import NodeId, is_node_id
from raftkit_core.types.log_id import LogId


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a node is reached.

    ``peer`` is opaque to core and parsed by the network plugin; ``client=None`` means the client API has the same
    address. ``store_id`` binds the member to one store (32 hex digits): grants and acknowledgements of any other store
    do not count. None matches any store, which is what is lost when a node is added with ``bind=False``.
    """

    peer: str
    client: str | None = None
    store_id: str | None = None
    tags: dict[str, str] = {}

    @property
    def client_address(self) -> str:
        """Where clients reach this node."""
        return self.peer if self.client is None else self.client


VoterSet: TypeAlias = tuple[NodeId, ...]


class Membership(msgspec.Struct, frozen=True):
    """Voter configurations (one: uniform, two: joint) and every node, learners included.

    ``configs`` holds sorted tuples without repetition; ``nodes`` is keyed in sorted order and never mutated.
    A quorum is a strict majority in *every* configuration; the quorum of no configuration is False, not vacuously true.
    """

    configs: tuple[VoterSet, ...] = ()
    nodes: dict[NodeId, Node] = {}

    @classmethod
    def of(cls, configs: Iterable[Iterable[NodeId]], nodes: Mapping[NodeId, Node]) -> Membership:
        """Build with everything sorted.

        Raises:
            ValueError: a configuration is empty, a voter has no node, or a node id is malformed.
        """
        sorted_configs = tuple(tuple(sorted(set(config))) for config in configs)
        membership = cls(sorted_configs, {node_id: nodes[node_id] for node_id in sorted(nodes)})
        problem = membership.problem()
        if problem is not None:
            raise ValueError(problem)
        return membership

    def problem(self) -> str | None:
        """Why :meth:`of` cannot have built this; None if it can."""
        for config in self.configs:
            if not config:
                return "a voter configuration must not be empty"
            if list(config) != sorted(set(config)):
                return "the voters of a configuration are not sorted"
            for voter in config:
                if voter not in self.nodes:
                    return f"voter {voter[:80]} has no node"
        if list(self.nodes) != sorted(self.nodes):
            return "the nodes are not sorted"
        for node_id in self.nodes:
            if not is_node_id(node_id):
                return f"{node_id[:80]!r} is not a node id: use 1 to 63 of [A-Za-z0-9._-], first a letter or digit"
        return None

    @property
    def voter_ids(self) -> VoterSet:
        """Every voter of any configuration, sorted."""
        if len(self.configs) == 1:
            return self.configs[0]
        return tuple(sorted({voter for config in self.configs for voter in config}))

    @property
    def learner_ids(self) -> VoterSet:
        """Every node that votes in no configuration, sorted."""
        voters = set(self.voter_ids)
        return tuple(node_id for node_id in self.nodes if node_id not in voters)

    @property
    def is_joint(self) -> bool:
        return len(self.configs) > 1

    def is_voter(self, node_id: NodeId) -> bool:
        return any(node_id in config for config in self.configs)

    def is_quorum(self, node_ids: Iterable[NodeId]) -> bool:
        """Whether ``node_ids`` is a strict majority in every configuration (False without any configuration)."""
        present = set(node_ids)
        if not self.configs:
            return False
        return all(2 * sum(voter in present for voter in config) > len(config) for config in self.configs)


class StoredMembership(msgspec.Struct, frozen=True):
    """A membership and the log id of the entry that set it (None: never set)."""

    log_id: LogId | None = None
    membership: Membership = Membership()


class AddVoterIds(msgspec.Struct, frozen=True, tag=True):
    """Voters become the last configuration plus ``ids``; each must already be a node."""

    ids: tuple[NodeId, ...]


class AddVoters(msgspec.Struct, frozen=True, tag=True):
    """Add nodes without overriding known ones, then make them voters."""

    nodes: dict[NodeId, Node]


class RemoveVoters(msgspec.Struct, frozen=True, tag=True):
    """Voters become the last configuration minus ``ids``; unknown ids are ignored."""

    ids: tuple[NodeId, ...]


class ReplaceAllVoters(msgspec.Struct, frozen=True, tag=True):
    """Voters become exactly ``ids``: what a plain collection of ids means."""

    ids: tuple[NodeId, ...]


class AddNodes(msgspec.Struct, frozen=True, tag=True):
    """Add learners; known nodes keep their data."""

    nodes: dict[NodeId, Node]


class SetNodes(msgspec.Struct, frozen=True, tag=True):
    """Add or override node data. Never changes the store id of a known node."""

    nodes: dict[NodeId, Node]


class RemoveNodes(msgspec.Struct, frozen=True, tag=True):
    """Delete learners."""

    ids: tuple[NodeId, ...]


class ReplaceAllNodes(msgspec.Struct, frozen=True, tag=True):
    """Replace the node map; every voter must keep a node."""

    nodes: dict[NodeId, Node]


ChangeMembers: TypeAlias = (
    AddVoterIds | AddVoters | RemoveVoters | ReplaceAllVoters | AddNodes | SetNodes | RemoveNodes | ReplaceAllNodes
)
