"""Who a store belongs to (DESIGN §5): kept durably beside the log, compared before anything is believed."""

from __future__ import annotations

import msgspec

from raftkit_core.types.ids import DEFAULT_GROUP, NodeId

STORE_FORMAT = 1


class StoreIdentity(msgspec.Struct, frozen=True):
    """Identity of one store.

    ``store_id`` is 32 hex digits made with the store. ``cluster_id`` (32 hex digits) is None until the node belongs to
    a cluster. ``largest_lease_ms`` is the largest lease this node ever acknowledged: after a restart it withholds its
    vote for that long. ``retired`` says that the store was migrated or reverted and must not be opened as a node again.
    """

    node_id: NodeId
    store_id: str
    cluster: str
    group: str = DEFAULT_GROUP
    cluster_id: str | None = None
    single_term_leader: bool = False
    machine: str = ""
    largest_lease_ms: int = 0
    retired: str = ""
    format: int = STORE_FORMAT


class PeerIdentity(msgspec.Struct, frozen=True):
    """Who is at the other end of a connection, as its hello said. Passed to every handler of a peer's request."""

    node_id: NodeId
    store_id: str
    protocol: int = 1
