"""Reading everything a store holds, and naming what is damaged. Changes nothing."""

from __future__ import annotations

import hashlib
import re

import msgspec

from raftkit_core.errors import RaftError, StorageCorrupt, StorageError
from raftkit_core.offline.store import READ_BYTES, Progress, ProgressListener, no_progress, no_store
from raftkit_core.storage.interface import LogState, RaftLogStorage, RaftSnapshotStorage
from raftkit_core.storage.snapshot_format import SnapshotDecoder, SnapshotHeader, check_fits
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import BLANK, MEMBERSHIP, NORMAL, Entry, decode_envelope, decode_membership
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, index_of, next_index
from raftkit_core.types.snapshot import SnapshotMeta

FINDINGS_KEPT = 100
_HEX = re.compile(r"[0-9a-f]{32}\Z")


class Finding(msgspec.Struct, frozen=True):
    """One thing that is damaged: which ``part`` (identity, vote, log, snapshot), ``where`` in it, and how."""

    part: str
    where: str
    problem: str


class StoreReport(msgspec.Struct, kw_only=True):
    """What a store holds. ``log_sha256`` is over every entry in order: equal logs have equal ones, on any adapter."""

    location: str = ""
    identity: StoreIdentity | None = None
    state: LogState | None = None
    entries: int = 0
    entry_bytes: int = 0
    log_sha256: str = ""
    snapshot: SnapshotMeta | None = None
    findings: list[Finding] = []
    findings_left_off: int = 0

    def found(self, part: str, where: str, problem: str) -> None:
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(Finding(part, where, problem))
        else:
            self.findings_left_off += 1


async def verify_store(
    log: RaftLogStorage,
    snapshots: RaftSnapshotStorage,
    context: AdapterContext,
    *,
    progress: ProgressListener = no_progress,
) -> StoreReport:
    """Read it whole. Opens and closes both.

    Raises: StorageLocked, IdentityError, StorageError if there is none: then nothing could be looked at.
    Damage is no error, it is in the report.
    """
    report = StoreReport(findings=[])
    try:
        try:
            report.identity = await log.open(context)
        except StorageCorrupt as error:
            report.found("store", "as a whole", error.message)
            return report
        report.location = (await log.info()).location
        if report.identity is None and (await log.read_state()).last_log_id is None:
            raise no_store(context, report.location)
        _check_identity(report)
        try:
            report.state = await log.read_state()
        except StorageError as error:
            report.found("vote", "vote and bounds of the log", error.message)
        if report.state is not None:
            await _check_log(log, report.state, report, progress)
    finally:
        await log.close()
    try:
        await _check_snapshot(snapshots, context, report, progress)
    finally:
        await snapshots.close()
    return report


def _check_identity(report: StoreReport) -> None:
    identity = report.identity
    if identity is None:
        report.found("identity", "store", "there is no identity: this is no node's store")
        return
    for name in ("store_id", "cluster_id"):
        value = getattr(identity, name)
        if value is not None and not _HEX.match(value):
            report.found("identity", name, f"{value!r} is not 32 hex digits")


async def _check_log(log: RaftLogStorage, state: LogState, report: StoreReport, progress: ProgressListener) -> None:
    first, last = next_index(state.last_purged), index_of(state.last_log_id)
    if state.last_log_id is not None:
        if state.vote is None or state.vote.term < state.last_log_id.term:
            report.found("vote", "vote", f"{state.vote} is lower than the last entry {state.last_log_id}")
        if index_of(state.committed) > last:
            report.found("log", "committed", f"{state.committed} is beyond the last entry {state.last_log_id}")
    digest = hashlib.sha256()
    before: LogId | None = state.last_purged
    time_ms = 0
    index = first
    while index <= last:
        entries = await _read(log, index, last, report)
        if not entries:
            index += 1  # named already: what follows is looked at all the same
            before = None
            continue
        for entry in entries:
            if entry.index != index:
                report.found("log", f"entry {index}", f"entry {entry.log_id} is in its place")
            problem = _problem_of(entry, before, time_ms)
            if problem is not None:
                report.found("log", f"entry {entry.log_id}", problem)
            digest.update(msgspec.msgpack.encode(entry))
            before, time_ms = entry.log_id, max(time_ms, entry.time_ms)
            report.entries += 1
            report.entry_bytes += len(entry.payload)
            index += 1
        progress(Progress("entries", index - first, last + 1 - first))
    if before is not None and last >= first and before != state.last_log_id:
        report.found("log", f"entry {last}", f"it is {before}, the store says that the log ends at {state.last_log_id}")
    report.log_sha256 = digest.hexdigest()


async def _read(log: RaftLogStorage, index: int, last: int, report: StoreReport) -> list[Entry]:
    """A batch; where that fails the one entry; where that fails nothing, and it is named."""
    try:
        return await log.read(index, last + 1, READ_BYTES)
    except StorageError:
        pass
    try:
        return await log.read(index, index + 1, 0)
    except StorageError as error:
        report.found("log", f"entry {index}", error.message)
        return []


def _problem_of(entry: Entry, before: LogId | None, time_ms: int) -> str | None:
    if before is not None and before.leader_id > entry.log_id.leader_id:
        return f"it follows {before}, of a later leader"
    if entry.time_ms < time_ms:
        return f"cluster time falls from {time_ms} to {entry.time_ms}"
    try:
        if entry.kind == NORMAL:
            decode_envelope(entry.payload)
        elif entry.kind == MEMBERSHIP:
            decode_membership(entry.payload)
        elif entry.kind != BLANK:
            return f"kind {entry.kind} is unknown"
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return f"its payload cannot be read: {error}"
    return None


async def _check_snapshot(
    snapshots: RaftSnapshotStorage, context: AdapterContext, report: StoreReport, progress: ProgressListener
) -> None:
    try:
        await snapshots.open(context)
        source = await snapshots.source()
        if source is None:
            return
        report.snapshot = source.meta
        try:
            header, size = await _read_container(source.meta, source.open(0), progress)
        finally:
            await source.close()
    except StorageError as error:
        report.found("snapshot", "current snapshot", error.message)
        return
    except RaftError as error:
        report.found("snapshot", "current snapshot", f"{error.code}: {error.message}")
        return
    if size != source.meta.size_bytes:
        report.found("snapshot", "current snapshot", f"it has {size} bytes instead of {source.meta.size_bytes}")
    identity = report.identity
    if identity is not None and identity.machine and header.machine != identity.machine:
        report.found("snapshot", "header", f"it holds the machine {header.machine}, the store {identity.machine}")


async def _read_container(meta: SnapshotMeta, chunks: object, progress: ProgressListener) -> tuple[SnapshotHeader, int]:
    """Every byte, against every checksum. Raises: StorageCorrupt."""
    decoder = SnapshotDecoder()
    digest = hashlib.sha256()
    size = 0
    async for chunk in chunks:  # type: ignore[attr-defined]
        decoder.feed(chunk)
        digest.update(chunk)
        size += len(chunk)
        progress(Progress("snapshot bytes", size, meta.size_bytes))
    header = decoder.finish()
    check_fits(meta, header.meta(size_bytes=size, sha256=digest.hexdigest()))
    return header, size
