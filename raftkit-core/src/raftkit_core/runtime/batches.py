"""What committed entries are for the machine: batches of decoded commands, and beside them what never reaches it.

Commands that are all alike are decoded together. Anything else is looked at one by one: memberships, what the system
machine does, and writes under a session, of which a repeated one gets the outcome of the first. Nothing here awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from raftkit_core.errors import BadCommand, CommandRejected, RaftError
from raftkit_core.state_machine.interface import AppliedEntries, AppliedEntry, RaftStateMachine, decoder_of
from raftkit_core.state_machine.sessions import Remembered
from raftkit_core.state_machine.system import SYSTEM_MACHINE, SystemMachine
from raftkit_core.state_machine.system_commands import decode_system_result, encode_system_result
from raftkit_core.types.decoding import DECODE_ERRORS
from raftkit_core.types.entry import (
    MEMBERSHIP,
    NORMAL,
    Entries,
    Entry,
    Envelope,
    decode_envelope,
    decode_membership,
    ends_of,
    last_log_id,
    payloads_of,
    plain_decoder,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, StoredMembership

_NOTHING: Mapping[int, Any] = MappingProxyType({})


class Duplicate:
    """A write under a session that was carried out before: it gets the outcome of the first one."""

    __slots__ = ("_decode", "_remembered")

    def __init__(self, remembered: Remembered, decode: Callable[[bytes], Any]) -> None:
        self._remembered = remembered
        self._decode = decode

    def outcome(self) -> tuple[LogId, Any]:
        """Log id and result of the first one; a refusal is a ``RaftError`` as result. For settled batches."""
        kept = self._remembered
        refusal = kept.refusal()
        if refusal is None:
            assert kept.body is not None, "neither refused nor forgotten"
            try:
                return kept.log_id, self._decode(kept.body)
            except Exception as error:
                refusal = RaftError(
                    f"the write was applied at {kept.log_id}; its result cannot be read: {type(error).__name__}",
                    outcome="applied",
                )
        return kept.log_id, refusal


class Batch:
    """The :class:`ApplyBatch` handed to a machine, and where each result belongs."""

    is_alike = True
    """All of it are commands for the machine, none under a session."""
    membership: StoredMembership | None = None
    memberships: Mapping[int, Membership] = _NOTHING
    """Every membership entry of the batch, by index; ``membership`` is the last of them."""
    refused: Mapping[int, Any] = _NOTHING
    """Results of entries that never reach the machine, by index."""
    positions: Mapping[int, int] = _NOTHING
    """Where in ``entries`` a write under a session is, by index."""
    is_sealed = False

    def __init__(self, log: Sequence[Entry], entries: Sequence[AppliedEntry], system: SystemMachine) -> None:
        self.log = log
        self.entries = entries
        self.last_log_id = last_log_id(log)
        self._system = system

    def commands(self) -> Sequence[Entry]:
        """The entries of the log that ``entries`` were made of."""
        if self.is_alike:
            return self.log
        indexes = {entry.log_id.index for entry in self.entries}
        return [entry for entry in self.log if entry.log_id.index in indexes]

    def seal(self, results: Sequence[Any]) -> Sequence[tuple[bytes, bytes | None]]:
        self.is_sealed = True
        self.settle(results)
        return self._system.seal()

    def settle(self, results: Sequence[Any]) -> None:
        """The machine's results: what sessions remember of them. Does nothing the second time."""
        self._system.sessions.settle(
            lambda index: results[self.positions[index]] if index in self.positions else self.refused[index]
        )


class MixedBatch(Batch):
    """Any entries, looked at one by one."""

    is_alike = False

    def __init__(self, log: Sequence[Entry], system: SystemMachine) -> None:
        self.listed: list[AppliedEntry] = []
        super().__init__(log, self.listed, system)
        self.memberships = self.memberships_found = dict[int, Membership]()
        self.refused = self.refusals = dict[int, Any]()
        self.positions = self.places = dict[int, int]()


