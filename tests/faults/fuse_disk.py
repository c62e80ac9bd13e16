"""A disk whose power can be cut: a FUSE folder that keeps what was not synced in memory only.

``FuseDisk`` mounts it from a test; the folder itself runs as a process of its own, this file as a script. A write goes
to memory, ``fsync`` and ``fdatasync`` bring a file to the folder below, and killing the process forgets the rest: what
a power loss leaves. Names (create, rename, remove) are durable at once: only contents are lost. Failures can be asked
for: a sync that fails and drops what it should have written, as Linux does; a write that fails; a disk that is full.

Needs Linux, ``/dev/fuse``, root, libfuse and the package mfusepy: ``why_not()`` says in words what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

READY_SECONDS = 10.0


def why_not() -> str | None:
    """What this machine lacks, in a sentence; None if it has everything."""
    if sys.platform != "linux" or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "a FUSE folder needs Linux with /dev/fuse that this user may open"
    if os.geteuid() != 0:
        return "a FUSE folder is mounted as root: run this suite as root"
    if ctypes.util.find_library("fuse") is None and ctypes.util.find_library("fuse3") is None:
        return "libfuse is missing: apt-get install libfuse2"
    if importlib.util.find_spec("mfusepy") is None:
        return "the package mfusepy is missing: uv sync --group faults"
    return None


class FuseDisk:
    """``mount`` shows ``below`` through the faulty disk. Start it, and always stop it."""

    def __init__(self, below: Path, mount: Path) -> None:
        self.below = below
        self.mount = mount
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.below.mkdir(parents=True, exist_ok=True)
        self.mount.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.below), str(self.mount)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + READY_SECONDS
        while not os.path.ismount(self.mount):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"the FUSE folder {self.mount} does not come up")
            time.sleep(0.01)

    def stop(self) -> None:
        """Forget what is not synced, unmount. Whoever has files open there gets errors."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        subprocess.run(["umount", "--lazy", str(self.mount)], check=False, stderr=subprocess.DEVNULL)

    def lose_power(self) -> None:
        """What was not synced is gone; the disk is there again, healthy."""
        self.stop()
        self.start()

    def ask(self, order: str) -> str:
        """``fail fsync N`` and ``fail write N`` (the next N fail with EIO), ``full`` and ``free``, ``syncs`` (how many
        there were)."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self) -> FuseDisk:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class _File:
    """One inode that is in use: its content in memory, and which parts of it the file below does not have."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR)
        self.content = bytearray(os.pread(self.fd, os.fstat(self.fd).st_size, 0))
        self.dirty: list[tuple[int, int]] = []
        self.size_changed = False
        self.users = 0

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.content):
            self.content.extend(bytes(end - len(self.content)))
            self.size_changed = True
        self.content[offset:end] = data
        if self.dirty and self.dirty[-1][1] == offset:
            self.dirty[-1] = (self.dirty[-1][0], end)
        else:
            self.dirty.append((offset, end))

    def truncate(self, length: int) -> None:
        if length < len(self.content):
            del self.content[length:]
        else:
            self.content.extend(bytes(length - len(self.content)))
        self.size_changed = True

    def sync(self) -> None:
        if self.size_changed:
            os.ftruncate(self.fd, len(self.content))
        for start, end in self.dirty:
            os.pwrite(self.fd, self.content[start : min(end, len(self.content))], start)
        os.fsync(self.fd)
        self.dirty.clear()
        self.size_changed = False

    def forget(self) -> None:
        """A failed sync: the pages count as clean, and what the disk has is what it had."""
        self.dirty.clear()
        self.size_changed = False


