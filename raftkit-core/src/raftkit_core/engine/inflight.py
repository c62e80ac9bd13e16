"""What is on the wire to one peer."""

from __future__ import annotations

import msgspec

from raftkit_core.types.log_id import LogId


class Inflight(msgspec.Struct, frozen=True, gc=False):
    """Entries ``(prev_index, last_index]``, or with ``snapshot`` a whole snapshot up to it."""

    prev_index: int
    last_index: int
    snapshot: LogId | None = None
