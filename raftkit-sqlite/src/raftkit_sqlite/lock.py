"""The claim on a store: an OS lock on a small file beside it, which says who holds it.

The kernel releases the lock when its holder dies, however it dies, so a stale claim never has to be guessed at. The
file itself stays: deleting it would let two processes lock two files of one name.
"""

from __future__ import annotations

import os
import socket
import sys
import time
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
    """Who holds a store."""

    node: NodeId
    pid: int
    host: str

    def __str__(self) -> str:
        return f"node {self.node}, process {self.pid} on {self.host}"


class FileLock:
    """An exclusive claim on ``path``, held until :meth:`release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + LOCK_SUFFIX)
        self._store = path
        self._fd: int | None = None

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
        holder = Holder(node=node_id, pid=os.getpid(), host=socket.gethostname())
        try:
            _overwrite(fd, msgspec.json.encode(holder))
        except OSError as error:  # a full disk: held, but nameless
            self.release()
            raise StorageError(f"cannot write the lock file {self._path}: {error.strerror}", verb="open") from error

    def release(self) -> None:
        """Let others open the store. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            os.ftruncate(fd, 0)
        finally:
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
    except (OSError, msgspec.DecodeError):
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
