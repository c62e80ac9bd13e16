"""SQLite's errors in raftkit's words: the one place where they are translated."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from raftkit_core.errors import StorageCorrupt, StorageError, StorageFull, StorageLocked

_PRIMARY = 0xFF  # an extended result code keeps its primary code in the low byte


def translate(error: Exception, path: Path, *, subject: str, verb: str) -> StorageError:
    """The typed error for what SQLite or the operating system said while ``verb`` was tried on ``subject``."""
    if isinstance(error, StorageError):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    text = f"{path}: cannot {verb} the {subject}: {error} ({name})"
    match code & _PRIMARY if isinstance(code, int) else None:
        case sqlite3.SQLITE_FULL:
            return StorageFull(
                text, subject=subject, verb=verb, hint=f"free space on the disk of {path.parent}, then restart the node"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return corrupt(path, subject=subject, verb=verb, what=f"{error} ({name})")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED if verb == "open":
            return StorageLocked(
                f"{path} is held by another SQLite connection that is not a raftkit node",
                subject=subject,
                verb=verb,
                hint=f"close the program that has it open; find it with: fuser {path}",
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return StorageError(
                text, subject=subject, verb=verb, hint=f"check that this user may write {path} and its folder"
            )
        case sqlite3.SQLITE_IOERR:
            return StorageError(
                text,
                subject=subject,
                verb=verb,
                hint="look at the system log for disk errors and limits, then restart the node",
            )
        case _:
            return StorageError(text, subject=subject, verb=verb)


def corrupt(path: Path, *, subject: str, verb: str, what: str) -> StorageCorrupt:
    """What was read is not what was written, and what to do about it."""
    return StorageCorrupt(
        f"{path}: the {subject} is damaged: {what}",
        subject=subject,
        verb=verb,
        hint="do not delete the file and start again under this name: remove the node from the cluster, "
        "then let it join again as a learner with an empty folder",
    )
