"""A small file beside the node that remembers what Redis confirmed, so that a Redis that forgot is found out.

Redis can go back behind its own answers: FLUSHALL, a restart without its file, an older copy put in place, a replica
promoted. Nothing in Redis tells that afterwards; a voter that trusted it could vote twice in one term. So every change
has a sequence number, kept in Redis and here, and a store that comes back with a lower one is ``StoreLostWrites``.

**When it is written.** After Redis confirmed a change and before the caller is told. Never before: a crash in between
would accuse a healthy store. A note every N entries would not do: a promoted replica typically lacks just the last
write.

**When it is synced to disk.** A kill of the node, or of Redis, loses nothing of this file, because the system keeps
what was written. Only a power failure of *this* machine can. Votes and identity are synced before the caller is told.
Everything else is synced within :data:`SYNC_INTERVAL_S` (``witness=async``, the default: it costs one small
``pwrite``), or before the caller is told (``witness=sync``: one more flush per write). What ``async`` gives up: if
power fails here, *and* Redis in the same moment loses entries confirmed within that interval, that loss is not seen.
Redis alone losing them is always seen, and with ``durability=strict`` it takes an operator or a broken disk to lose
any.

**What it cannot see**: a loss while ``data_dir`` is lost too, and an old copy of both put back together.

The file has two slots written in turn, each with a checksum: a torn write spoils one and leaves the other.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StoreLostWrites
from raftkit_core.types.decoding import strictly

SYNC_INTERVAL_S = 0.1
SLOT_BYTES = 1024
_MAGIC = b"rkw1"
_HEADER_BYTES = len(_MAGIC) + 4 + 4

_encoder = msgspec.msgpack.Encoder()


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What was confirmed last. ``vote``, ``last`` and ``purged`` are values of ``codec``."""

    store_id: str = ""
    seq: int = 0
    vote: bytes = b""
    last: bytes = b""
    purged: bytes = b""


_decode = strictly(msgspec.msgpack.Decoder(Record).decode)


