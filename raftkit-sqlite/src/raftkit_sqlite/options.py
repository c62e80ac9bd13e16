"""What may follow the question mark of a ``sqlite:`` URL."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class SqliteOptions(msgspec.Struct, frozen=True):
    """Settings of one log file.

    ``durability``: ``full`` syncs the disk before a write returns. ``relaxed`` leaves that to checkpoints: a killed
    process loses nothing, a power loss may take the last writes *and votes*, so the node may vote twice in a term.
    ``wal_autocheckpoint``: pages (4 KiB) of the write-ahead log after which a write also checkpoints; it bounds the
    ``-wal`` file under steady load. When the log is idle it is checkpointed much earlier.
    ``quick_check``: read the whole file at open and check its structure (about 1 s per GiB).
    """

    durability: Literal["full", "relaxed"] = "full"
    wal_autocheckpoint: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 8000
    quick_check: bool = False
