"""The claim on a store: an OS lock on a small file beside it, which says who holds it.

The kernel releases the lock when its holder dies, however it dies, so a stale claim never has to be guessed at. The
file itself stays: deleting it would let two processes lock two files of one name.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from raftkit_core.errors import StorageError, StorageLocked
from raftkit_core.types.ids import NodeId

LOCK_SUFFIX = ".lock"
NAME_WAIT_S = 0.2
"""How long a refused opener waits for a holder that has locked but not yet written its name."""
_LOCK_BYTE = 1 << 30
"""Windows locks bytes, and others cannot read them: a byte far behind the holder's name is locked."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds a store. ``wal``: what it confirmed is in the write-ahead log, so that file must be there."""

    node: NodeId
    pid: int
    host: str
    wal: bool = False

    def __str__(self) -> str:
        return f"node {self.node}, process {self.pid} on {self.host}"


class FileLock:
    """An exclusive claim on ``path``, held until :meth:`release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + LOCK_SUFFIX)
        self._store = path
        self._fd: int | None = None
        self._holder: Holder | None = None

    @property
    def expects_wal(self) -> bool:
        """Whether the last holder ended with confirmed writes in its write-ahead log."""
        return self._holder is not None and self._holder.wal

    def expect_wal(self, expected: bool) -> None:
        """Note it for whoever opens the store after this process, however this one ends. Best effort: not synced."""
        if self._fd is None or self._holder is None or self._holder.wal == expected:
            return
        self._holder = msgspec.structs.replace(self._holder, wal=expected)
        with suppress(OSError):
            _overwrite(self._fd, msgspec.json.encode(self._holder))

    def acquire(self, node_id: NodeId) -> None:
        """Claim at once, or be refused at once.

        Raises: StorageLocked (naming the holder), StorageError (the file cannot be made).
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)  # not inherited by children
        except OSError as error:
            raise StorageError(
                f"cannot make the lock file {self._path}: {error.strerror or error}",
                verb="open",
                hint=f"check that {self._path.parent} exists and that this user may write there",
            ) from error
        try:
            _lock(fd)
        except OSError as error:
            try:
                raise self._refusal(fd) from error
            finally:
                os.close(fd)
        self._fd = fd
        before = _read_holder(fd)
        self._holder = Holder(
            node=node_id, pid=os.getpid(), host=socket.gethostname(), wal=before is not None and before.wal
        )
        try:
            _overwrite(fd, msgspec.json.encode(self._holder))
        except OSError as error:  # a full disk: held, but nameless
            self.release()
            raise StorageError(f"cannot write the lock file {self._path}: {error.strerror}", verb="open") from error

    def release(self) -> None:
        """Let others open the store. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if not self.expects_wal:
                os.ftruncate(fd, 0)
        finally:
            self._holder = None
            _unlock(fd)
            os.close(fd)

    def _refusal(self, fd: int) -> StorageLocked:
        deadline = time.monotonic() + NAME_WAIT_S
        while (holder := _read_holder(fd)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if holder is None:
            return StorageLocked(
                f"{self._store} is held by another process that has not said who it is",
                verb="open",
                hint=f"find it with: fuser {self._path}",
            )
        return StorageLocked(
            f"{self._store} is held by {holder}",
            verb="open",
            hint=f"stop that process (kill {holder.pid} on {holder.host}), or give this node a data folder of its own",
        )


def _read_holder(fd: int) -> Holder | None:
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        return msgspec.json.decode(os.read(fd, 4096), type=Holder)
    except (OSError, ValueError, RecursionError):
        return None


def _overwrite(fd: int, content: bytes) -> None:
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, content)


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        os.lseek(fd, _LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _unlock(fd: int) -> None:
        os.lseek(fd, _LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)
