"""What a snapshot is, apart from its bytes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import msgspec

from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership

_SNAPSHOT_ID = re.compile(r"[0-9a-f-]{1,64}\Z")


def is_snapshot_id(text: str) -> bool:
    """Whether ``text`` may name a snapshot: 1 to 64 lower-case hex digits and dashes, safe as a file name."""
    return _SNAPSHOT_ID.match(text) is not None


class SnapshotMeta(msgspec.Struct, frozen=True):
    """State up to and including ``last_log_id``.

    ``snapshot_id`` names one set of bytes (so that a transfer resumes only with the same bytes): hex digits and dashes.
    ``time_ms`` is the cluster time of the last applied entry. ``size_bytes`` and ``sha256`` (hex) describe the whole
    container ``raftkit-snapshot/1``.
    """

    last_log_id: LogId | None
    membership: StoredMembership
    snapshot_id: str
    time_ms: int = 0
    size_bytes: int = 0
    sha256: str = ""


class SnapshotSource(ABC):
    """The bytes of one published snapshot (container ``raftkit-snapshot/1``), readable from any offset."""

    meta: SnapshotMeta

    @abstractmethod
    def open(self, offset: int = 0, chunk_bytes: int = 1024 * 1024) -> AsyncIterator[bytes]:
        """Chunks from ``offset`` to the end."""

    @abstractmethod
    async def close(self) -> None:
        """Let the bytes be deleted when a newer snapshot replaces them."""
