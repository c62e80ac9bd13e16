"""What a command of ``kv/1`` does to a cell: the one place where it is decided, for every machine that keeps cells.

The memory, SQLite and Redis machines differ in where their cells are. Results, down to the words of a refusal, must be
alike on nodes of any of them, so they look cells up, ask here, and store what comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import TypeAlias

from raftkit_core.errors import CommandRejected, PreconditionFailed, StorageCorrupt
from raftkit_core.state_machine.interface import AppliedEntry
from raftkit_core.types.kv import (
    KV_MACHINE,
    CompareAndSet,
    Delete,
    Get,
    KeyValue,
    KvCommand,
    ListKeys,
    Put,
    WriteResult,
)

Cell: TypeAlias = tuple[bytes, int]
"""Value and revision of a key that exists."""

KvResult: TypeAlias = WriteResult | PreconditionFailed


def decide(command: KvCommand, index: int, cell: Cell | None) -> tuple[KvResult, Cell | None]:
    """The result of ``command`` at log index ``index``, and the key's cell after it.

    The cell that was passed comes back, the same object, if nothing changes. Its value matters to ``CompareAndSet``
    alone; for other commands any value may stand in.
    """
    if type(command) is Put and command.if_revision is None:
        return WriteResult(revision=index, previous_revision=0 if cell is None else cell[1]), (command.value, index)
    value, revision = (b"", 0) if cell is None else cell
    if isinstance(command, CompareAndSet):
        if command.expected is None:
            if revision:
                return _refused(command.key, f"exists at revision {revision}, expected it absent"), cell
        elif not revision or value != command.expected:
            found = f"holds another value than expected, since revision {revision}" if revision else "does not exist"
            return _refused(command.key, found), cell
    elif command.if_revision is not None and command.if_revision != revision:
        return _refused(command.key, f"is at revision {revision}, expected {command.if_revision} (0: absent)"), cell
    if isinstance(command, Delete):
        if cell is None:
            return WriteResult(revision=index, changed=False), None
        return WriteResult(revision=index, previous_revision=revision), None
    return WriteResult(revision=index, previous_revision=revision), (command.value, index)


def keys_of(entries: Iterable[AppliedEntry]) -> dict[str, bool]:
    """The keys that ``entries`` touch; True where the value must be looked up, not just the revision."""
    keys: dict[str, bool] = {}
    for entry in entries:
        key = entry.command.key
        keys[key] = keys.get(key, False) or isinstance(entry.command, CompareAndSet)
    return keys


def apply_to_cells(
    entries: Iterable[AppliedEntry], cells: dict[str, Cell | None]
) -> tuple[list[KvResult], dict[str, Cell | None]]:
    """Results of ``entries``, and what every changed key holds after them (None: it does not exist).

    ``cells`` has an item for each of :func:`keys_of` and is changed on the way.
    """
    results: list[KvResult] = []
    changed: dict[str, Cell | None] = {}
    for entry in entries:
        key = entry.command.key
        before = cells[key]
        result, after = decide(entry.command, entry.log_id.index, before)
        results.append(result)
        if after is not before:
            cells[key] = changed[key] = after
    return results, changed


def check_query(query: object) -> Get | ListKeys:
    """Raises: CommandRejected for what ``kv/1`` does not answer."""
    if isinstance(query, ListKeys):
        if query.limit < 1:
            raise CommandRejected(f"limit is {query.limit}", hint="ask for at least 1 key")
        return query
    if isinstance(query, Get):
        return query
    raise CommandRejected(f"{KV_MACHINE} answers Get and ListKeys, not {type(query).__name__}")


def key_range(query: ListKeys) -> tuple[bytes, bool, bytes | None]:
    """``query`` as a range of UTF-8 keys: its start, whether that key itself belongs to it, and the first key behind
    it (None: it has no end)."""
    prefix = query.prefix.encode()
    # A UTF-8 byte is never 0xFF, so one more always fits.
    end = prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else None
    if query.after is not None and query.after >= query.prefix:
        return query.after.encode(), False, end
    return prefix, True, end


def cut(items: Iterable[KeyValue], query: ListKeys) -> list[KeyValue]:
    """As many of ``items`` as ``query`` asks for; no more than these are taken."""
    found: list[KeyValue] = []
    size_bytes = 0
    for item in items:
        found.append(item)
        size_bytes += bytes_of(item)
        if len(found) >= query.limit or (query.max_bytes is not None and size_bytes >= query.max_bytes):
            break
    return found


def is_enough(found: list[KeyValue], query: ListKeys) -> bool:
    """Whether :func:`cut` would take no more."""
    if len(found) >= query.limit:
        return True
    return query.max_bytes is not None and sum(map(bytes_of, found)) >= query.max_bytes


def bytes_of(item: KeyValue) -> int:
    return len(item.key.encode()) + len(item.value)


def check_revision(revision: int, last_index: int) -> None:
    """A row of a snapshot must be of an entry the snapshot covers. Raises: StorageCorrupt."""
    if not 0 < revision <= last_index:
        raise StorageCorrupt(
            f"damaged kv/1 state: revision {revision} in a snapshot at index {last_index}",
            subject="state machine",
            verb="restore",
        )


async def digest_of(chunks: AsyncIterator[bytes]) -> str:
    """sha256 over a snapshot stream: what every machine of ``kv/1`` gives as its digest."""
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _refused(key: str, what: str) -> PreconditionFailed:
    return PreconditionFailed(f"key {_shown(key)} {what}")


def _shown(key: str) -> str:
    """``key`` for a message that must be alike on every node: ``ascii`` does not depend on a Unicode table."""
    return ascii(key if len(key) <= 60 else key[:60] + "...")


__all__ = [
    "Cell",
    "KvResult",
    "apply_to_cells",
    "bytes_of",
    "check_query",
    "check_revision",
    "cut",
    "decide",
    "digest_of",
    "is_enough",
    "key_range",
    "keys_of",
]
