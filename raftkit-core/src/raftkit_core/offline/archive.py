"""The format ``raftkit-backup/1``: one node's store as one checked file.

    "raftkit-backup/1\\n"
    section*    kind (1 byte), length (4 bytes, big endian), crc32 over kind, length and payload (4 bytes), payload

In this order: one ``H`` (:class:`BackupHeader`, MessagePack), any number of ``L`` (lists of log entries, MessagePack,
consecutive), any number of ``B`` (the bytes of the snapshot's container), one ``E`` whose payload is the sha256 over
every byte before it; then the end. The file is written beside its place and renamed when it is durable: half a backup
never has the name of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

import msgspec

from raftkit_core.errors import StorageCorrupt, StorageError
from raftkit_core.storage.file_snapshots import sync_folder
from raftkit_core.storage.interface import LogState
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.ids import MAX_ENTRY_BYTES
from raftkit_core.types.log_id import next_index
from raftkit_core.types.snapshot import SnapshotMeta

T = TypeVar("T")

MAGIC = b"raftkit-backup/1\n"
MAX_SECTION_BYTES = MAX_ENTRY_BYTES + 4 * 1024 * 1024
"""One entry of the greatest size always fits."""
HEADER, ENTRIES, SNAPSHOT, END = b"H", b"L", b"B", b"E"

_FRAME = struct.Struct(">cII")
_CHECKED = struct.Struct(">cI")
_ORDER = {HEADER: 0, ENTRIES: 1, SNAPSHOT: 2, END: 3}


class BackupHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Whose store it is and what is in it. ``created_ms`` is wall time, for people."""

    identity: StoreIdentity
    state: LogState
    snapshot: SnapshotMeta | None = None
    source: str = ""
    version: str = ""
    created_ms: int = 0

    @property
    def entries(self) -> int:
        last = self.state.last_log_id
        return 0 if last is None else last.index + 1 - next_index(self.state.last_purged)


