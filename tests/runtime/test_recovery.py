"""Recovery is a table over (log first..last, applied, snapshot, committed): every cell is tried.

The log of the oracle has index 0 (initialize), 1 and 2 of term 1, and from 3 on term 3; a *conflicting* tail holds
entries of term 2 from index 3 on, which never committed anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from raftkit_core.engine.raft_state import RaftState
from raftkit_core.errors import RaftError, StoreLostWrites
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.recovery import recover
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.state_machine.interface import AppliedState, ApplyBatch, MsgspecCodec, RaftStateMachine
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.storage.snapshot_format import SnapshotHeader, encode_snapshot
from raftkit_core.testing.builders import log_id, membership, membership_entry, vote
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import ENVELOPE_VERSION, NORMAL, Entry, Envelope, encode_envelope
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta

pytestmark = pytest.mark.virtual_time

END = 5
OLD, NEW = membership("n1"), membership("n1 n2")
CHANGED_AT = 4
CLOCK = VirtualClock()


class Remembering(RaftStateMachine):
    """Its state is the list of what it applied; the durable kind keeps it, and where it stands, over a restart."""

    name = "remembering/1"
    codec = MsgspecCodec(int, Any)

    def __init__(self, held: AppliedState | None = None) -> None:
        self.durable = held is not None
        self.held = AppliedState() if held is None else held
        self.seen: list[int] = list(range(1, index_of(self.held.applied) + 1))
        if index_of(self.held.applied) >= CHANGED_AT:
            self.seen.remove(CHANGED_AT)

    async def applied_state(self) -> AppliedState:
        return self.held

    def apply(self, batch: ApplyBatch) -> list[Any]:
        self.seen += [entry.command for entry in batch.entries]
        results = [None] * len(batch.entries)
        if self.durable:
            batch.seal(results)
        return results

    async def snapshot_of(self, seen: list[int]) -> AsyncIterator[bytes]:
        yield msgspec.msgpack.encode(seen)

    def snapshot(self) -> AsyncIterator[bytes]:
        return self.snapshot_of(list(self.seen))

    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        self.seen = msgspec.msgpack.decode(b"".join([chunk async for chunk in chunks]))


def true_id(index: int) -> LogId:
    return log_id(0, "", 0) if index == 0 else log_id(1 if index < 3 else 3, "n1", index)


def entry_at(at: LogId) -> Entry:
    if at.index in (0, CHANGED_AT):
        return membership_entry(at, OLD if at.index == 0 else NEW)
    envelope = Envelope(ENVELOPE_VERSION, Remembering.name, 0, 0, 0, msgspec.msgpack.encode(at.index))
    return Entry(at, at.index, NORMAL, encode_envelope(envelope))


def log_of(purged: int, last: int, conflicting: bool) -> list[Entry]:
    ids = [log_id(2, "n1", i) if conflicting and i >= 3 else true_id(i) for i in range(purged + 1, last + 1)]
    return [entry_at(at) for at in ids]


def memberships_at(index: int) -> StoredMembership:
    if index < 0:
        return StoredMembership()
    at = CHANGED_AT if index >= CHANGED_AT else 0
    return StoredMembership(true_id(at), NEW if at else OLD)


def seen_at(index: int) -> list[int]:
    return [i for i in range(1, index + 1) if i != CHANGED_AT]


async def put_snapshot(disk: MemoryDisk, index: int) -> None:
    meta = SnapshotMeta(true_id(index), memberships_at(index), f"{index:x}", index)
    header = SnapshotHeader.of(meta, cluster_id=None, machine=Remembering.name)
    system = SystemMachine()
    system.observe(index)
    sink = await MemorySnapshotStorage(disk).sink(meta.snapshot_id)
    async for piece in encode_snapshot(header, system.encode(), Remembering().snapshot_of(seen_at(index))):
        await sink.write(piece)
    await sink.publish(meta)


async def run(disk: MemoryDisk, machine: Remembering) -> tuple[RaftState, StateMachineWorker]:
    storage = MemoryLogStorage(disk)
    await storage.open(AdapterContext("n1", clock=CLOCK))
    snapshots = MemorySnapshotStorage(disk)

    async def no_lease(_: int) -> None:
        return

    ignore: Any = lambda *_: None  # noqa: E731
    worker = StateMachineWorker(
        machine=machine,
        system=SystemMachine(),
        snapshots=snapshots,
        writer=LogWriter(storage, no_lease, ignore, ignore),
        applied=None,
        membership=StoredMembership(),
        on_applied=ignore,
        on_built=ignore,
        on_installed=ignore,
        on_refused=ignore,
        failed=ignore,
        new_snapshot_id=lambda _: "1",
        cluster_id=lambda: None,
    )
    try:
        state = await recover(storage, snapshots, worker, StoreIdentity("n1", "0" * 32, "default"))
    finally:
        await storage.close()
    return state, worker


NONE = -1
CELLS = [
    (purged, last, committed, snapshot, applied, conflicting)
    for purged, last, committed, snapshot, applied, conflicting in itertools.product(
        (NONE, 1, 3), range(NONE, END + 1), (NONE, 0, 2, 3, 5), (NONE, 1, 3, 4, 5), (None, NONE, 2, 3, 5), (False, True)
    )
    if last >= purged and not (conflicting and (last < 3 or purged >= 3))
]


async def test_every_cell_of_the_table_is_repaired_or_refused() -> None:
    seen = {"recovered": 0, "refused": 0}
    for cell in CELLS:
        purged, last, committed, snapshot, applied, conflicting = cell
        disk = MemoryDisk()
        disk.vote = vote(9)
        disk.entries = log_of(purged, last, conflicting)
        disk.last_purged = None if purged == NONE else true_id(purged)
        disk.committed = None if committed == NONE else true_id(committed)
        if snapshot != NONE:
            await put_snapshot(disk, snapshot)
        held = None
        if applied is not None:
            at = None if applied == NONE else true_id(applied)
            held = AppliedState(at, memberships_at(applied), {b"time": msgspec.msgpack.encode(max(applied, 0))})
        machine = Remembering(held)
        before = [entry.log_id for entry in disk.entries]
        start = max(snapshot, NONE if applied is None else applied)
        fate = expected(purged, last, committed, snapshot, start, conflicting)
        try:
            state, worker = await run(disk, machine)
        except StoreLostWrites:
            assert fate is None, f"{cell} was refused"
            if snapshot == NONE:
                assert [entry.log_id for entry in disk.entries] == before, "a refusal changes nothing"
            seen["refused"] += 1
            continue
        assert fate is not None, f"{cell} was believed"
        seen["recovered"] += 1
        new_first, new_last, new_committed = fate
        assert index_of(state.committed) == new_committed, cell
        assert worker.applied_index == new_committed, cell
        assert machine.seen == seen_at(new_committed), f"{cell}: each entry exactly once"
        assert state.log.last_index == new_last, cell
        assert [entry.index for entry in disk.entries] == list(range(new_first, new_last + 1)), cell
        assert worker.membership == memberships_at(new_committed), cell
        ids = [entry.log_id for entry in disk.entries]
        assert [state.log.get(at.index) for at in ids] == ids, cell
        last_membership = [e.log_id for e in disk.entries if e.index in (0, CHANGED_AT)]
        effective = last_membership[-1] if last_membership else memberships_at(new_committed).log_id
        assert state.membership.effective.log_id == effective, cell
        state.check()
        disk.crash()
        again, _ = await run(disk, Remembering(held if held is None else machine_state(machine, worker)))
        assert (again.committed, again.log.last) == (state.committed, state.log.last), f"{cell}: a second start"
    assert min(seen.values()) > 300, seen


def machine_state(machine: Remembering, worker: StateMachineWorker) -> AppliedState:
    return AppliedState(worker.applied, worker.membership)


def expected(
    purged: int, last: int, committed: int, snapshot: int, start: int, conflicting: bool
) -> tuple[int, int, int] | None:
    """First and last index of the log and committed after a recovery; None if it must be refused."""
    first = purged + 1
    if last >= 0 and committed > last and committed > snapshot:
        return None  # the log lost what was committed
    if last < 0 and committed > snapshot:
        return None
    if snapshot > last or (conflicting and snapshot >= 3):
        # The log does not hold the snapshot's last entry: it is replaced by the snapshot.
        if conflicting and snapshot <= last and committed >= snapshot:
            return None  # two committed entries at one index
        first, last, conflicting = snapshot + 1, snapshot, False
    if start < first - 1:
        return None  # entries between the machine and the log are gone
    if start > last:
        return None  # the machine has applied what the log does not hold
    if conflicting and max(committed, start) >= 3:
        return None  # what is committed or applied is not what the log holds
    return first, last, max(committed, start)


async def test_an_empty_store_is_pristine() -> None:
    state, worker = await run(MemoryDisk(), Remembering())
    assert state.is_pristine
    assert (state.committed, worker.applied) == (None, None)


async def test_a_crash_between_publishing_over_a_conflicting_tail_and_truncating_it_is_finished_at_the_next_start() -> (
    None
):
    disk = MemoryDisk()
    disk.vote = vote(3)
    disk.entries = log_of(NONE, 5, conflicting=True)
    disk.committed = true_id(2)
    await put_snapshot(disk, 4)
    state, worker = await run(disk, Remembering())
    assert (disk.entries, disk.last_purged) == ([], true_id(4))
    assert (state.committed, state.log.last, worker.applied) == (true_id(4), true_id(4), true_id(4))
    assert state.membership.effective.membership == NEW


async def test_a_crash_between_publishing_and_saving_the_vote_of_who_sent_it_is_no_lost_vote() -> None:
    """Runtime seed 37 of profile ``staged``: the snapshot is durable, the vote and the truncation are not."""
    disk = MemoryDisk()
    disk.vote = vote(2)
    disk.entries = log_of(NONE, 5, conflicting=True)
    disk.committed = true_id(2)
    await put_snapshot(disk, 4)
    for _ in range(2):  # the second start finds a log of term 3
        state, _ = await run(disk, Remembering())
        assert (state.vote.term, state.vote.committed, state.log.last) == (3, False, true_id(4))


async def test_a_snapshot_whose_entry_is_in_the_log_leaves_the_tail_alone() -> None:
    disk = MemoryDisk()
    disk.vote = vote(3)
    disk.entries = log_of(NONE, 5, conflicting=False)
    await put_snapshot(disk, 3)
    state, _ = await run(disk, Remembering())
    assert (state.committed, state.log.last) == (true_id(3), true_id(5))
    assert len(disk.entries) == 6


@pytest.mark.parametrize("found", [None, vote(2)])
async def test_entries_ahead_of_the_vote_mean_that_a_vote_was_lost(found: Any) -> None:
    disk = MemoryDisk()
    disk.entries = log_of(NONE, 5, conflicting=False)
    disk.vote = found
    with pytest.raises(StoreLostWrites, match="lost a vote"):
        await run(disk, Remembering())


async def test_a_hole_in_the_log_is_found() -> None:
    disk = MemoryDisk()
    disk.vote = vote(3)
    disk.entries = log_of(NONE, 5, conflicting=False)
    disk.committed = true_id(5)
    del disk.entries[2]
    disk.entries.append(entry_at(true_id(6)))
    with pytest.raises(RaftError):
        await run(disk, Remembering())


async def test_a_poisonous_entry_stops_the_start_by_name_and_is_tried_again_at_the_next() -> None:
    class Poisoned(Remembering):
        def apply(self, batch: ApplyBatch) -> list[Any]:
            raise RuntimeError("cannot")

    disk = MemoryDisk()
    disk.vote = vote(3)
    disk.entries = log_of(NONE, 2, conflicting=False)
    disk.committed = true_id(2)
    with pytest.raises(RaftError, match=r"remembering/1 failed to apply"):
        await run(disk, Poisoned())
    state, _ = await run(disk, Remembering())
    assert state.committed == true_id(2)
