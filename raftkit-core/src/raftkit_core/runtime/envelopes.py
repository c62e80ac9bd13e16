"""Envelopes: what stands around a command in its entry."""

from __future__ import annotations

from typing import Any

from raftkit_core.errors import BadCommand
from raftkit_core.runtime.session_service import SessionService
from raftkit_core.state_machine.interface import RaftStateMachine, checked_encoder_of
from raftkit_core.types.entry import ENVELOPE_VERSION, Envelope, encode_body, encode_envelope, envelope_head
from raftkit_core.types.session import SessionSerial

SHORT_BYTES = 255


class Envelopes:
    """Makes the payloads of commands for one machine."""

    def __init__(self, machine: RaftStateMachine, sessions: SessionService, *, max_entry_bytes: int) -> None:
        self._machine_name = machine.name
        self.encode = checked_encoder_of(machine.codec)
        """The body of a command's envelope, and the command as it decodes; None where the codec does not say."""
        self._head = envelope_head(machine.name)
        self._short_heads = [self._head + encode_body(bytes(size))[: -size or None] for size in range(SHORT_BYTES + 1)]
        """What stands before a short body, by its size."""
        self._sessions = sessions
        self._max_entry_bytes = max_entry_bytes
        self._short_bytes = min(SHORT_BYTES, max_entry_bytes - len(self._head) - len(encode_body(b"")) - 1)
        """A body of so many bytes has its head at hand, and is not too much."""

    def of(self, command: Any) -> tuple[bytes, Any]:
        """The payload of the entry for ``command``, under no session, and the command as it decodes; None where the
        codec does not say. Raises: BadCommand."""
        encode = self.encode  # the interpreter calls what is in a variable quicker
        body, decoded = encode(command)
        size = len(body)
        return self._short_heads[size] + body if size <= self._short_bytes else self.around(body), decoded

    def around(self, body: bytes, once: SessionSerial | None = None) -> bytes:
        """The payload of an entry. Raises: BadCommand if that is more than one may be; as ``SessionService.heard``."""
        if once is None:
            size = len(body)
            payload = self._short_heads[size] + body if size <= SHORT_BYTES else self._head + encode_body(body)
        else:
            self._sessions.heard(once)
            session, floor = once.session.id, once.acknowledged_floor
            payload = encode_envelope(Envelope(ENVELOPE_VERSION, self._machine_name, session, once.serial, floor, body))
        if len(payload) > self._max_entry_bytes:
            raise BadCommand(
                f"the command takes {len(payload)} bytes, max_entry_bytes is {self._max_entry_bytes}",
                hint="split it, or raise max_entry_bytes on every node",
            )
        return payload