def serve(below: str, mount: str) -> None:
    import mfusepy

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def __init__(self) -> None:
            self.files: dict[tuple[int, int], _File] = {}
            self.handles: dict[int, _File] = {}
            self.next_handle = 1
            self.failing = {"fsync": 0, "write": 0}
            self.is_full = False
            self.syncs = 0

        def _below(self, path: str) -> str:
            return below + path

        def _file(self, path: str) -> _File:
            found = os.stat(self._below(path))
            key = (found.st_dev, found.st_ino)
            if key not in self.files:
                self.files[key] = _File(self._below(path))
            return self.files[key]

        def _handle(self, path: str) -> int:
            file = self._file(path)
            file.users += 1
            handle, self.next_handle = self.next_handle, self.next_handle + 1
            self.handles[handle] = file
            return handle

        def _fails(self, what: str) -> bool:
            if self.failing[what] > 0:
                self.failing[what] -= 1
                return True
            return False

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.lstat(self._below(path)) if fh is None else os.fstat(self.handles[fh].fd)
            names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_ino")
            shown = {name: getattr(found, name) for name in names}
            shown |= {"st_atime": found.st_atime_ns, "st_mtime": found.st_mtime_ns, "st_ctime": found.st_ctime_ns}
            held = self.handles[fh] if fh is not None else self.files.get((found.st_dev, found.st_ino))
            shown["st_size"] = found.st_size if held is None else len(held.content)
            return shown

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(self._below(path))]

        def open(self, path: str, flags: int) -> int:
            handle = self._handle(path)
            if flags & os.O_TRUNC:
                self.handles[handle].truncate(0)
            return handle

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            if self.is_full:
                raise mfusepy.FuseOSError(errno.ENOSPC)
            os.close(os.open(self._below(path), os.O_CREAT | os.O_RDWR, mode))
            return self._handle(path)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return bytes(self.handles[fh].content[offset : offset + size])

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            file = self.handles[fh]
            if self._fails("write"):
                raise mfusepy.FuseOSError(errno.EIO)
            if self.is_full and offset + len(data) > len(file.content):
                raise mfusepy.FuseOSError(errno.ENOSPC)
            file.write(data, offset)
            return len(data)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            file = self._file(path) if fh is None else self.handles[fh]
            file.truncate(length)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            self.syncs += 1
            file = self.handles[fh]
            if self._fails("fsync"):
                file.forget()
                raise mfusepy.FuseOSError(errno.EIO)
            file.sync()
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            self.syncs += 1
            return 0

        def flush(self, path: str, fh: int) -> int:
            return 0

        def release(self, path: str, fh: int) -> int:
            file = self.handles.pop(fh)
            file.users -= 1
            if file.users == 0 and os.fstat(file.fd).st_nlink == 0:
                found = os.fstat(file.fd)
                self.files.pop((found.st_dev, found.st_ino), None)
                os.close(file.fd)
            return 0

        def unlink(self, path: str) -> int:
            found = os.lstat(self._below(path))
            os.unlink(self._below(path))
            file = self.files.get((found.st_dev, found.st_ino))
            if file is not None and file.users == 0:
                del self.files[(found.st_dev, found.st_ino)]
                os.close(file.fd)
            return 0

        def rename(self, old: str, new: str) -> int:
            with contextlib.suppress(FileNotFoundError):
                self.unlink(new)
            os.rename(self._below(old), self._below(new))
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(self._below(path), mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(self._below(path))
            return 0

        def chmod(self, path: str, mode: int) -> int:
            os.chmod(self._below(path), mode)
            return 0

        def chown(self, path: str, uid: int, gid: int) -> int:
            os.chown(self._below(path), uid, gid)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            os.utime(self._below(path), ns=times)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(self._below(path))
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_namemax")
            return {name: int(getattr(found, name)) for name in (*names, "f_frsize")}

    disk = Disk()

    def obey() -> None:
        for line in sys.stdin:
            match line.split():
                case ["fail", ("fsync" | "write") as what, count]:
                    disk.failing[what] = int(count)
                    answer = "ok"
                case ["full"]:
                    disk.is_full, answer = True, "ok"
                case ["free"]:
                    disk.is_full, answer = False, "ok"
                case ["syncs"]:
                    answer = str(disk.syncs)
                case _:
                    answer = f"unknown order {line!r}"
            print(answer, flush=True)

    threading.Thread(target=obey, daemon=True).start()
    mfusepy.FUSE(disk, mount, foreground=True, nothreads=True, default_permissions=False, big_writes=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
