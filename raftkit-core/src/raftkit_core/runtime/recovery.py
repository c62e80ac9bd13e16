"""From what is on disk to what a node believes: a table over (log first..last, applied, snapshot, committed).

Every cell is one of restore, replay, purge, or Fatal. ``applied`` is where the machine stands: a durable machine says
so itself, a volatile one stands at the snapshot it is restored from, or at nothing.

| what is found                                   | what is done                                                    |
|---|---|
| applied below what the log has purged           | Fatal: the entries in between are gone                          |
| committed beyond the log and the snapshot       | Fatal: the store lost what it had confirmed                     |
| snapshot beyond the log, or not in it           | truncate what conflicts and purge up to it, before speaking     |
| two committed log ids at one index              | Fatal: the parts of the data do not belong together             |
| entries without a vote, or of a later term      | Fatal: the store lost a vote                                    |
| applied below committed                         | replay up to committed                                          |
| applied beyond committed                        | committed is raised to applied                                  |
"""

from __future__ import annotations

from raftkit_core.engine.log_id_list import LogIdList
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.errors import StoreLostWrites
from raftkit_core.runtime.log_writer import check_consecutive
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.storage.interface import LogBatch, LogState, RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.entry import MEMBERSHIP, decode_membership
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, index_of, max_log_id, next_index
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import ZERO_VOTE, Vote

SCAN_BYTES = 1024 * 1024


async def write_log(storage: RaftLogStorage, batch: LogBatch) -> None:
    """One durable write outside the log lane: only before the lane exists."""
    result = storage.write(batch)
    if result is not None:
        await result


async def log_id_at(storage: RaftLogStorage, index: int) -> LogId:
    entries = await storage.read(index, index + 1, 0)
    if not entries or entries[0].index != index:
        raise StoreLostWrites(f"entry {index} is missing from the log", subject="log", verb="read")
    return entries[0].log_id


async def load_log_ids(storage: RaftLogStorage, log: LogState) -> LogIdList:
    """The first log id of every leader, by bisection: leaders × log(length) reads instead of the whole log."""
    first, last = next_index(log.last_purged), log.last_log_id
    if last is None or last.index < first:
        return LogIdList(log.last_purged)
    runs = [await log_id_at(storage, first)]
    while runs[-1].leader_id != last.leader_id:
        low, high = runs[-1].index, last.index
        while low + 1 < high:
            middle = (low + high) // 2
            if (await log_id_at(storage, middle)).leader_id == runs[-1].leader_id:
                low = middle
            else:
                high = middle
        runs.append(await log_id_at(storage, high))
    return LogIdList(log.last_purged, runs, last)


async def fit_log_to_snapshot(storage: RaftLogStorage, snapshot: SnapshotMeta | None, log: LogState) -> LogState:
    """Finish what an install was about to do when the node stopped: the log must hold the snapshot's last log id, or
    nothing but the snapshot. Compares *log ids*: an equal index may belong to another leader."""
    if snapshot is None or snapshot.last_log_id is None:
        return log
    last = snapshot.last_log_id
    if last.index < next_index(log.last_purged):
        if log.last_purged is not None and last.index == log.last_purged.index and last != log.last_purged:
            raise _contradiction(f"the snapshot ends at {last}", f"the log was purged up to {log.last_purged}")
        return log
    if index_of(log.last_log_id) >= last.index:
        held = await log_id_at(storage, last.index)
        if held == last:
            return log
        if index_of(log.committed) >= last.index:
            raise _contradiction(f"the snapshot ends at {last}", f"the log has committed {held}")
    truncate = next_index(log.committed) if index_of(log.last_log_id) > index_of(log.committed) else None
    if truncate is not None:
        truncate = max(truncate, next_index(log.last_purged))
    # The vote of the leader that sent it may have been on its way to the disk: a log ahead of its vote would be taken
    # for a store that lost one. Whoever led there was granted by a quorum: to have voted for it harms nobody.
    vote = Vote(last.leader_id) if log.vote is None or log.vote.term < last.leader_id.term else None
    await write_log(storage, LogBatch(vote=vote, truncate_since=truncate, purge_upto=last, committed=None))
    return await storage.read_state()


def _contradiction(one: str, other: str) -> StoreLostWrites:
    """Two committed entries at one index: never repaired by overwriting either (openraft.md §6 item 14)."""
    return StoreLostWrites(
        f"{one}, but {other}: the parts of this node's data do not belong together",
        hint="start this node with an empty folder, then: raftkit member rejoin ID",
    )