class Witness:
    """The file of one group in one ``data_dir``. One caller at a time."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        self.path = path
        self.record: Record | None = None
        self._sync_each = sync
        self._file = -1
        self._writes = 0
        self._synced = 0
        self._later: asyncio.Task[None] | None = None
        self._failure: StorageError | None = None
        self._thread: ThreadPoolExecutor | None = None

    def load(self) -> None:
        """Read the file; ``record`` stays None if there is none.

        Raises: StorageCorrupt if it has no readable slot, StorageError if it cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error("read", error) from error
        found = [(count, record) for slot in (0, 1) if (read := _read_slot(data, slot)) for count, record in [read]]
        if not found:
            raise StorageCorrupt(
                f"the witness file {self.path} is damaged, so nobody can tell whether Redis kept what it confirmed",
                subject="store",
                verb="open",
                hint=f"if this node's Redis was certainly not touched, remove {self.path}; else rejoin the node",
            )
        self._writes, self.record = max(found, key=lambda item: item[0])
        self._synced = self._writes

    def check(self, seen: Record | None, location: str) -> None:
        """Compare with what Redis holds now (None: nothing).

        Raises: StoreLostWrites, IdentityError (another store than the one this file is about).
        """
        mine = self.record
        if mine is None or (mine.seq == 0 and not mine.store_id):
            return
        if seen is None:
            raise lost_writes(f"{location} is empty, but it had confirmed {mine.seq} changes")
        if mine.store_id and seen.store_id and mine.store_id != seen.store_id:
            raise IdentityError(
                f"{location} holds store {seen.store_id}, but this node's folder belongs to store {mine.store_id}",
                hint=f"correct the storage URL or the data folder; if it was moved on purpose, remove {self.path}",
            )
        if seen.seq < mine.seq:
            raise lost_writes(f"{location} is at change {seen.seq}, but it had confirmed change {mine.seq}")
        if seen.seq == mine.seq and (seen.vote, seen.last, seen.purged) != (mine.vote, mine.last, mine.purged):
            raise lost_writes(f"{location} is at change {seen.seq}, but with another vote or log than it had confirmed")

    def open(self) -> None:
        """Make the file writable, creating it whole. Raises: StorageError."""
        try:
            if not self.path.exists():
                self._create()
            self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise self._error("open", error) from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raftkit-witness")

    async def note(self, record: Record, *, sync: bool = False) -> None:
        """Remember ``record``, synced before return if ``sync``. Raises: StorageError, now and from then on."""
        if self._failure is not None:
            raise self._failure
        self._writes += 1
        try:
            os.pwrite(self._file, _make_slot(self._writes, record), (self._writes % 2) * SLOT_BYTES)
        except OSError as error:
            self._failure = self._error("write", error)
            raise self._failure from error
        self.record = record
        if sync or self._sync_each:
            await self._sync()
        elif self._later is None:
            self._later = asyncio.create_task(self._sync_soon(), name="raftkit-redis witness sync")

    async def close(self) -> None:
        """Sync and close. Idempotent. A failing sync is not told: nothing is written through it any more."""
        later, self._later = self._later, None
        if later is not None:
            later.cancel()
            await asyncio.wait([later])
        if self._file < 0:
            return
        if self._failure is None and self._synced < self._writes:
            try:
                await self._sync()
            except StorageError as error:
                self._failure = error
        if self._thread is not None:
            self._thread.shutdown()  # a cancelled sync may still run on the file that is closed next
            self._thread = None
        os.close(self._file)
        self._file = -1

    async def _sync(self) -> None:
        upto = self._writes
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, os.fdatasync, self._file)
        except OSError as error:
            # The system may have dropped the pages, so a second sync that succeeds would prove nothing.
            self._failure = self._error("write", error)
            raise self._failure from error
        self._synced = upto

    async def _sync_soon(self) -> None:
        try:
            while self._synced < self._writes:
                await asyncio.sleep(SYNC_INTERVAL_S)
                await self._sync()
        except StorageError:
            return  # kept: the next note raises it
        finally:
            self._later = None

    def _create(self) -> None:
        part = self.path.with_name(self.path.name + ".part")
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(handle, _make_slot(0, Record()).ljust(SLOT_BYTES, b"\0") + bytes(SLOT_BYTES), 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        part.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _error(self, verb: str, error: OSError) -> StorageError:
        return StorageError(
            f"the witness file {self.path} failed: {error.strerror or error}",
            subject="store",
            verb=verb,
            hint="data_dir must be a local folder the node may write to, on a healthy disk",
        )


def witness_path(data_dir: Path, group: str) -> Path:
    safe = "".join(char if char.isalnum() or char in "._-" else f"%{ord(char):x}" for char in group)
    return data_dir / f"redis-{safe}.witness"


def lost_writes(message: str) -> StoreLostWrites:
    return StoreLostWrites(
        message,
        subject="store",
        verb="open",
        hint="is the storage URL right? If so, this store must not vote again: remove the node from the cluster and "
        "add it as a new one",
    )


def _make_slot(count: int, record: Record) -> bytes:
    body = count.to_bytes(8, "big") + _encoder.encode(record)
    if len(body) + _HEADER_BYTES > SLOT_BYTES:
        raise ValueError(f"a witness record of {len(body)} bytes does not fit its slot")
    return _MAGIC + len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body


def _read_slot(data: bytes, slot: int) -> tuple[int, Record] | None:
    part = data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
    if not part.startswith(_MAGIC):
        return None
    length, checksum = int.from_bytes(part[4:8], "big"), int.from_bytes(part[8:12], "big")
    body = part[_HEADER_BYTES : _HEADER_BYTES + length]
    if len(body) != length or length < 8 or zlib.crc32(body) != checksum:
        return None
    try:
        return int.from_bytes(body[:8], "big"), _decode(body[8:])
    except msgspec.DecodeError:
        return None
