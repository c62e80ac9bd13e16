"""The state of the logical machine ``kv/1`` as bytes: what snapshots carry and what digests are taken of.

Every row is ``key length (4 bytes), value length (4), revision (8), key (UTF-8), value``, big endian, and rows stand in
ascending order of their keys. The stream may be cut anywhere. Memory, SQLite and Redis machines produce the same bytes
for the same state, so each restores the others' snapshots, and the digest is the sha256 over the stream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from raftkit_core.errors import StorageCorrupt
from raftkit_core.types.ids import MAX_ENTRY_BYTES
from raftkit_core.types.kv import MAX_KEY_BYTES

STREAM_CHUNK_BYTES = 256 * 1024
"""A quarter of what the contract allows: a chunk of short rows takes about 15 ms, and nothing else runs meanwhile."""

Row = tuple[str, bytes, int]
"""Key, value, revision."""

_HEAD = struct.Struct(">IIQ")


def encode_rows(rows: Iterable[Row]) -> Iterator[bytes]:
    """``rows`` (in ascending order of keys) as chunks of at most 256 KiB; none for no rows."""
    pending: list[bytes] = []
    size = 0
    for key, value, revision in rows:
        encoded = key.encode()
        pending += (_HEAD.pack(len(encoded), len(value), revision), encoded, value)
        size += _HEAD.size + len(encoded) + len(value)
        if size >= STREAM_CHUNK_BYTES:
            joined = b"".join(pending)
            whole = size - size % STREAM_CHUNK_BYTES
            for start in range(0, whole, STREAM_CHUNK_BYTES):
                yield joined[start : start + STREAM_CHUNK_BYTES]
            pending, size = [joined[whole:]], size - whole
    if size:
        yield b"".join(pending)


class RowDecoder:
    """Rows out of a stream's chunks, however they are cut. Strict: anything odd is a ``StorageCorrupt``."""

    def __init__(self) -> None:
        self._buffer = b""
        self._last_key: bytes | None = None

    def feed(self, chunk: bytes) -> Iterator[Row]:
        """The rows that ``chunk`` completes. Exhaust it before the next call. Raises: StorageCorrupt."""
        data = self._buffer + chunk
        position = 0
        while len(data) - position >= _HEAD.size:
            key_size, value_size, revision = _HEAD.unpack_from(data, position)
            if not 0 < key_size <= MAX_KEY_BYTES or value_size > MAX_ENTRY_BYTES:
                raise _corrupt(f"a row with a key of {key_size} and a value of {value_size} bytes")
            start = position + _HEAD.size
            end = start + key_size + value_size
            if end > len(data):
                break
            yield self._key(data[start : start + key_size]), data[start + key_size : end], revision
            position = end
        self._buffer = data[position:]

    def finish(self) -> None:
        """The end of the stream. Raises: StorageCorrupt if it is inside a row."""
        if self._buffer:
            raise _corrupt("it ends inside a row")

    def _key(self, encoded: bytes) -> str:
        if self._last_key is not None and encoded <= self._last_key:
            raise _corrupt("its keys are not in ascending order")
        self._last_key = encoded
        try:
            return encoded.decode()
        except UnicodeDecodeError as error:
            raise _corrupt("a key is not UTF-8") from error


def _corrupt(what: str) -> StorageCorrupt:
    return StorageCorrupt(f"damaged kv/1 state: {what}", subject="state machine", verb="restore")