def _check_vote(log: LogState) -> None:
    """A vote is durable before any entry of its term is: a log ahead of it means that the vote was lost."""
    last = log.last_log_id
    vote = log.vote or ZERO_VOTE
    if last is not None and (log.vote is None or last.leader_id.term > vote.term):
        raise StoreLostWrites(
            f"the log ends at {last}, but the vote is {vote}: the store lost a vote it had confirmed",
            subject="vote",
            verb="read",
            hint="start this node with an empty folder, then: raftkit member rejoin ID",
        )


async def scan_memberships(
    storage: RaftLogStorage, start: int, last: LogId | None
) -> tuple[list[StoredMembership], int]:
    """The last two memberships in the log from ``start`` on, and the cluster time of its last entry."""
    found: list[StoredMembership] = []
    time_ms = 0
    while start <= index_of(last):
        entries = await storage.read(start, index_of(last) + 1, SCAN_BYTES)
        check_consecutive(entries, start, index_of(last) + 1)
        for entry in entries:
            start += 1
            time_ms = entry.time_ms
            if entry.kind == MEMBERSHIP:
                found = [*found[-1:], StoredMembership(entry.log_id, decode_membership(entry.payload))]
    return found, time_ms


async def recover(
    storage: RaftLogStorage,
    snapshots: RaftSnapshotStorage,
    worker: StateMachineWorker,
    identity: StoreIdentity,
) -> RaftState:
    """Load, repair what a crash left half done, replay what is committed, and say what to believe.

    Raises: StoreLostWrites, StorageError, Fatal.
    """
    snapshot = await snapshots.current()
    _check_vote(await storage.read_state())
    log = await fit_log_to_snapshot(storage, snapshot, await storage.read_state())
    await _place_machine(worker, snapshot)
    applied = worker.applied
    if index_of(applied) < index_of(log.last_purged):
        raise StoreLostWrites(
            f"the log is purged up to {log.last_purged}, but the state machine stands at {applied}: the snapshot or the"
            " machine's data lost what had been saved",
            hint="start this node with an empty folder, then: raftkit member rejoin ID",
        )
    committed = max_log_id(log.committed, applied)
    if index_of(committed) > index_of(log.last_log_id):
        raise StoreLostWrites(
            f"the log ends at {log.last_log_id}, but {committed} was committed here",
            hint="start this node with an empty folder, then: raftkit member rejoin ID",
        )
    log_ids = await load_log_ids(storage, log)
    for what, position in (
        ("the state machine has applied", applied),
        ("the store has saved as committed", log.committed),
    ):
        held = None if position is None else log_ids.get(position.index)
        if held is not None and held != position:
            raise _contradiction(f"{what} {position}", f"the log has {held}")
    base = worker.membership
    found, scanned_ms = await scan_memberships(storage, next_index(applied), log.last_log_id)
    memberships = [base, *found][-2:]
    last_time_ms = max(worker.system.time_ms, scanned_ms)
    while worker.applied_index < index_of(committed):
        start = worker.applied_index + 1
        entries = await storage.read(start, index_of(committed) + 1, SCAN_BYTES)
        check_consecutive(entries, start, index_of(committed) + 1)
        await worker.replay(entries)
    # Two in the log beyond `applied`: the first is committed by the rule that a second is proposed only then.
    effective = memberships[-1]
    settled = effective if index_of(effective.log_id) <= index_of(committed) else memberships[0]
    return RaftState(
        vote=log.vote or ZERO_VOTE,
        log=log_ids,
        committed=committed,
        applied=worker.applied,
        membership=MembershipState(settled, effective),
        snapshot=snapshot,
        last_time_ms=last_time_ms,
        largest_lease_ms=identity.largest_lease_ms,
    )


async def _place_machine(worker: StateMachineWorker, snapshot: SnapshotMeta | None) -> None:
    """Put the machine where it can continue: a durable one where it stopped, unless a snapshot is newer."""
    if worker.machine.durable:
        held = await worker.machine.applied_state()
        worker.place(held.applied, held.membership)
        worker.system.restore_records(held.records)
        if snapshot is None or index_of(held.applied) >= index_of(snapshot.last_log_id):
            return
    if snapshot is not None:
        await worker.restore_published()