class BatchMaker:
    """For one machine, and the system machine beside it."""

    def __init__(self, machine: RaftStateMachine, system: SystemMachine) -> None:
        self._machine = machine
        self._system = system
        self._decode_plain = plain_decoder(machine.name)
        self._codec: object = None
        self._decode_commands: Callable[[list[bytes]], list[Any]] = list
        self.commands_of: Callable[[LogId, LogId], list[Any] | None] = _unknown
        """The commands of the entries from one to the other, as they would be decoded, if all of them were proposed
        here; None if one of them is anything else than a command for the machine, under no session."""

    def prepare(self, entries: Sequence[Entry], applied_index: int) -> Batch:
        """Decode what the machine gets; the first of ``entries`` follows ``applied_index``. The leader decoded every
        command before it proposed it; one that is unreadable all the same is refused alike on every node rather than
        stopping all of them."""
        first, last = ends_of(entries)
        assert first.index == applied_index + 1, f"{first} does not follow index {applied_index}"
        commands = self.commands_of(first, last)
        if commands is None:
            commands = self._decode_alike(entries)
        if commands is not None:
            self._system.observe(entries.time_ms if type(entries) is Entries else max(map(_time_ms, entries)))
            return Batch(entries, AppliedEntries(entries, commands), self._system)
        batch = MixedBatch(entries, self._system)
        for entry in entries:
            self._prepare_one(batch, entry)
        return batch

    def _decode_alike(self, entries: Sequence[Entry]) -> list[Any] | None:
        """What commands for the machine, none of them under a session, are: decoded together. None if one entry is
        anything else, or unreadable: then each is looked at by itself."""
        machine = self._machine
        try:
            if type(entries) is Entries:
                if entries.kind != NORMAL:
                    return None
            elif not _ALL_NORMAL.issuperset(map(_kind, entries)):
                return None
            bodies = list(map(_body, map(self._decode_plain, payloads_of(entries))))
            codec = machine.codec
            if codec is not self._codec:
                self._codec, self._decode_commands = codec, decoder_of(codec)
            return self._decode_commands(bodies)
        except (*DECODE_ERRORS, BadCommand):
            return None

    def _prepare_one(self, batch: MixedBatch, entry: Entry) -> None:
        self._system.observe(entry.time_ms)
        if entry.kind == NORMAL:
            try:
                envelope = decode_envelope(entry.payload)
                if envelope.session:
                    self._prepare_once(batch, entry, envelope)
                elif envelope.machine == self._machine.name:
                    command = self._machine.codec.decode_command(envelope.body)
                    batch.listed.append(AppliedEntry(entry.log_id, entry.time_ms, command))
                elif envelope.machine == SYSTEM_MACHINE:
                    batch.refusals[entry.index] = self._system.apply(entry.log_id, entry.time_ms, envelope.body)
                else:
                    batch.refusals[entry.index] = self._no_such_machine(entry, envelope)
            except (BadCommand, ValueError) as error:
                batch.refusals[entry.index] = BadCommand(f"entry {entry.log_id} is unreadable: {error}")
        elif entry.kind == MEMBERSHIP:
            membership = decode_membership(entry.payload)
            batch.membership = StoredMembership(entry.log_id, membership)
            batch.memberships_found[entry.index] = membership

    def _prepare_once(self, batch: MixedBatch, entry: Entry, envelope: Envelope) -> None:
        """A write under a session: only a new one reaches its machine. Raises: BadCommand."""
        codec = self._machine.codec
        command: Any = None
        is_for_system = envelope.machine == SYSTEM_MACHINE
        if envelope.machine == self._machine.name:
            command = codec.decode_command(envelope.body)
        elif not is_for_system:
            batch.refusals[entry.index] = self._no_such_machine(entry, envelope)
            return
        seen = self._system.sessions.admit(
            entry.log_id,
            envelope.session,
            envelope.serial,
            envelope.acknowledged_floor,
            envelope.machine.encode() + b"\x00" + envelope.body,
            encode_system_result if is_for_system else codec.encode_result,
            entry.index,
        )
        if isinstance(seen, Remembered):
            decode = decode_system_result if is_for_system else codec.decode_result
            batch.refusals[entry.index] = Duplicate(seen, decode)
        elif seen is not None:
            batch.refusals[entry.index] = seen
        elif is_for_system:
            batch.refusals[entry.index] = self._system.apply(entry.log_id, entry.time_ms, envelope.body)
        else:
            batch.places[entry.index] = len(batch.listed)
            batch.listed.append(AppliedEntry(entry.log_id, entry.time_ms, command))

    def _no_such_machine(self, entry: Entry, envelope: Envelope) -> CommandRejected:
        return CommandRejected(
            f"entry {entry.log_id} is for the machine {envelope.machine}, this cluster runs {self._machine.name}"
        )


def _unknown(first: LogId, last: LogId) -> None:
    """Nothing is proposed where nobody takes writes yet."""


_ALL_NORMAL = frozenset((NORMAL,))
_body = attrgetter("body")
_kind = attrgetter("kind")
_time_ms = attrgetter("time_ms")
