"""Contract of state machines, as numbered clauses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, overload

import msgspec

from raftkit_core.errors import BadCommand, CommandRejected
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.decoding import DECODE_ERRORS
from raftkit_core.types.entry import Entries, Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta

T = TypeVar("T", covariant=True)


class Codec(Protocol):
    """Commands and results to bytes and back. Never pickle.

    A codec may also have

    - ``decode_commands(bodies) -> list``: many at once, each as ``decode_command`` would; it raises BadCommand if one
      of them would. It saves a call per command where they come in batches.
    - ``encode_checked(command) -> (body, decoded)``: as ``encode_command``, and what ``decode_command`` makes of the
      body, which nobody changes any more. A leader applies that instead of decoding what it proposed itself.
    """

    def encode_command(self, command: Any) -> bytes:
        """Raises: BadCommand."""
        ...

    def decode_command(self, body: bytes) -> Any:
        """Raises: BadCommand. Called by the leader before a command may enter the log."""
        ...

    def encode_result(self, result: Any) -> bytes: ...

    def decode_result(self, body: bytes) -> Any: ...


def decoder_of(codec: Codec) -> Callable[[list[bytes]], list[Any]]:
    """Decodes each of many bodies by itself: a damaged one changes nothing for its neighbours. It raises BadCommand."""
    together: Callable[[list[bytes]], list[Any]] | None = getattr(codec, "decode_commands", None)
    return together if together is not None else lambda bodies: list(map(codec.decode_command, bodies))


def checked_encoder_of(codec: Codec) -> Callable[[Any], tuple[bytes, Any]]:
    """Encodes a command and gives what its bytes decode to; None where the codec does not say. It raises BadCommand."""
    checked: Callable[[Any], tuple[bytes, Any]] | None = getattr(codec, "encode_checked", None)
    return checked if checked is not None else lambda command: (codec.encode_command(command), None)


class MsgspecCodec:
    """A codec for msgspec-typed commands and results, in MessagePack."""

    def __init__(self, command_type: Any, result_type: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._command = msgspec.msgpack.Decoder(command_type)
        self._result = msgspec.msgpack.Decoder(result_type)

    def encode_command(self, command: Any) -> bytes:
        return self._encode_and_decode(command)[0]

    def _encode_and_decode(self, command: Any) -> tuple[bytes, Any]:
        """The body, and what it decodes to. Raises: BadCommand."""
        try:
            body = self._encoder.encode(command)
            return body, self._command.decode(body)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise BadCommand(f"the command cannot be encoded: {error}") from error

    def decode_command(self, body: bytes) -> Any:
        try:
            return self._command.decode(body)
        except (*DECODE_ERRORS, TypeError) as error:  # TypeError: what cannot be hashed, in a set or as a key
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


class AppliedEntries(Sequence[AppliedEntry]):
    """Commands of consecutive entries. Each :class:`AppliedEntry` is made when it is asked for: a machine that needs no
    more than ``commands`` and ``first_index`` saves them."""

    __slots__ = ("_log", "commands", "first_index")

    def __init__(self, log: Sequence[Entry], commands: list[Any]) -> None:
        assert len(log) == len(commands), "one command for each entry"
        self._log = log
        self.commands = commands
        self.first_index = log.first.index if type(log) is Entries else log[0].log_id.index

    def __len__(self) -> int:
        return len(self.commands)

    def __iter__(self) -> Iterator[AppliedEntry]:
        for entry, command in zip(self._log, self.commands, strict=True):
            yield AppliedEntry(entry.log_id, entry.time_ms, command)

    @overload
    def __getitem__(self, at: int) -> AppliedEntry: ...

    @overload
    def __getitem__(self, at: slice) -> list[AppliedEntry]: ...

    def __getitem__(self, at: int | slice) -> AppliedEntry | list[AppliedEntry]:
        if isinstance(at, slice):
            return list(self)[at]
        entry = self._log[at]
        return AppliedEntry(entry.log_id, entry.time_ms, self.commands[at])


class NoneRefused(Sequence[T]):
    """Results of commands none of which was refused: whoever tells the clients need not look at each of them. A machine
    may give such a sequence where it knows that; the conformance kit checks that it keeps its word."""

    __slots__ = ()


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

        A durable machine calls it once, and stores them in the same transaction as its data and its applied position;
        it gives all of them back in :class:`AppliedState`. Any thread will do: the toolkit waits for ``apply``. A node
        whose machine does not call it is stopped: what client sessions remember would be lost.
        """
        ...


