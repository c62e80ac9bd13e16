"""Snapshots as files in one folder, for every node that has a data folder.

``current.snapshot`` is the published one. It is replaced by a rename after the new file is on the disk, so a crash
leaves the old or the new one, whole. ``<snapshot id>.tmp`` is being written and worthless after a crash;
``<snapshot id>.part`` is a receive that broke off and may go on; the newest is kept. There is no index file: what a
snapshot is stands in its own header.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from raftkit_core.errors import StorageCorrupt, StorageError, StorageFull
from raftkit_core.storage.interface import RaftSnapshotStorage, SnapshotSink
from raftkit_core.storage.snapshot_format import SnapshotDecoder, check_fits, check_snapshot_id
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.log_id import log_id_lt
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource

T = TypeVar("T")

CURRENT = "current.snapshot"
PIECE_BYTES = 1024 * 1024
SYNC_BYTES = 2 * PIECE_BYTES
"""A file that grows is synced as often. Synced once at its end, a gigabyte takes the disk a second or more, in which no
other file of the node, its log above all, is synced."""

_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


class FileSnapshotStorage(RaftSnapshotStorage):
    """Snapshots in ``folder`` (made with mode 0700 when opened). The node's log storage holds the claim on the node."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._current: SnapshotMeta | None = None
        self._publishing = asyncio.Lock()
        self._sinks: dict[str, _FileSink] = {}
        self._sources: set[_FileSource] = set()
        self._is_open = False

    async def open(self, context: AdapterContext) -> None:
        """Clear what a crash left, and check the published snapshot whole. Raises: StorageCorrupt, StorageError."""
        await in_thread(self._open)

    def _open(self) -> None:
        with _translated("open", self.folder):
            make_durable_folder(self.folder)
            self._remove_leftovers()
        path = self.folder / CURRENT
        self._current = None
        with _translated("open", path):
            try:
                fd = os.open(path, os.O_RDONLY | _NOFOLLOW | _CLOEXEC)
            except FileNotFoundError:
                self._is_open = True
                return
        try:
            self._current = check_file(fd, path)
        finally:
            os.close(fd)
        self._is_open = True

    def _remove_leftovers(self) -> None:
        """Files of writers that died, and all but the newest broken receive."""
        parts = sorted(self.folder.glob("*.part"), key=lambda path: path.lstat().st_mtime_ns)
        for path in [*self.folder.glob("*.tmp"), *parts[:-1]]:
            path.unlink()

    async def close(self) -> None:
        self._is_open = False
        for sink in list(self._sinks.values()):
            await sink.abort()
        for source in list(self._sources):
            await source.close()

    async def current(self) -> SnapshotMeta | None:
        self._check_open("read")
        return self._current

    async def source(self) -> SnapshotSource | None:
        self._check_open("read")
        async with self._publishing:
            if self._current is None:
                return None
            return await in_thread(self._open_source, undo=_FileSource.close_now)

    def _open_source(self) -> _FileSource:
        """Opened and checked once more: what is sent or restored from was read a moment ago."""
        path = self.folder / CURRENT
        with _translated("open", path):
            fd = os.open(path, os.O_RDONLY | _NOFOLLOW | _CLOEXEC)
        try:
            source = _FileSource(self, check_file(fd, path), fd, path)
        except BaseException:
            os.close(fd)
            raise
        self._sources.add(source)
        return source

    async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
        self._check_open("write")
        check_snapshot_id(snapshot_id)
        if snapshot_id in self._sinks:
            raise StorageError(f"snapshot {snapshot_id} is already being written", subject="snapshot", verb="write")
        return await in_thread(self._open_sink, snapshot_id, resume, undo=lambda sink: sink.finish(keep=resume))

    def _open_sink(self, snapshot_id: str, resume: bool) -> _FileSink:
        path = self.folder / f"{snapshot_id}.tmp"
        part = self.folder / f"{snapshot_id}.part"
        with _translated("write", path):
            path.unlink(missing_ok=True)
            if resume:
                for other in self.folder.glob("*.part"):
                    if other != part:  # of another snapshot: nobody will go on with it
                        other.unlink(missing_ok=True)
            if resume and _is_own_file(part):
                part.rename(path)
                fd = os.open(path, os.O_RDWR | _NOFOLLOW | _CLOEXEC)
            else:
                part.unlink(missing_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC, 0o600)
            offset = os.lseek(fd, 0, os.SEEK_END)
        sink = self._sinks[snapshot_id] = _FileSink(self, snapshot_id, fd, path, offset)
        return sink

    async def size_bytes(self) -> int:
        return await in_thread(self._size_bytes)

    def _size_bytes(self) -> int:
        size = 0
        for path in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                size += path.lstat().st_size
        return size

    async def free_bytes(self) -> int | None:
        return await in_thread(self._free_bytes)

    def _free_bytes(self) -> int | None:
        try:
            usage = shutil.disk_usage(self.folder)
        except OSError:
            return None
        return usage.free if usage.total > 0 else None  # some file systems do not say

    def _publish(self, sink: _FileSink, meta: SnapshotMeta) -> SnapshotMeta:
        """In a thread, one at a time. ``_current`` moves in here, so a cancelled caller cannot leave it behind."""
        found = check_file(sink.fd, sink.path)
        check_fits(meta, found)
        if self._current is not None and log_id_lt(found.last_log_id, self._current.last_log_id):
            return self._current
        with _translated("publish", sink.path):
            os.fsync(sink.fd)
            sink.path.replace(self.folder / CURRENT)
            self._current = found
            sync_folder(self.folder)
            for part in self.folder.glob("*.part"):  # of an older snapshot: nobody will go on with it
                part.unlink()
        return found

    def _check_open(self, verb: str) -> None:
        if not self._is_open:
            raise StorageError(f"the snapshot folder {self.folder} is not open", subject="snapshot", verb=verb)


