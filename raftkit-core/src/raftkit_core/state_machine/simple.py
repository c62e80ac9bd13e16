"""A state machine from a plain ``apply(command)``: the base class for applications that keep little state.

class Add(msgspec.Struct, frozen=True, tag="add"):
    amount: int

class Counter(SimpleStateMachine):
    name = "counter/1"
    command_type = Add
    result_type = int

    def __init__(self) -> None:
        self.value = 0

    def apply(self, command: Add) -> int:
        self.value += command.amount
        return self.value

    def get_state(self) -> int:
        return self.value

    def set_state(self, state: int) -> None:
        self.value = state
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import msgspec

from raftkit_core.errors import CommandRejected, StorageCorrupt
from raftkit_core.state_machine.interface import ApplyBatch, MsgspecCodec, RaftStateMachine
from raftkit_core.types.snapshot import SnapshotMeta

CHUNK_BYTES = 1024 * 1024


class SimpleStateMachine(RaftStateMachine[Any, Any]):
    """Override ``apply``, ``get_state`` and ``set_state``; ``query`` if you like.

    ``apply`` must be deterministic: no clock, no randomness, no files, no order of a set. It may refuse by raising
    ``CommandRejected`` before it changed anything; every other exception stops the node. Types are whatever msgspec
    can encode; a dict keeps its order in snapshots, so ``apply`` may rely on that. The whole state is encoded at once
    for a snapshot, so keep it below some tens of MiB.
    """

    command_type: ClassVar[Any] = Any
    result_type: ClassVar[Any] = Any
    state_type: ClassVar[Any] = Any
    """What ``get_state`` returns; ``set_state`` gets it checked against this type."""

    log_index: int = 0
    """During ``apply``: the index of the command's entry. It grows with every command, so it serves as an id."""
    time_ms: int = 0
    """During ``apply``: cluster time, alike on every node. It is not wall time."""

    _apply_command: ClassVar[Callable[[Any, Any], Any]]

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Let the subclass's plain ``apply`` take a command, and the runtime's call a whole batch."""
        super().__init_subclass__(**arguments)
        if "name" not in cls.__dict__ and not hasattr(cls, "name"):
            cls.name = f"{cls.__name__}/1"
        if "codec" not in cls.__dict__:
            cls.codec = MsgspecCodec(cls.command_type, cls.result_type)
        plain = cls.__dict__.get("apply")
        if plain is not None:
            cls._apply_command = plain
            cls.apply = _batch_or_command(plain)  # type: ignore[assignment, method-assign]

    @abstractmethod
    def apply(self, command: Any) -> Any:
        """Carry out one command and give its result. Raises: CommandRejected to refuse it."""

    @abstractmethod
    def get_state(self) -> Any:
        """Everything ``apply`` depends on."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Replace everything by what ``get_state`` gave, here or on another node."""

    def snapshot(self) -> AsyncIterator[bytes]:
        # Dicts in the order they have: a machine that goes through one would take another key first on the node that
        # was restored, if their keys came back sorted, and the nodes would drift apart.
        return _cut(msgspec.msgpack.encode(self.get_state()))

    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        """Decoded whole before ``set_state`` is called. Raises: StorageCorrupt."""
        encoded = b"".join([chunk async for chunk in chunks])
        try:
            state = msgspec.msgpack.decode(encoded, type=self.state_type)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise StorageCorrupt(
                f"the state of {self.name} cannot be read: {error}",
                subject="state machine",
                verb="restore",
                hint="if state_type changed, raise the version in the machine's name and keep the old type readable",
            ) from error
        self.set_state(state)

    def digest(self) -> str:
        # Sorted, because equal sets have no order in common.
        return hashlib.sha256(msgspec.msgpack.encode(self.get_state(), order="deterministic")).hexdigest()

    def _apply_batch(self, batch: ApplyBatch) -> Sequence[Any]:
        results: list[Any] = []
        apply_command = type(self)._apply_command
        for entry in batch.entries:
            self.log_index, self.time_ms = entry.log_id.index, entry.time_ms
            try:
                results.append(apply_command(self, entry.command))
            except CommandRejected as refusal:
                results.append(refusal.with_traceback(None))
        return results


def _batch_or_command(plain: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``apply`` as the runtime calls it (with a batch) and as a test or ``super().apply(command)`` does."""

    def apply(self: SimpleStateMachine, command: Any) -> Any:
        if hasattr(command, "entries") and hasattr(command, "seal") and hasattr(command, "last_log_id"):
            return self._apply_batch(command)
        return plain(self, command)

    apply.__doc__ = plain.__doc__
    apply.__isabstractmethod__ = getattr(plain, "__isabstractmethod__", False)  # type: ignore[attr-defined]
    return apply


async def _cut(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
        await asyncio.sleep(0)
