"""The system machine: what core replicates beside every user's machine.

It holds cluster time and the client sessions (:mod:`.sessions`). An entry with a command it does not know is refused,
alike on every node.

The worker that applies entries calls, in log order: :meth:`observe` for every entry of any kind, ``sessions.admit`` for
entries under a session, :meth:`apply` for entries addressed to :data:`SYSTEM_MACHINE`; then per batch, when the user's
machine has its results, ``sessions.settle`` and :meth:`seal`, whose records a durable machine stores. A snapshot
carries :meth:`encode`; a restart continues from :meth:`restore` or :meth:`restore_records`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import msgspec

from raftkit_core.errors import CommandRejected, StorageCorrupt
from raftkit_core.state_machine.sessions import RESULT_RECORD, SESSION_RECORD, Sessions
from raftkit_core.state_machine.system_commands import (
    CloseSession,
    ExpireSessions,
    OpenSession,
    SystemCommand,
    decode_system_command,
    encode_system_command,
)
from raftkit_core.types.entry import ENVELOPE_VERSION, Envelope, encode_envelope
from raftkit_core.types.log_id import LogId

SYSTEM_MACHINE = "system/1"

TIME_RECORD = b"time"
"""Key of the record with cluster time."""


class _SystemState(msgspec.Struct, frozen=True):
    """The system section of a snapshot. ``records`` are those of :meth:`SystemMachine.records` but for the time."""

    time_ms: int
    records: dict[bytes, bytes] = {}


class SystemMachine:
    """``time_ms`` is the cluster time of the last entry observed."""

    def __init__(self) -> None:
        self.time_ms = 0
        self._sealed_time_ms = 0
        self.sessions = Sessions()

    def observe(self, time_ms: int) -> None:
        """Cluster time of an applied entry. It never falls, whatever an entry says."""
        self.time_ms = max(self.time_ms, time_ms)

    def apply(self, log_id: LogId, time_ms: int, body: bytes) -> Any:
        """Carry out a command of the system machine; a refusal is a result."""
        try:
            command = decode_system_command(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return CommandRejected(f"entry {log_id} has a command for {SYSTEM_MACHINE} that this version does not know")
        match command:
            case OpenSession():
                refused = self.sessions.open(log_id, command.ttl_ms)
                return log_id.index if refused is None else refused
            case CloseSession():
                return self.sessions.end(command.session)
            case ExpireSessions():
                return sum(self.sessions.end(session_id) for session_id in command.sessions)
            case _:
                assert_never(command)

    def seal(self) -> Sequence[tuple[bytes, bytes | None]]:
        """Records that changed since the last seal."""
        changes = self.sessions.take_changes()
        if self.time_ms != self._sealed_time_ms:
            self._sealed_time_ms = self.time_ms
            changes.append((TIME_RECORD, msgspec.msgpack.encode(self.time_ms)))
        return changes

    def records(self) -> dict[bytes, bytes]:
        """The whole state as records: what a durable machine holds in place of all earlier ones after a snapshot."""
        time = {TIME_RECORD: msgspec.msgpack.encode(self.time_ms)} if self.time_ms else {}
        return self.sessions.records() | time

    def encode(self) -> bytes:
        """The whole state, as the system section of a snapshot. Equal states give equal bytes."""
        return msgspec.msgpack.encode(_SystemState(self.time_ms, self.sessions.records()))

    def restore(self, encoded: bytes) -> None:
        """Replace the state by what :meth:`encode` gave; ``b""`` is the state of a new cluster.

        Raises: StorageCorrupt.
        """
        state = _SystemState(0) if not encoded else _decode(encoded, _SystemState)
        self._replace(state.time_ms, state.records)

    def restore_records(self, records: Mapping[bytes, bytes]) -> None:
        """Replace the state by the records a durable machine kept. Raises: StorageCorrupt."""
        time_ms = _decode(records[TIME_RECORD], int) if TIME_RECORD in records else 0
        self._replace(time_ms, {key: value for key, value in records.items() if key != TIME_RECORD})

    def _replace(self, time_ms: int, records: Mapping[bytes, bytes]) -> None:
        unknown = [key for key in records if not key.startswith((SESSION_RECORD, RESULT_RECORD))]
        if unknown:
            raise StorageCorrupt(
                f"the system machine has a record {unknown[0]!r} that this version does not know",
                subject="state machine",
                verb="restore",
                hint="start the node with the version that wrote it",
            )
        self.sessions = Sessions.from_records(records)
        self.time_ms = self._sealed_time_ms = time_ms


def system_payload(command: SystemCommand) -> bytes:
    """The payload of an entry with ``command``."""
    return encode_envelope(Envelope(ENVELOPE_VERSION, SYSTEM_MACHINE, 0, 0, 0, encode_system_command(command)))


def _decode(encoded: bytes, type_: type[Any]) -> Any:
    try:
        return msgspec.msgpack.decode(encoded, type=type_)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StorageCorrupt(
            f"damaged state of the system machine: {error}", subject="state machine", verb="restore"
        ) from error
