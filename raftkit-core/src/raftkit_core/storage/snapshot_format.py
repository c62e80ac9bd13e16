"""The container ``raftkit-snapshot/1``: what a snapshot is as bytes, on disk and between nodes.

    "raftkit-snapshot/1\\n"
    section*    kind (1 byte), length (4 bytes, big endian), crc32 over kind, length and payload (4 bytes), payload

Sections come in this order: one ``H`` (header, MessagePack), any number of ``S`` (state of the system machine), any
number of ``M`` (state of the user's machine), one ``E`` whose payload is the sha256 over every byte before it; then
the end. A payload is at most 1 MiB; where a section is cut carries no meaning. Whatever does not fit is a
``StorageCorrupt``: the checksums find damage early, before a machine sees it, the sha256 finds missing or exchanged
sections.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import AsyncIterator, Iterator

import msgspec

from raftkit_core.errors import StorageCorrupt
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta, is_snapshot_id

MAGIC = b"raftkit-snapshot/1\n"
MAX_SECTION_BYTES = 1024 * 1024
MAX_SYSTEM_BYTES = 256 * 1024 * 1024
"""The system section is held in memory: a larger one is refused, whatever its checksums say."""

HEADER, SYSTEM, MACHINE, END = b"H", b"S", b"M", b"E"

_FRAME = struct.Struct(">cII")
_CHECKED = struct.Struct(">cI")
_ORDER = {HEADER: 0, SYSTEM: 1, MACHINE: 2, END: 3}
_FEED_BYTES = MAX_SECTION_BYTES


class SnapshotHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is of: a :class:`SnapshotMeta` without size and digest, and whose state it holds.

    ``machine`` is the machine's name and version (``kv/1``); ``time_ms`` is cluster time at ``last_log_id``.
    """

    snapshot_id: str
    last_log_id: LogId | None
    membership: StoredMembership
    time_ms: int
    cluster_id: str | None
    machine: str

    @classmethod
    def of(cls, meta: SnapshotMeta, *, cluster_id: str | None, machine: str) -> SnapshotHeader:
        return cls(
            snapshot_id=meta.snapshot_id,
            last_log_id=meta.last_log_id,
            membership=meta.membership,
            time_ms=meta.time_ms,
            cluster_id=cluster_id,
            machine=machine,
        )

    def meta(self, *, size_bytes: int, sha256: str) -> SnapshotMeta:
        """The meta of the container this header stands in; ``sha256`` (hex) and size are of the whole container."""
        return SnapshotMeta(
            last_log_id=self.last_log_id,
            membership=self.membership,
            snapshot_id=self.snapshot_id,
            time_ms=self.time_ms,
            size_bytes=size_bytes,
            sha256=sha256,
        )


def check_fits(promised: SnapshotMeta, found: SnapshotMeta) -> None:
    """Compare what was promised with what is there. Size 0 and digest ``""`` promise nothing.

    Raises: StorageCorrupt, naming the fields that differ.
    """
    expected = msgspec.structs.replace(
        promised,
        size_bytes=promised.size_bytes or found.size_bytes,
        sha256=promised.sha256 or found.sha256,
    )
    differing = [
        f"{name} {getattr(found, name)!r} instead of {getattr(expected, name)!r}"
        for name in SnapshotMeta.__struct_fields__
        if getattr(expected, name) != getattr(found, name)
    ]
    if differing:
        raise _corrupt(f"{promised.snapshot_id}: {', '.join(differing)}")


def check_snapshot_id(snapshot_id: str) -> None:
    """Raises: StorageCorrupt unless ``snapshot_id`` is one (it becomes a file name)."""
    if not is_snapshot_id(snapshot_id):
        raise _corrupt(f"{snapshot_id[:80]!r} is no snapshot id: 1 to 64 of [0-9a-f-]")


