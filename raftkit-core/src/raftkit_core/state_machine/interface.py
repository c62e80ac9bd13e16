"""Contract of state machines, as numbered clauses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from raftkit_core.errors import BadCommand, CommandRejected
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta


class Codec(Protocol):
    """Commands and results to bytes and back. Never pickle."""

    def encode_command(self, command: Any) -> bytes:
        """Raises: BadCommand."""
        ...

    def decode_command(self, body: bytes) -> Any:
        """Raises: BadCommand. Called by the leader before a command may enter the log."""
        ...

    def encode_result(self, result: Any) -> bytes: ...

    def decode_result(self, body: bytes) -> Any: ...


class MsgspecCodec:
    """A codec for msgspec-typed commands and results, in MessagePack."""

    def __init__(self, command_type: Any, result_type: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._command = msgspec.msgpack.Decoder(command_type)
        self._result = msgspec.msgpack.Decoder(result_type)

    def encode_command(self, command: Any) -> bytes:
        try:
            body = self._encoder.encode(command)
            self._command.decode(body)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise BadCommand(f"the command cannot be encoded: {error}") from error
        return body

    def decode_command(self, body: bytes) -> Any:
        try:
            return self._command.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadCommand(f"the command cannot be decoded: {error}") from error

    def encode_result(self, result: Any) -> bytes:
        return self._encoder.encode(result)

    def decode_result(self, body: bytes) -> Any:
        return self._result.decode(body)


class AppliedEntry(msgspec.Struct, frozen=True, gc=False):
    """One normal entry to apply. ``time_ms`` is cluster time: alike on every node."""

    log_id: LogId
    time_ms: int
    command: Any


class ApplyBatch(Protocol):
    """Entries to apply in one step, in log order."""

    @property
    def entries(self) -> Sequence[AppliedEntry]:
        """Normal entries only; may be empty (blank and membership entries move ``last_log_id`` alone)."""
        ...

    @property
    def membership(self) -> StoredMembership | None:
        """The last membership entry of the batch, if one is in it."""
        ...

    @property
    def last_log_id(self) -> LogId:
        """The applied position after this batch."""
        ...

    def seal(self, results: Sequence[Any]) -> Sequence[tuple[bytes, bytes | None]]:
        """Records of the system machine that changed: keyed puts, or deletes (None).

        A durable machine stores them in the same transaction as its data and its applied position, and gives all of
        them back in :class:`AppliedState`.
        """
        ...


class AppliedState(msgspec.Struct, frozen=True):
    """What a durable machine holds: where it is, and the system machine's records."""

    applied: LogId | None = None
    membership: StoredMembership = StoredMembership()
    records: dict[bytes, bytes] = {}


class RaftStateMachine(ABC):
    """What a cluster replicates.

    - **M1** Deterministic: equal batches from equal states give equal states and results, in every process.
    - **M2** ``apply`` gives exactly one result per entry of ``batch.entries``; a refusal is a ``CommandRejected`` *as a
      result*. Any exception is Fatal for the node.
    - **M3** ``snapshot`` is a consistent view of the moment it is called and does not block ``apply``.
    - **M4** ``restore`` replaces everything or nothing.
    - **M5** A durable machine stores data, applied position, membership and ``batch.seal(results)`` in one transaction.
    """

    name: ClassVar[str]
    """``family/version`` of the logical machine: kept in the store identity, the envelope and snapshots."""
    durable: bool = False
    codec: Codec

    async def open(self, context: AdapterContext) -> None:
        """Called once before anything else."""

    async def close(self) -> None:
        """Called once after everything else. Idempotent."""

    async def applied_state(self) -> AppliedState:
        """Durable machines only: where to continue."""
        return AppliedState()

    @abstractmethod
    def apply(self, batch: ApplyBatch) -> Sequence[Any] | Awaitable[Sequence[Any]]:
        """Apply, in order. Returns the results, or an awaitable of them."""

    @abstractmethod
    def snapshot(self) -> AsyncIterator[bytes]:
        """Chunks (each at most 1 MiB) of the state at the moment of the call."""

    @abstractmethod
    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        """Replace the state by a snapshot's."""

    def digest(self) -> str | None:
        """A hex digest of the logical state, equal on all nodes at one applied position; None if not offered."""
        return None

    def query(self, query: Any) -> Any:
        """Answer a read-only question about the local state. The toolkit has made the read safe before."""
        raise CommandRejected(f"the machine {self.name} answers no queries")


__all__ = [
    "AppliedEntry",
    "AppliedState",
    "ApplyBatch",
    "BadCommand",
    "Codec",
    "CommandRejected",
    "MsgspecCodec",
    "RaftStateMachine",
]