class _FileSource(SnapshotSource):
    """Holds the file open, so that it stays readable after another took its name."""

    def __init__(self, storage: FileSnapshotStorage, meta: SnapshotMeta, fd: int, path: Path) -> None:
        self.meta = meta
        self._storage = storage
        self._fd: int | None = fd
        self._path = path
        self._reads = 0

    async def open(self, offset: int = 0, chunk_bytes: int = PIECE_BYTES) -> AsyncIterator[bytes]:
        while offset < self.meta.size_bytes:
            data = await in_thread(self._read, offset, min(chunk_bytes, PIECE_BYTES))
            offset += len(data)
            yield data

    def _read(self, offset: int, size: int) -> bytes:
        if self._fd is None:
            raise StorageError(f"{self._path} was closed while it was read", subject="snapshot", verb="read")
        with _translated("read", self._path):
            data = os.pread(self._fd, size, offset)
        if not data:
            raise StorageCorrupt(f"{self._path} became shorter than {self.meta.size_bytes} bytes", subject="snapshot")
        return data

    async def close(self) -> None:
        self.close_now()

    def close_now(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._storage._sources.discard(self)
            os.close(fd)


class _FileSink(SnapshotSink):
    def __init__(self, storage: FileSnapshotStorage, snapshot_id: str, fd: int, path: Path, offset: int) -> None:
        self.offset = offset
        self.fd = fd
        self.path = path
        self._storage = storage
        self._snapshot_id = snapshot_id
        self._is_done = False
        self._unsynced = 0

    async def write(self, chunk: bytes) -> None:
        self._check_not_done("write")
        try:
            for start in range(0, len(chunk), PIECE_BYTES):
                await in_thread(self._write, chunk[start : start + PIECE_BYTES])
        except StorageError:
            await self.abort()
            raise

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with _translated("write", self.path):
            while len(view):
                written = os.pwrite(self.fd, view, self.offset)
                self.offset += written
                view = view[written:]
            self._unsynced += len(data)
            if self._unsynced >= SYNC_BYTES:
                self._unsynced = 0
                _sync_data(self.fd)

    async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
        self._check_not_done("publish")
        try:
            if meta.snapshot_id != self._snapshot_id:
                raise StorageCorrupt(
                    f"snapshot {self._snapshot_id} was published as {meta.snapshot_id}",
                    subject="snapshot",
                    verb="publish",
                )
            async with self._storage._publishing:
                return await in_thread(self._storage._publish, self, meta)
        finally:
            await self.abort()

    async def abort(self, *, keep: bool = False) -> None:
        if not self._is_done:
            await in_thread(self.finish, keep)

    def finish(self, keep: bool) -> None:
        """In a thread: close the file, and delete it or leave it for a resume."""
        self._is_done = True
        try:
            with _translated("write", self.path):
                if keep:
                    os.fsync(self.fd)
                    self.path.replace(self.path.with_suffix(".part"))
                else:
                    self.path.unlink(missing_ok=True)  # published: the name is already gone
        finally:
            os.close(self.fd)
            self._storage._sinks.pop(self._snapshot_id, None)

    def _check_not_done(self, verb: str) -> None:
        if self._is_done:
            raise StorageError(f"snapshot {self._snapshot_id} is already finished", subject="snapshot", verb=verb)


async def in_thread(function: Callable[..., T], *args: object, undo: Callable[[T], object] | None = None) -> T:
    """Run ``function`` in a thread and outlive it: a cancelled caller waits for its end before it goes.

    A thread cannot be interrupted; if the caller went on, it would close or rename files the thread is working on.
    ``undo`` gets a result that a cancelled caller can no longer take.
    """
    future = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled() and future.exception() is None and undo is not None:
            undo(future.result())
        raise


def check_file(fd: int, path: Path) -> SnapshotMeta:
    """Read a container whole and give its meta. Raises: StorageCorrupt, StorageError."""
    decoder = SnapshotDecoder()
    digest = hashlib.sha256()
    size = 0
    with _translated("read", path):
        while data := os.pread(fd, PIECE_BYTES, size):
            size += len(data)
            digest.update(data)
            try:
                decoder.feed(data)
            except StorageCorrupt as error:
                raise _at(path, error) from error
    try:
        header = decoder.finish()
    except StorageCorrupt as error:
        raise _at(path, error) from error
    return header.meta(size_bytes=size, sha256=digest.hexdigest())


def make_durable_folder(folder: Path) -> None:
    """Make ``folder`` (mode 0700) and what is missing above it, so that a power loss cannot take its name away."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


_sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable. Systems that cannot open a folder make renames durable themselves."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _at(path: Path, error: StorageCorrupt) -> StorageCorrupt:
    return StorageCorrupt(f"{path}: {error.message}", subject="snapshot", verb="read", hint=error.hint)


def _is_own_file(path: Path) -> bool:
    """A regular file, not a link planted under its name."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _translated(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot {verb} {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                message, subject="snapshot", verb=verb, hint="free space on that disk, then restart the node"
            ) from error
        raise StorageError(
            message, subject="snapshot", verb=verb, hint="check that the folder exists and is writable by this user"
        ) from error
