"""``NodeStatus``: what operators and clients are shown of a node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from importlib.metadata import PackageNotFoundError, version

from raftkit_core.errors import RaftError
from raftkit_core.network.client import MemberStatus, NodeStatus, PeerStatus, StorageStatus
from raftkit_core.runtime.limits import within
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.view import NodeView
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.metrics import PeerMetrics, RaftMetrics
from raftkit_core.types.snapshot import SnapshotMeta

STORAGE_INFO_SECONDS = 0.5
"""A storage that does not say its size within this is shown without one: status never waits for a slow disk."""

DIGEST_SECONDS = 10.0
"""A machine that does not give its digest within this is shown without one."""


def _index(log_id: LogId | None) -> int | None:
    return None if log_id is None else log_id.index


def _peer(peer: PeerMetrics) -> PeerStatus:
    return PeerStatus(
        matching=_index(peer.matching),
        lag=peer.lag,
        state=peer.state,
        last_contact_ms=peer.last_contact_ms,
        last_error=peer.last_error,
    )


async def _storage_status(storage: RaftLogStorage) -> StorageStatus:
    try:
        info = await within(storage.info(), STORAGE_INFO_SECONDS, "the storage's info")
    except (TimeoutError, RaftError):
        return StorageStatus(adapter=type(storage).__name__, durability="unknown: the storage does not answer")
    return StorageStatus(
        adapter=info.adapter, location=info.location, size_bytes=info.size_bytes, durability=info.durability
    )


def toolkit_version() -> str:
    try:
        return version("raftkit-core")
    except PackageNotFoundError:
        return "unknown"


async def node_status(
    *,
    view: NodeView,
    core: RaftCore,
    identity: StoreIdentity,
    storage: RaftLogStorage,
    machine: RaftStateMachine,
    started_at: float,
    digest: bool,
) -> NodeStatus:
    """Positions are read at one moment; with ``digest`` it belongs to ``applied``."""
    storage_status = await _storage_status(storage)

    def look() -> tuple[RaftMetrics, SnapshotMeta | None, int]:
        return view.metrics(), core.engine.state.snapshot, core.worker.system.time_ms

    found = None
    if digest:
        try:
            async with asyncio.timeout(DIGEST_SECONDS):
                (m, snapshot, time_ms), taken = await core.worker.between_batches(
                    lambda: (look(), core.stalls.run(machine.digest))
                )
            found = await within(taken, DIGEST_SECONDS, "a digest") if isinstance(taken, Awaitable) else taken
        except (TimeoutError, RaftError):
            digest = False  # shown without one
    if not digest:
        m, snapshot, time_ms = look()
    membership = m.membership.membership
    return NodeStatus(
        id=m.id,
        cluster=identity.cluster,
        cluster_id=identity.cluster_id,
        store_id=identity.store_id,
        version=toolkit_version(),
        role=m.state.value,
        term=m.current_term,
        leader=m.current_leader,
        last_log_index=_index(m.last_log_id),
        committed=_index(m.committed),
        applied=_index(m.last_applied),
        applied_time_ms=time_ms,
        snapshot=_index(m.snapshot),
        purged=_index(m.purged),
        members=[
            MemberStatus(id=node_id, node=node, voter=membership.is_voter(node_id))
            for node_id, node in membership.nodes.items()
        ],
        joint=membership.is_joint,
        replication=None if m.replication is None else {peer: _peer(p) for peer, p in m.replication.items()},
        millis_since_quorum_ack=m.millis_since_quorum_ack,
        millis_since_leader_contact=m.millis_since_leader_contact,
        storage=storage_status,
        snapshot_size_bytes=0 if snapshot is None else snapshot.size_bytes,
        state_machine=machine.name,
        digest=found,
        fatal=m.fatal,
        needs_rejoin=m.needs_rejoin,
        pending_writes=m.pending_writes,
        uptime_ms=int((core.clock.monotonic() - started_at) * 1000),
    )
