"""The system machine: what core replicates beside every user's machine.

It holds cluster time. Sessions, locks, elections, counters and queues are kept here as records once their commands
exist; until then an entry addressed to it is refused, alike on every node.

The worker that applies entries calls, in log order: :meth:`observe` for every entry of any kind, :meth:`apply` for
entries addressed to :data:`SYSTEM_MACHINE`, and per batch :meth:`seal`, whose records a durable machine stores.
A snapshot carries :meth:`encode`; a restart continues from :meth:`restore` or :meth:`restore_records`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from raftkit_core.errors import CommandRejected, StorageCorrupt
from raftkit_core.types.log_id import LogId

SYSTEM_MACHINE = "system/1"

TIME_RECORD = b"time"
"""Key of the record with cluster time."""


class _SystemState(msgspec.Struct, frozen=True):
    """The system section of a snapshot."""

    time_ms: int
    records: dict[bytes, bytes] = {}


class SystemMachine:
    """``time_ms`` is the cluster time of the last entry observed."""

    def __init__(self) -> None:
        self.time_ms = 0
        self._sealed_time_ms = 0

    def observe(self, time_ms: int) -> None:
        """Cluster time of an applied entry. It never falls, whatever an entry says."""
        self.time_ms = max(self.time_ms, time_ms)

    def apply(self, log_id: LogId, time_ms: int, body: bytes) -> Any:
        """Carry out a command of the system machine; a refusal is a result."""
        return CommandRejected(f"entry {log_id} has a command for {SYSTEM_MACHINE} that this version does not know")

    def seal(self, results: Sequence[Any]) -> Sequence[tuple[bytes, bytes | None]]:
        """Records that changed since the last seal."""
        if self.time_ms == self._sealed_time_ms:
            return ()
        self._sealed_time_ms = self.time_ms
        return ((TIME_RECORD, msgspec.msgpack.encode(self.time_ms)),)

    def records(self) -> dict[bytes, bytes]:
        """The whole state as records: what a durable machine holds in place of all earlier ones after a snapshot."""
        return {TIME_RECORD: msgspec.msgpack.encode(self.time_ms)} if self.time_ms else {}

    def encode(self) -> bytes:
        """The whole state, as the system section of a snapshot. Equal states give equal bytes."""
        return msgspec.msgpack.encode(_SystemState(self.time_ms), order="deterministic")

    def restore(self, encoded: bytes) -> None:
        """Replace the state by what :meth:`encode` gave; ``b""`` is the state of a new cluster.

        Raises: StorageCorrupt.
        """
        state = _SystemState(0) if not encoded else _decode(encoded, _SystemState)
        self.time_ms = self._sealed_time_ms = state.time_ms

    def restore_records(self, records: Mapping[bytes, bytes]) -> None:
        """Replace the state by the records a durable machine kept. Raises: StorageCorrupt."""
        time_ms = _decode(records[TIME_RECORD], int) if TIME_RECORD in records else 0
        self.time_ms = self._sealed_time_ms = time_ms


def _decode(encoded: bytes, type_: type[Any]) -> Any:
    try:
        return msgspec.msgpack.decode(encoded, type=type_)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StorageCorrupt(
            f"damaged state of the system machine: {error}", subject="state machine", verb="restore"
        ) from error
