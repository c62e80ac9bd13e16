"""A file layer that drops what was not synced: power losses for stores written in Python.

``os.fsync`` and ``os.fdatasync`` are watched while a folder is. What a file held when it was last synced survives, and
so does the list of names a folder had when *it* was last synced: a rename or a new file whose folder was not synced is
undone. That is the harshest reading of POSIX, so a store that survives here survives on every file system. Writers in
C (SQLite) sync behind Python's back and cannot be watched.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any


class UnsyncedFiles:
    """Watch ``folder``; what is in it when the watch begins counts as durable. One watch at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._contents: dict[tuple[int, int], bytes] = {}
        self._names: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}
        self._kept_open: list[int] = []
        self._survivors: dict[Path, bytes | None] | None = None
        self._real: dict[str, Callable[[int], None]] = {}

    def __enter__(self) -> UnsyncedFiles:
        for path in [self.folder, *self.folder.rglob("*")]:
            self._remember(os.open(path, os.O_RDONLY))
        for name in ("fsync", "fdatasync"):
            if hasattr(os, name):
                self._real[name] = getattr(os, name)
                setattr(os, name, self._watched(self._real[name]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)
        for descriptor in self._kept_open:
            os.close(descriptor)
        self._kept_open.clear()

    def cut(self) -> None:
        """Decide what survives: later syncs come too late."""
        with self._lock:
            self._survivors = {}
            self._collect(self.folder, _key(os.stat(self.folder)), self._survivors)

    def restore(self) -> None:
        """Put back what survived the cut."""
        assert self._survivors is not None, "cut() comes first"
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path, content in self._survivors.items():
            if content is None:
                path.mkdir(mode=0o700)
            else:
                path.write_bytes(content)
                path.chmod(0o600)

    def _watched(self, sync: Callable[[int], None]) -> Callable[[Any], None]:
        def watched(descriptor: Any) -> None:
            sync(descriptor)
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            with self._lock:
                if self._survivors is None:
                    self._remember(os.dup(number))

        return watched

    def _remember(self, descriptor: int) -> None:
        """What this file or folder holds now survives. It is kept open, so that no other file gets its inode number."""
        self._kept_open.append(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(descriptor) as entries:
                self._names[_key(found)] = {entry.name: _key(entry.stat(follow_symlinks=False)) for entry in entries}
        elif stat.S_ISREG(found.st_mode):
            self._contents[_key(found)] = _read_whole(descriptor, found.st_size)

    def _collect(self, path: Path, key: tuple[int, int], survivors: dict[Path, bytes | None]) -> None:
        for name, child in self._names.get(key, {}).items():
            if child in self._names:
                survivors[path / name] = None
                self._collect(path / name, child, survivors)
            else:
                survivors[path / name] = self._contents.get(child, b"")


def _key(found: os.stat_result) -> tuple[int, int]:
    return (found.st_dev, found.st_ino)


def _read_whole(descriptor: int, size: int) -> bytes:
    try:
        return os.pread(descriptor, size, 0)
    except OSError:  # opened for writing only
        with open(f"/proc/self/fd/{descriptor}", "rb") as handle:
            return handle.read()
