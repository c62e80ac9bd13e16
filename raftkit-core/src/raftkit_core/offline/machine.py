"""Snapshots of a durable machine that no node runs: for copies of a store whose log alone cannot rebuild the state."""

from __future__ import annotations

import copy

import msgspec

from raftkit_core.errors import StorageError
from raftkit_core.offline.store import OfflineStore, Progress, ProgressListener, no_progress
from raftkit_core.state_machine.interface import AppliedState, RaftStateMachine
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.storage.snapshot_format import SnapshotHeader, encode_snapshot
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta


class Standing(msgspec.Struct, frozen=True):
    """Where a node's state is from, and the membership that belongs to it."""

    applied: LogId | None
    membership: StoredMembership


async def standing_of(store: OfflineStore, machine: RaftStateMachine, context: AdapterContext) -> Standing:
    """What the node would start from: its durable machine's data, or its snapshot, whichever is newer."""
    snapshot = await store.snapshots.current()
    found = Standing(None, StoredMembership())
    if snapshot is not None:
        found = Standing(snapshot.last_log_id, snapshot.membership)
    if machine.durable:
        held = await applied_by(machine, _may_create(context))
        if index_of(held.applied) > index_of(found.applied):
            found = Standing(held.applied, held.membership)
    return found


async def applied_by(machine: RaftStateMachine, context: AdapterContext) -> AppliedState:
    """What a durable machine has stored. Raises: StorageError, StorageCorrupt."""
    try:
        await machine.open(context)
        return await machine.applied_state()
    finally:
        await machine.close()


def _may_create(context: AdapterContext) -> AdapterContext:
    """For the machine of a store that is there: its own data may be missing (a restored store has none yet)."""
    found = copy.copy(context)
    found.creates = True
    return found


async def cover_purged(
    store: OfflineStore,
    machine: RaftStateMachine,
    context: AdapterContext,
    *,
    snapshot_id: str,
    progress: ProgressListener = no_progress,
) -> SnapshotMeta | None:
    """Make sure that snapshot and log together hold the whole state: a durable machine's log is purged behind its own
    data, so a snapshot of that is published where there is no newer one. Gives the published one, None if none is
    needed. Raises: StorageError if the state is not to be had.
    """
    purged = (await store.log.read_state()).last_purged
    current = await store.snapshots.current()
    if current is not None and index_of(current.last_log_id) >= index_of(purged):
        return current
    if purged is None:
        return None
    if not machine.durable:
        raise StorageError(
            f"the log of {store.location} is purged up to {purged}, and no snapshot covers that",
            subject="snapshot",
            verb="read",
            hint="if the node runs a durable state machine name it, as in --state-machine sqlite-kv:kv.db; else look at"
            " it: raftkit storage verify",
        )
    try:
        await machine.open(_may_create(context))
        held = await machine.applied_state()
        if index_of(held.applied) < purged.index:
            raise StorageError(
                f"the log is purged up to {purged}, but the machine {machine.name} stands at {held.applied}",
                subject="state machine",
                verb="read",
                hint="look at it: raftkit storage verify",
            )
        return await _publish(store, machine, held, snapshot_id, progress)
    finally:
        await machine.close()


async def _publish(
    store: OfflineStore, machine: RaftStateMachine, held: AppliedState, snapshot_id: str, progress: ProgressListener
) -> SnapshotMeta:
    system = SystemMachine()
    system.restore_records(held.records)
    meta = SnapshotMeta(held.applied, held.membership, snapshot_id, system.time_ms)
    header = SnapshotHeader.of(meta, cluster_id=store.identity.cluster_id, machine=machine.name)
    sink = await store.snapshots.sink(snapshot_id)
    try:
        done = 0
        async for piece in encode_snapshot(header, system.encode(), machine.snapshot()):
            await sink.write(piece)
            done += len(piece)
            progress(Progress("snapshot bytes", done, 0))
        return await sink.publish(meta)
    except BaseException:
        await sink.abort()
        raise
