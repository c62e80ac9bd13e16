"""Log storages that are wrong on purpose, each in one way, and the case of the kit that must notice.

Each is :class:`MemoryLogStorage` with one fault. A fault that was in a real project says so.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from raftkit_core.errors import StorageCorrupt, StorageError, StorageFull
from raftkit_core.storage.interface import LogBatch, LogState, RaftLogStorage, StorageInfo
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing import LogStorageConformance
from raftkit_core.testing.conformance.kit import PowerSwitch
from raftkit_core.testing.conformance.log_storage import Opener
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, next_index
from raftkit_core.types.vote import Vote


class Disk(MemoryDisk):
    """``durable`` is what a power loss leaves; a right storage syncs at every write."""

    durable: MemoryDisk | None = None
    frozen: MemoryDisk | None = None
    damaged: set[int | str]

    def __init__(self) -> None:
        super().__init__("wrong")
        self.damaged = set()

    def sync(self) -> None:
        self.durable = copy.copy(self)
        self.durable.entries = list(self.entries)

    def cut(self) -> None:
        self.frozen = self.durable

    def restore(self) -> None:
        for name in ("identity", "vote", "committed", "last_purged", "log_bytes"):
            setattr(self, name, getattr(self.frozen or MemoryDisk(), name))
        self.entries = list(self.frozen.entries) if self.frozen is not None else []
        self.crash()


class Right(MemoryLogStorage):
    """The reference: nothing is wrong with it."""

    disk: Disk

    async def save_identity(self, identity: StoreIdentity) -> None:
        await super().save_identity(identity)
        self.disk.sync()

    def write(self, batch: LogBatch) -> None:
        super().write(batch)
        self.disk.sync()

    async def read_state(self) -> LogState:
        if "vote" in self.disk.damaged:
            raise StorageCorrupt("the vote's checksum does not fit", subject="vote", verb="read")
        return await super().read_state()

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        found = await super().read(start, stop, max_bytes)
        if any(entry.index in self.disk.damaged for entry in found):
            raise StorageCorrupt("an entry's checksum does not fit", subject="log", verb="read")
        return found


class GapAccepted(Right):
    """Appends whatever it is given."""

    def _check_batch(self, batch: LogBatch) -> None:
        return


class FirstIndexAnything(Right):
    """Checks for gaps, but not before the first entry of an empty log."""

    def _check_batch(self, batch: LogBatch) -> None:
        if self.disk.entries or self.disk.last_purged or not batch.entries:
            super()._check_batch(batch)


class VoteLost(Right):
    """Keeps the vote in the handle (PySyncObj until 0.3.17)."""

    async def close(self) -> None:
        self.disk.vote = None
        await super().close()


class VoteNeverFlushedAlone(Right):
    """Syncs when entries are written, and forgets that a vote matters as much."""

    def write(self, batch: LogBatch) -> None:
        if batch.entries:
            super().write(batch)
        else:
            MemoryLogStorage.write(self, batch)


class CommittedFlagLost(Right):
    """Stores term and node of a vote, not whether it is committed."""

    def write(self, batch: LogBatch) -> None:
        vote = None if batch.vote is None else Vote(batch.vote.leader_id, False)
        super().write(msgspec.structs.replace(batch, vote=vote))


class PurgeForgets(Right):
    """Removes entries, but does not remember up to where."""

    def _purge(self, upto: LogId) -> None:
        super()._purge(upto)
        if self.disk.entries:
            self.disk.last_purged = None


class PurgeKeepsItsLast(Right):
    """Removes up to, but not including, the purged index."""

    def _purge(self, upto: LogId) -> None:
        if upto.index <= (self.disk.last_purged.index if self.disk.last_purged else -1):
            return
        first = next_index(self.disk.last_purged)
        kept = self.disk.entries[: upto.index - first + 1][-1:]
        super()._purge(upto)
        self.disk.entries[:0] = kept


class OlderPurgeGoesBack(Right):
    """Takes every purge as the newest."""

    def _purge(self, upto: LogId) -> None:
        super()._purge(upto)
        self.disk.last_purged = upto if self.disk.entries else self.disk.last_purged


class TwoOpeners(Right):
    """Takes no claim."""

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        self.disk.crash()
        return await super().open(context)


class ClaimTakenAlong(Right):
    """A refused opener, when closed, gives back the claim of the holder."""

    async def close(self) -> None:
        self.disk.holder = None
        if self.disk.opened_by is self:
            self.disk.opened_by = None


class HolderNotNamed(Right):
    """Refuses a second opener without a word about the first."""

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        if self.disk.holder is not None:
            self.disk.holder = "somebody"
        return await super().open(context)


class NoFsync(Right):
    """Writes, and leaves it to the system when it becomes durable (PySyncObj's journal, still)."""

    def write(self, batch: LogBatch) -> None:
        MemoryLogStorage.write(self, batch)

    async def close(self) -> None:
        self.disk.sync()
        await super().close()


class OneFlushBehind(Right):
    """Reports a batch as durable when it is the one before that is."""

    def write(self, batch: LogBatch) -> None:
        self.disk.sync()
        MemoryLogStorage.write(self, batch)


class CommittedAhead(Right):
    """Stores any committed, and keeps it when the log is truncated below it."""

    def write(self, batch: LogBatch) -> None:
        super().write(msgspec.structs.replace(batch, committed=None))
        self.disk.committed = batch.committed or self.disk.committed


class ReorderedParts(Right):
    """Appends before it truncates."""

    def write(self, batch: LogBatch) -> None:
        if batch.truncate_since is not None and batch.entries:
            first = next_index(self.disk.last_purged)
            self._check_batch(batch)
            self.disk.entries[batch.entries[0].index - first :] = batch.entries
            super().write(msgspec.structs.replace(batch, entries=()))
        else:
            super().write(batch)


class EntriesBeforeTheCheck(Right):
    """Writes the vote first and then finds out that the entries would make a hole."""

    def write(self, batch: LogBatch) -> None:
        if batch.vote is not None:
            super().write(LogBatch(vote=batch.vote))
        super().write(batch)


class TruncatesTooMuch(Right):
    """Removes the entry before, too."""

    def _truncate(self, since: int) -> None:
        super()._truncate(max(since - 1, 0))


class TruncatesTooLittle(Right):
    """Keeps the entry it should remove first."""

    def _truncate(self, since: int) -> None:
        super()._truncate(since + 1)

    def _check_batch(self, batch: LogBatch) -> None:
        if batch.truncate_since is None:
            super()._check_batch(batch)


class EmptyRead(Right):
    """Gives nothing where there is nothing (openraft #1795: an empty read taken as "nothing to send")."""

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        first = next_index(self.disk.last_purged)
        if not first <= start < first + len(self.disk.entries):
            return []
        return await super().read(start, stop, max_bytes)


class NothingFitsTheLimit(Right):
    """Gives no entry that is larger than the limit."""

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        found = await super().read(start, stop, max_bytes)
        return [entry for entry in found if len(entry.payload) <= max_bytes]


class HoleOnRead(Right):
    """Skips what is too large and goes on behind it."""

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        found = await super().read(start, stop, 1 << 40)
        return found[:1] + [entry for entry in found[1:] if len(entry.payload) <= max_bytes]


class StaleCache(Right):
    """Caches entries by index, and does not look when they are replaced."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._cache: dict[int, Entry] = {}

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        found = await super().read(start, stop, max_bytes)
        return [self._cache.setdefault(entry.index, entry) for entry in found]


class CorruptNotNoticed(Right):
    """Has no checksums."""

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        found = await MemoryLogStorage.read(self, start, stop, max_bytes)
        return [
            Entry(entry.log_id, entry.time_ms, entry.kind, b"damaged") if entry.index in self.disk.damaged else entry
            for entry in found
        ]


class DamageCutsTheLog(Right):
    """Takes the log to end where the damage begins (a silent truncation)."""

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        identity = await super().open(context)
        for position, entry in enumerate(self.disk.entries):
            if entry.index in self.disk.damaged:
                del self.disk.entries[position:]
                self.disk.damaged.clear()
                break
        return identity

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        return await MemoryLogStorage.read(self, start, stop, max_bytes) if self.disk.entries else []


class DefaultVoteForADamagedOne(Right):
    """Starts anew with the default vote where it cannot read the real one, and may vote twice."""

    async def read_state(self) -> LogState:
        state = await MemoryLogStorage.read_state(self)
        return msgspec.structs.replace(state, vote=None) if "vote" in self.disk.damaged else state


class CancelLeavesHalf(Right):
    """Writes the parts with an await between them, and stops where it is cancelled."""

    def write(self, batch: LogBatch) -> None:
        return self._slowly(batch)  # type: ignore[return-value]

    async def _slowly(self, batch: LogBatch) -> None:
        self._check_writable("log")
        self._check_batch(batch)
        for part in (
            LogBatch(vote=batch.vote),
            LogBatch(truncate_since=batch.truncate_since, purge_upto=batch.purge_upto),
            LogBatch(entries=batch.entries),
            LogBatch(committed=batch.committed),
        ):
            super().write(part)
            await asyncio.sleep(0)


class FailedWriteNotLatched(Right):
    """Reports a failed write, and takes the next one as if nothing had been (SQLite does after an EIO)."""

    def write(self, batch: LogBatch) -> None:
        try:
            super().write(batch)
        finally:
            self._failure = None


class FailedWriteHalfDone(Right):
    """Changes the vote before it notices that the disk is full."""

    def write(self, batch: LogBatch) -> None:
        if batch.vote is not None and self.disk.opened_by is self:
            self.disk.vote = batch.vote
        super().write(batch)


class CloseNotIdempotent(Right):
    """Raises when it is closed twice."""

    _is_closed = True

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        self._is_closed = False
        return await super().open(context)

    async def close(self) -> None:
        if self._is_closed:
            raise StorageError("it is closed already", verb="close")
        self._is_closed = True
        await super().close()


class UsableAfterClose(Right):
    """Goes on writing after it was closed."""

    def _check_open(self, verb: str) -> None:
        return


class IdentityLost(Right):
    """Keeps no identity: any node may open the store of any other."""

    async def close(self) -> None:
        await super().close()
        self.disk.identity = None


class IdentityInPart(Right):
    """Stores the fields of the identity it knows, not those that came later."""

    async def save_identity(self, identity: StoreIdentity) -> None:
        await super().save_identity(msgspec.structs.replace(identity, largest_lease_ms=0))


class GroupIgnored(Right):
    """Compares the node, not the group."""

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        group = "default" if self.disk.identity is None else self.disk.identity.group
        return await super().open(AdapterContext(context.node_id, clock=context.clock, group=group))


class PayloadsAsText(Right):
    """Decodes payloads as text, and replaces what is none."""

    def write(self, batch: LogBatch) -> None:
        changed = [
            Entry(entry.log_id, entry.time_ms, entry.kind, entry.payload.decode("utf-8", "replace").encode())
            for entry in batch.entries
        ]
        super().write(msgspec.structs.replace(batch, entries=changed))


class SilentInfo(Right):
    """Says nothing about itself."""

    async def info(self) -> StorageInfo:
        return StorageInfo(adapter="", location="", size_bytes=0, durability="")


WRONG: dict[type[Right], str] = {
    GapAccepted: "test_l4_a_batch_that_would_make_a_hole_is_refused_whole",
    FirstIndexAnything: "test_l4_the_first_entry_of_an_empty_log_has_index_zero",
    VoteLost: "test_l2_the_vote_read_back_is_the_one_last_written",
    VoteNeverFlushedAlone: "test_l2_a_vote_survives_a_power_loss",
    CommittedFlagLost: "test_l2_the_vote_read_back_is_the_one_last_written",
    PurgeForgets: "test_l5_a_purge_removes_up_to_its_index",
    PurgeKeepsItsLast: "test_l5_a_purge_removes_up_to_its_index",
    OlderPurgeGoesBack: "test_l5_repeating_an_older_purge_changes_nothing",
    TwoOpeners: "test_l1_a_second_opener_is_refused_at_once_and_told_who_holds_the_store",
    ClaimTakenAlong: "test_l1_every_opener_is_refused_until_the_holder_has_closed",
    HolderNotNamed: "test_l1_a_second_opener_is_refused_at_once_and_told_who_holds_the_store",
    NoFsync: "test_l2_entries_survive_a_power_loss",
    OneFlushBehind: "test_l2_entries_survive_a_power_loss",
    CommittedAhead: "test_l10_committed_is_never_ahead_of_the_log",
    ReorderedParts: "test_l3_truncating_replaces_entries_of_the_same_indexes",
    EntriesBeforeTheCheck: "test_l4_a_batch_that_would_make_a_hole_is_refused_whole",
    TruncatesTooMuch: "test_l3_truncating_again_and_again_keeps_what_comes_before",
    TruncatesTooLittle: "test_l3_a_truncation_is_still_one_after_reopening",
    EmptyRead: "test_l8_a_read_that_starts_at_a_purged_or_absent_entry_is_an_error",
    NothingFitsTheLimit: "test_l8_a_limited_read_is_a_prefix_that_is_never_empty",
    HoleOnRead: "test_l8_an_entry_larger_than_the_limit_is_given_alone_wherever_it_stands",
    StaleCache: "test_l8_what_was_replaced_is_never_read_again",
    CorruptNotNoticed: "test_l9_a_damaged_entry_is_found_and_is_never_an_absent_one",
    DamageCutsTheLog: "test_l9_a_damaged_entry_is_found_and_is_never_an_absent_one",
    DefaultVoteForADamagedOne: "test_l9_a_damaged_vote_is_found_and_is_never_the_default_vote",
    CancelLeavesHalf: "test_l6_a_cancelled_write_is_done_whole_or_not_at_all",
    FailedWriteNotLatched: "test_l7_after_a_failed_write_every_later_one_is_refused",
    FailedWriteHalfDone: "test_l7_what_was_durable_before_a_failed_write_still_is",
    CloseNotIdempotent: "test_l11_close_is_idempotent_and_ends_every_thread",
    UsableAfterClose: "test_l11_a_closed_store_refuses_everything",
    IdentityLost: "test_l1_the_store_of_another_node_is_refused_and_left_untouched",
    IdentityInPart: "test_l2_the_identity_read_back_is_the_one_last_saved",
    GroupIgnored: "test_l1_the_store_of_another_group_is_refused_and_left_untouched",
    PayloadsAsText: "test_l2_entries_are_read_back_whole_in_every_field",
    SilentInfo: "test_info_says_which_adapter_where_and_what_durable_means",
}
"""Each wrong storage and the case that names its fault."""


class WrongLogStorage(LogStorageConformance):
    """The kit on one of them; subclassed with ``adapter``."""

    adapter: type[Right] = Right

    def opener(self) -> Opener:
        self.disk = Disk()
        return lambda: self.adapter(self.disk)

    @contextmanager
    def power(self) -> Iterator[PowerSwitch]:
        yield self.disk

    async def make_next_write_fail(self, storage: RaftLogStorage) -> None:
        self.disk.fail_writes = StorageFull("the disk is full")

    async def damage_entry(self, opener: Opener, index: int) -> None:
        self.disk.damaged.add(index)

    async def damage_vote(self, opener: Opener) -> None:
        self.disk.damaged.add("vote")