class NewFile:
    """A file that gets its name when it is whole and durable. The name must be free."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._handle: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def __enter__(self) -> NewFile:
        if self.path.exists():
            raise StorageError(
                f"{self.path} exists already: nothing is overwritten",
                subject="file",
                verb="write",
                hint="name another file, or move that one away",
            )
        with translated(self.path, "write"):
            descriptor = os.open(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._handle = os.fdopen(descriptor, "wb")
        return self

    def write(self, data: bytes) -> None:
        assert self._handle is not None, "written to inside of its block"
        with translated(self.path, "write"):
            self._handle.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def running_digest(self) -> bytes:
        return self._digest.digest()

    def finish(self) -> None:
        """Durable, then named."""
        assert self._handle is not None, "finished inside of its block"
        with translated(self.path, "write"):
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()
            self._take_name()
            sync_folder(self.path.parent)

    def _take_name(self) -> None:
        """Replaces nothing."""
        try:
            os.link(self._scratch, self.path)
            self._scratch.unlink()
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # A disk without hard links, as many removable ones are: the name is taken first, then filled at once.
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            self._scratch.replace(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None and not self._handle.closed:
            self._handle.close()
        with contextlib.suppress(FileNotFoundError):
            self._scratch.unlink()


class BackupWriter:
    """Sections in order into a :class:`NewFile`."""

    def __init__(self, file: NewFile, header: BackupHeader) -> None:
        self._file = file
        file.write(MAGIC + section(HEADER, msgspec.msgpack.encode(header, order="deterministic")))

    def entries(self, entries: Sequence[Entry]) -> None:
        self._file.write(section(ENTRIES, msgspec.msgpack.encode(entries)))

    def snapshot(self, data: bytes) -> None:
        self._file.write(section(SNAPSHOT, data))

    def end(self) -> None:
        self._file.write(section(END, self._file.running_digest()))


class BackupFile:
    """A backup to read. :meth:`check` reads all of it; the other methods believe what was checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self.sha256 = ""
        self.header = self._read_header()

    def check(self) -> None:
        """Every byte against every checksum, and the entries against the header.

        Raises: StorageCorrupt, saying where.
        """
        expected = next_index(self.header.state.last_purged)
        snapshot = hashlib.sha256()
        for kind, payload in self._sections():
            if kind == ENTRIES:
                for entry in _decode(self.path, payload, list[Entry]):
                    if entry.index != expected:
                        raise _damaged(self.path, f"entry {entry.log_id} in the place of entry {expected}")
                    expected += 1
            elif kind == SNAPSHOT:
                snapshot.update(payload)
        if expected != next_index(self.header.state.last_log_id):
            raise _damaged(
                self.path, f"it ends before entry {expected}, its log ends at {self.header.state.last_log_id}"
            )
        promised = self.header.snapshot
        if promised is not None and snapshot.hexdigest() != promised.sha256:
            raise _damaged(self.path, "the snapshot's sha256 does not fit")

    def entries(self) -> Iterator[list[Entry]]:
        for kind, payload in self._sections():
            if kind == ENTRIES:
                yield _decode(self.path, payload, list[Entry])

    def snapshot(self) -> Iterator[bytes]:
        for kind, payload in self._sections():
            if kind == SNAPSHOT:
                yield payload

    def _read_header(self) -> BackupHeader:
        for kind, payload in self._sections():
            if kind == HEADER:
                return _decode(self.path, payload, BackupHeader)
        raise _damaged(self.path, "it has no header")

    def _sections(self) -> Iterator[tuple[bytes, bytes]]:
        """Every section, checked one by one; the digest is checked at the end."""
        digest = hashlib.sha256()
        with translated(self.path, "read"), self.path.open("rb") as handle:
            magic = handle.read(len(MAGIC))
            if magic.startswith(b"raftkit-snapshot/"):
                raise _damaged(
                    self.path, "this is a snapshot, no backup of a store", hint="raftkit snapshot restore FILE"
                )
            if magic != MAGIC:
                raise _damaged(self.path, f"it starts with {magic!r}: no backup of raftkit, or of another version")
            digest.update(magic)
            last: bytes | None = None
            while frame := handle.read(_FRAME.size):
                position = handle.tell() - len(frame)
                if len(frame) < _FRAME.size or last == END:
                    raise _damaged(self.path, f"bytes that are no section at {position}")
                kind, length, checksum = _FRAME.unpack(frame)
                if kind not in _ORDER or length > MAX_SECTION_BYTES or (last is None) != (kind == HEADER):
                    raise _damaged(self.path, f"no section at byte {position}")
                if last is not None and (_ORDER[kind], kind) < (_ORDER[last], last):
                    raise _damaged(self.path, f"a section out of order at byte {position}")
                payload = handle.read(length)
                if len(payload) < length or _checksum(kind, payload) != checksum:
                    raise _damaged(self.path, f"the section at byte {position} does not fit its checksum")
                if kind == END and payload != digest.digest():
                    raise _damaged(self.path, "its sha256 does not fit its content")
                digest.update(frame)
                digest.update(payload)
                last = kind
                yield kind, payload
            if last != END:
                raise _damaged(self.path, "it is cut off before its last section")
            self.size_bytes, self.sha256 = handle.tell(), digest.hexdigest()


def section(kind: bytes, payload: bytes) -> bytes:
    return _FRAME.pack(kind, len(payload), _checksum(kind, payload)) + payload


def _checksum(kind: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, len(payload))))


def _decode(path: Path, payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _damaged(path, f"a section that cannot be read: {error}") from error


def _damaged(
    path: Path, what: str, *, hint: str = "take another backup; nothing of this one was used"
) -> StorageCorrupt:
    return StorageCorrupt(f"{path}: {what}", subject="backup", verb="read", hint=hint)


@contextlib.contextmanager
def translated(path: Path, verb: str) -> Iterator[None]:
    """A system's error, told as ours."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot {verb} {path}: {error.strerror or error}",
            subject="file",
            verb=verb,
            hint="check the path, its permissions and the space on its disk",
        ) from error