class AppliedState(msgspec.Struct, frozen=True):
    """What a durable machine holds: where it is, and the system machine's records."""

    applied: LogId | None = None
    membership: StoredMembership = StoredMembership()
    records: dict[bytes, bytes] = {}


if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar  # type checkers bring it along

    BatchT = DefaultingTypeVar("BatchT", default=ApplyBatch, contravariant=True)
    ResultsT = DefaultingTypeVar("ResultsT", default=Sequence[Any] | Awaitable[Sequence[Any]], covariant=True)
else:
    BatchT, ResultsT = TypeVar("BatchT"), TypeVar("ResultsT")


class RaftStateMachine(ABC, Generic[BatchT, ResultsT]):
    """What a cluster replicates.

    Its two parameters have defaults, which is what every machine wants; only a base class that changes what ``apply``
    takes, as ``SimpleStateMachine`` does, gives others.

    - **M1** Deterministic: equal batches from equal states give equal states and results, in every process.
    - **M2** ``apply`` gives exactly one result per entry of ``batch.entries``; a refusal is a ``CommandRejected`` *as a
      result*. Any exception is Fatal for the node.
    - **M3** ``snapshot`` is a consistent view of the moment it is called and does not block ``apply``.
    - **M4** ``restore`` replaces everything or nothing; of a durable machine, position, membership and records too.
    - **M5** A durable machine stores data, applied position, membership and ``batch.seal(results)`` in one transaction.
      It is durable when ``apply`` returns, and ``applied_state`` gives back what was stored last.
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
    def apply(self, batch: BatchT) -> ResultsT:
        """Apply an :class:`ApplyBatch`, in order. Returns the results, or an awaitable of them."""

    @abstractmethod
    def snapshot(self) -> AsyncIterator[bytes]:
        """Chunks (each at most 1 MiB) of the state at the moment of the call."""

    @abstractmethod
    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        """Replace the state by a snapshot's.

        ``chunks`` may raise at any moment, also at its end: believe nothing before that. Raises: StorageCorrupt for a
        stream that cannot be read; the state is as before then.
        """

    async def restore_all(
        self, meta: SnapshotMeta, chunks: AsyncIterator[bytes], records: Mapping[bytes, bytes]
    ) -> None:
        """What the toolkit calls. A durable machine overrides it: ``meta``'s position and membership, and ``records``
        in place of all earlier ones, become durable in one transaction with the data."""
        await self.restore(meta, chunks)

    def digest(self) -> str | Awaitable[str | None] | None:
        """A hex digest of the logical state, equal on all nodes at one applied position; None if not offered.

        Called between two batches. An awaitable one is of the state at the call, whatever is applied meanwhile.
        """
        return None

    def query(self, query: Any) -> Any:
        """Answer a read-only question about the local state, at once or as an awaitable.

        The toolkit has made the read safe before. A machine may answer from any applied state that is not older than
        the one at the call.
        """
        raise CommandRejected(f"the machine {self.name} answers no queries")


__all__ = [
    "AppliedEntries",
    "AppliedEntry",
    "AppliedState",
    "ApplyBatch",
    "BadCommand",
    "Codec",
    "CommandRejected",
    "MsgspecCodec",
    "RaftStateMachine",
    "decoder_of",
]
