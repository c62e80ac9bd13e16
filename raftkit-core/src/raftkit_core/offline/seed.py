"""A new cluster out of a saved snapshot: its state, and nothing of the cluster it was taken from."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from raftkit_core.errors import IdentityError, StorageCorrupt
from raftkit_core.offline.archive import MAGIC as BACKUP
from raftkit_core.offline.archive import translated
from raftkit_core.offline.move import UNFINISHED, finish
from raftkit_core.offline.store import Progress, ProgressListener, no_progress, open_target, write_log
from raftkit_core.storage.interface import LogBatch, RaftLogStorage, RaftSnapshotStorage
from raftkit_core.storage.snapshot_format import SnapshotDecoder, SnapshotHeader, encode_snapshot, read_snapshot
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote

PIECE_BYTES = 1024 * 1024


class SavedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A container file, read whole and found sound."""

    header: SnapshotHeader
    meta: SnapshotMeta
    system_bytes: int
    machine_bytes: int
    machine_chunks: int


def pieces(path: Path) -> Iterator[bytes]:
    with translated(path, "read"), path.open("rb") as handle:
        while data := handle.read(PIECE_BYTES):
            yield data


def inspect(path: Path, *, progress: ProgressListener = no_progress) -> SavedSnapshot:
    """Raises: StorageCorrupt, StorageError."""
    decoder = SnapshotDecoder()
    digest = hashlib.sha256()
    size = machine = chunks = 0
    try:
        for data in pieces(path):
            for chunk in decoder.feed(data):
                machine += len(chunk)
                chunks += 1
            digest.update(data)
            size += len(data)
            progress(Progress("snapshot bytes", size, 0))
        header = decoder.finish()
    except StorageCorrupt as error:
        message, hint = error.message, "save another one: raftkit snapshot save"
        with translated(path, "read"), path.open("rb") as handle:
            if handle.read(len(BACKUP)) == BACKUP:
                message, hint = "this is a backup of a store, no snapshot", "raftkit storage restore FILE"
        raise StorageCorrupt(f"{path}: {message}", subject="snapshot", verb="read", hint=hint) from error
    return SavedSnapshot(
        header=header,
        meta=header.meta(size_bytes=size, sha256=digest.hexdigest()),
        system_bytes=len(decoder.system),
        machine_bytes=machine,
        machine_chunks=chunks,
    )


async def seed_cluster(
    path: Path,
    saved: SavedSnapshot,
    log: RaftLogStorage,
    snapshots: RaftSnapshotStorage,
    context: AdapterContext,
    *,
    node: Node,
    machine: str,
    single_term_leader: bool,
    new_store_id: str,
    random_hex: str,
    progress: ProgressListener = no_progress,
) -> StoreIdentity:
    """Make an empty place the store of the only member of a new cluster, whose state is the snapshot's.

    Raises: IdentityError if a store is there already, or for another machine's snapshot; StorageError.
    """
    if saved.header.machine != machine:
        raise IdentityError(
            f"{path} holds the machine {saved.header.machine}, the node would run {machine}",
            hint="name the machine the snapshot was taken of: --state-machine NAME",
        )
    last = saved.meta.last_log_id
    if last is None:
        raise StorageCorrupt(f"{path} is a snapshot of nothing", subject="snapshot", verb="read")
    unfinished = f"{UNFINISHED}the restore of snapshot {saved.meta.sha256[:16]}; run raftkit snapshot restore again"
    wanted = StoreIdentity(
        node_id=context.node_id,
        store_id=new_store_id,
        cluster=context.cluster,
        group=context.group,
        single_term_leader=single_term_leader,
        machine=machine,
        retired=unfinished,
    )
    async with open_target(log, snapshots, context, wanted) as target:
        bound = msgspec.structs.replace(node, store_id=target.identity.store_id)
        membership = Membership.of([(context.node_id,)], {context.node_id: bound})
        canonical = ["snapshot", context.cluster, saved.meta.sha256, random_hex, membership]
        cluster_id = hashlib.sha256(msgspec.msgpack.encode(canonical, order="deterministic")).hexdigest()[:32]
        await target.save_identity(msgspec.structs.replace(target.identity, cluster_id=cluster_id))
        meta = SnapshotMeta(last, StoredMembership(last, membership), random_hex[:32], saved.meta.time_ms)
        header = SnapshotHeader.of(meta, cluster_id=cluster_id, machine=machine)
        reader = await read_snapshot(_async(pieces(path)))
        sink = await target.snapshots.sink(meta.snapshot_id)
        try:
            done = 0
            async for piece in encode_snapshot(header, reader.system, reader.machine_chunks()):
                await sink.write(piece)
                done += len(piece)
                progress(Progress("snapshot bytes", done, saved.meta.size_bytes))
            await sink.publish(meta)
        except BaseException:
            await sink.abort()
            raise
        await write_log(target.log, LogBatch(vote=Vote(last.leader_id), purge_upto=last))
        await finish(target)
        return target.identity


async def _async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