async def encode_snapshot(header: SnapshotHeader, system: bytes, machine: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The container, in pieces of at most 1 MiB and a few bytes. Chunks of ``machine`` above 1 MiB are cut."""
    check_snapshot_id(header.snapshot_id)
    digest = hashlib.sha256()
    start = MAGIC + _section(HEADER, msgspec.msgpack.encode(header, order="deterministic"))
    digest.update(start)
    yield start
    for piece in _cut(system):
        section = _section(SYSTEM, piece)
        digest.update(section)
        yield section
    async for chunk in machine:
        for piece in _cut(chunk):
            section = _section(MACHINE, piece)
            digest.update(section)
            yield section
    yield _section(END, digest.digest())


class SnapshotDecoder:
    """Checks a container as its bytes come in, whatever their cut, and gives out the machine's.

    Only after :meth:`finish` returned is the whole known to be sound.
    """

    def __init__(self) -> None:
        self.header: SnapshotHeader | None = None
        self.is_system_complete = False
        """The first section after the system's has begun: ``header`` and ``system`` are final."""
        self._system = bytearray()
        self._buffer = bytearray()
        self._digest = hashlib.sha256(MAGIC)
        self._is_magic_seen = False
        self._last_kind: bytes | None = None

    @property
    def system(self) -> bytes:
        return bytes(self._system)

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Take the next bytes; give the machine chunks that they completed. Raises: StorageCorrupt."""
        chunks: list[bytes] = []
        view = memoryview(data)
        for start in range(0, len(data), _FEED_BYTES):  # in pieces: the buffer never holds much more than a section
            self._buffer += view[start : start + _FEED_BYTES]
            self._take_sections(chunks)
        return chunks

    def finish(self) -> SnapshotHeader:
        """The end of the bytes. Raises: StorageCorrupt if something is missing."""
        if self._last_kind != END or self.header is None or self._buffer:
            raise _corrupt("cut off: it ends before its last section is complete")
        return self.header

    def _take_sections(self, chunks: list[bytes]) -> None:
        if not self._is_magic_seen and not self._take_magic():
            return
        position = 0
        while True:
            section = self._section_at(position)
            if section is None:
                break
            kind, payload = section
            start, position = position, position + _FRAME.size + len(payload)
            self._take_section(kind, payload, chunks)
            with memoryview(self._buffer) as view:
                self._digest.update(view[start:position])
        del self._buffer[:position]

    def _take_magic(self) -> bool:
        seen = bytes(self._buffer[: len(MAGIC)])
        if seen != MAGIC[: len(seen)]:
            raise _corrupt(f"starts with {seen!r}, a container starts with {MAGIC!r}")
        if len(seen) < len(MAGIC):
            return False
        self._is_magic_seen = True
        del self._buffer[: len(MAGIC)]
        return True

    def _section_at(self, position: int) -> tuple[bytes, bytes] | None:
        available = len(self._buffer) - position
        if self._last_kind == END:
            if available:
                raise _corrupt("bytes follow the last section")
            return None
        if available < _FRAME.size:
            return None
        kind, length, checksum = _FRAME.unpack_from(self._buffer, position)
        if kind not in _ORDER or length > MAX_SECTION_BYTES:
            raise _corrupt(f"section of kind {kind!r} with {length} bytes")
        if available < _FRAME.size + length:
            return None
        start = position + _FRAME.size
        payload = bytes(memoryview(self._buffer)[start : start + length])
        if _checksum(kind, payload) != checksum:
            raise _corrupt(f"checksum of a {kind.decode()} section with {length} bytes")
        return kind, payload

    def _take_section(self, kind: bytes, payload: bytes, chunks: list[bytes]) -> None:
        last = -1 if self._last_kind is None else _ORDER[self._last_kind]
        repeats = kind in (SYSTEM, MACHINE)
        if (self._last_kind is None) != (kind == HEADER) or _ORDER[kind] < last + (not repeats):
            raise _corrupt(f"a {kind.decode()} section after {(self._last_kind or b'nothing').decode()}")
        self._last_kind = kind
        if kind == HEADER:
            self.header = _decode_header(payload)
        elif kind == SYSTEM:
            if len(self._system) + len(payload) > MAX_SYSTEM_BYTES:
                raise _corrupt(f"a system section of more than {MAX_SYSTEM_BYTES} bytes")
            self._system += payload
        else:
            self.is_system_complete = True
            if kind == MACHINE:
                chunks.append(payload)
            elif payload != self._digest.digest():
                raise _corrupt("its sha256 does not fit its content")


class SnapshotReader:
    """A container being read: ``header`` and ``system`` at once, then the machine's chunks, once."""

    def __init__(self, decoder: SnapshotDecoder, source: AsyncIterator[bytes], ready: list[bytes]) -> None:
        assert decoder.header is not None, "made by read_snapshot once the header is in"
        self.header: SnapshotHeader = decoder.header
        self.system = decoder.system
        self._decoder = decoder
        self._source = source
        self._ready = ready

    async def machine_chunks(self) -> AsyncIterator[bytes]:
        """The machine's chunks. Raises StorageCorrupt, possibly only at the end: believe nothing before that."""
        ready, self._ready = self._ready, []
        for chunk in ready:
            yield chunk
        async for data in self._source:
            for chunk in self._decoder.feed(data):
                yield chunk
        self._decoder.finish()


async def read_snapshot(source: AsyncIterator[bytes]) -> SnapshotReader:
    """Read up to the machine's part. Raises: StorageCorrupt."""
    decoder = SnapshotDecoder()
    ready: list[bytes] = []
    while not decoder.is_system_complete:
        data = await anext(source, None)
        if data is None:
            decoder.finish()
            break
        ready += decoder.feed(data)
    return SnapshotReader(decoder, source, ready)


def _section(kind: bytes, payload: bytes) -> bytes:
    return _FRAME.pack(kind, len(payload), _checksum(kind, payload)) + payload


def _checksum(kind: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, len(payload))))


def _cut(data: bytes) -> Iterator[bytes]:
    if len(data) <= MAX_SECTION_BYTES:
        if data:
            yield data
        return
    for start in range(0, len(data), MAX_SECTION_BYTES):
        yield data[start : start + MAX_SECTION_BYTES]


def _decode_header(payload: bytes) -> SnapshotHeader:
    try:
        header = msgspec.msgpack.decode(payload, type=SnapshotHeader)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _corrupt(f"its header cannot be read: {error}") from error
    check_snapshot_id(header.snapshot_id)
    return header


def _corrupt(what: str) -> StorageCorrupt:
    return StorageCorrupt(
        f"damaged snapshot: {what}",
        subject="snapshot",
        verb="read",
        hint="let this node receive a new one: remove the node from the cluster and let it rejoin with an empty store",
    )
