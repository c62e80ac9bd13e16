"""What one row holds, and the checksum that proves it is the row that was written.

SQLite has no checksums of its own in the database file. Each row carries the CRC-32 of its content *and of its place*
(node, group, and index or key), so that a row of another store or another index is found like a flipped bit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import count
from typing import TypeAlias
from zlib import crc32

from raftkit_core.types.entry import Entries, Entry, times_of
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

EntryRow: TypeAlias = tuple[int, int, str, int, int, bytes, int]
"""``(idx, term, leader, time_ms, kind, payload, crc)``, in the order of the table's columns."""

_ENTRY_HEAD = struct.Struct(">qqqqH")


class Damaged(Exception):
    """A row is not what was written; the text says which and why."""


def place(node_id: NodeId, group: str) -> int:
    """The checksum every checksum of one store starts from."""
    return crc32(f"raftkit-sqlite/1\0{node_id}\0{group}".encode())


def rows_of(entries: Iterable[Entry], start: int) -> list[EntryRow]:
    """Rows to insert; ``start`` is :func:`place`."""
    rows: list[EntryRow] = []
    head = _ENTRY_HEAD.pack
    if type(entries) is Entries:
        kind, term, node_id = entries.kind, entries.first.term, entries.first.leader_id.node_id
        leader_bytes = node_id.encode()
        size = len(leader_bytes)
        for index, time_ms, payload in zip(
            count(entries.first.index), times_of(entries), entries.payloads, strict=False
        ):
            crc = crc32(payload, crc32(head(index, term, time_ms, kind, size) + leader_bytes, start))
            rows.append((index, term, node_id, time_ms, kind, payload, crc))
        return rows
    leader, leader_bytes = "", b""
    for entry in entries:
        log_id, time_ms, kind, payload = entry.log_id, entry.time_ms, entry.kind, entry.payload
        index, term, node_id = log_id.index, log_id.leader_id.term, log_id.leader_id.node_id
        if node_id != leader:
            leader, leader_bytes = node_id, node_id.encode()
        crc = crc32(payload, crc32(head(index, term, time_ms, kind, len(leader_bytes)) + leader_bytes, start))
        rows.append((index, term, node_id, time_ms, kind, payload, crc))
    return rows


def entry_of(row: EntryRow, start: int, expected_index: int) -> Entry:
    """The entry of a row.

    Raises: Damaged.
    """
    index, term, leader, time_ms, kind, payload, crc = row
    if index != expected_index:
        raise Damaged(f"entry {expected_index} is missing, the next one there is {index}")
    leader_bytes = leader.encode()
    try:
        head = _ENTRY_HEAD.pack(index, term, time_ms, kind, len(leader_bytes))
    except struct.error:
        raise Damaged(f"entry {index} has impossible values") from None
    found = crc32(payload, crc32(head + leader_bytes, start))
    if found != crc:
        raise Damaged(f"entry {index} has checksum {found:08x}, {crc & 0xFFFFFFFF:08x} was written")
    return Entry(LogId(LeaderId(term, leader), index), time_ms, kind, payload)


def meta_checksum(key: str, value: bytes, start: int) -> int:
    """The checksum of a row of the ``meta`` table."""
    return crc32(value, crc32(f"{key}\0".encode(), start))
