"""What client sessions must come to, found out a second time: from the committed log and from what clients count on.

Shares nothing with ``state_machine/sessions`` but the entries. S23: a write under a session reaches the machine once,
on every node, and never when the session is over or the client has acknowledged its serial. S31: a session is not
ended while its client may count on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from raftkit_core.state_machine.sessions import MAX_RESULTS, MAX_SESSIONS
from raftkit_core.state_machine.system import SYSTEM_MACHINE
from raftkit_core.state_machine.system_commands import (
    CloseSession,
    ExpireSessions,
    OpenSession,
    decode_system_command,
)
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.types.entry import NORMAL, Entry, Envelope, decode_envelope
from raftkit_core.types.ids import NodeId

Breach = Callable[[str, NodeId, str], None]


class _Open:
    """An open session: up to where its client has acknowledged, and which serials above that were carried out."""

    __slots__ = ("carried_out", "floor")

    def __init__(self) -> None:
        self.floor = 0
        self.carried_out: set[int] = set()


class SessionRules:
    """Follows the committed log from its beginning. ``reaches`` says of every entry under a session whether it is one
    the machine must see."""

    def __init__(self, trace: Trace, breach: Breach) -> None:
        self._trace = trace
        self._breach = breach
        self._next = 0
        self._open: dict[int, _Open] = {}
        self.reaches: dict[int, bool] = {}
        self._early: dict[int, list[tuple[NodeId, bool]]] = {}
        """What machines did with entries behind one that nobody was seen to commit yet."""
        self._counted_on: dict[int, Callable[[], bool]] = {}
        self._ended: dict[int, str] = {}

    # --- what the log says ------------------------------------------------------------------------------------------

    def follow(self, committed: Mapping[int, Entry]) -> None:
        """Take note of what is committed, as far as nothing is missing before it."""
        while (entry := committed.get(self._next)) is not None:
            self._next += 1
            if entry.kind == NORMAL:
                self._read(entry)

    def _read(self, entry: Entry) -> None:
        index = entry.log_id.index
        try:
            envelope = decode_envelope(entry.payload)
        except (msgspec.MsgspecError, ValueError):
            return
        if not envelope.session:
            if envelope.machine == SYSTEM_MACHINE:
                self._command(index, envelope.body)
            return
        is_new = self._is_new(envelope)
        if is_new and envelope.machine == SYSTEM_MACHINE:
            self._command(index, envelope.body)
        self.reaches[index] = is_new and envelope.machine != SYSTEM_MACHINE
        for node, reached in self._early.pop(index, ()):
            self._compare(node, index, reached)

    def _is_new(self, envelope: Envelope) -> bool:
        session, serial, floor = self._open.get(envelope.session), envelope.serial, envelope.acknowledged_floor
        if session is None:
            self._trace.seen("session.refused_after_its_end")
            return False
        if not 0 <= floor < serial:
            return False
        if floor > session.floor:
            session.floor = floor
            session.carried_out = {each for each in session.carried_out if each > floor}
        if serial <= session.floor:
            self._trace.seen("session.late_copy")
            return False
        if serial in session.carried_out:
            self._trace.seen("session.duplicate")
            return False
        if len(session.carried_out) >= MAX_RESULTS:
            return False
        if session.carried_out and serial < max(session.carried_out):
            self._trace.seen("session.overtaken")
        session.carried_out.add(serial)
        return True

    def _command(self, index: int, body: bytes) -> None:
        try:
            command = decode_system_command(body)
        except (msgspec.MsgspecError, ValueError):
            return
        match command:
            case OpenSession():
                if len(self._open) < MAX_SESSIONS:
                    self._open[index] = _Open()
            case CloseSession():
                if self._open.pop(command.session, None) is not None:
                    self._trace.seen("session.closed")
                    self._ended[command.session] = f"closed at {index}"
            case ExpireSessions():
                for each in command.sessions:
                    if self._open.pop(each, None) is not None:
                        self._trace.seen("session.expired")
                        self._ended[each] = f"expired at {index}"
                self.look_at_promises()

    # --- what machines did ------------------------------------------------------------------------------------------

    def applied(self, node: NodeId, entry: Entry, reached: bool) -> None:
        """The machine of ``node`` was (or was not) given ``entry``. S23."""
        index = entry.log_id.index
        if index < self._next:
            if index in self.reaches:
                self._compare(node, index, reached)
        else:
            self._early.setdefault(index, []).append((node, reached))

    def _compare(self, node: NodeId, index: int, reached: bool) -> None:
        if reached and not self.reaches[index]:
            self._breach("S23", node, f"carries out {index}, a write of a session that is over, or one it has had")
        elif not reached and self.reaches[index]:
            self._breach("S23", node, f"leaves out {index}, the first write with its serial in an open session")

    # --- what clients count on --------------------------------------------------------------------------------------

    def promised(self, session_id: int, counts_on_it: Callable[[], bool]) -> None:
        """A client has the session, and for as long as ``counts_on_it`` it is sure of that."""
        self._counted_on[session_id] = counts_on_it

    def look_at(self, applied_index: int, has_session: Callable[[int], bool]) -> None:
        """Some node has applied the log up to ``applied_index``, and knows what sessions are left then."""
        for session_id in self._counted_on:
            if session_id <= applied_index and not has_session(session_id):
                self._ended.setdefault(session_id, f"gone from a node that has applied {applied_index}")
        self.look_at_promises()

    def look_at_promises(self) -> None:
        """S31, at this moment."""
        for session_id in [each for each in self._counted_on if each in self._ended]:
            if self._counted_on[session_id]():
                self._breach("S31", "", f"session {session_id} is {self._ended[session_id]}, its client counts on it")
                del self._counted_on[session_id]
