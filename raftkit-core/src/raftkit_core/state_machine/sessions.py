"""Client sessions as replicated state: who has one, and which results are remembered. Pure and deterministic.

Entries come in log order. :meth:`Sessions.admit` decides whether a write under a session is new, and reserves its
serial; :meth:`Sessions.settle` fills in what the machine said. What is decided never depends on how the log was cut
into batches: sizes, which are known only when results are, are counted in log order too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from raftkit_core.errors import (
    BadCommand,
    ErrorInfo,
    RaftError,
    ResultForgotten,
    SerialReused,
    SessionExpired,
    SessionFull,
    StorageCorrupt,
    TooManySessions,
    from_info,
    to_info,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.session import MAX_SERIAL

MAX_SESSIONS = 10_000
MAX_RESULTS = 1024
"""Remembered results of one session; a write beyond is refused until the client acknowledges earlier ones."""
MAX_TOTAL_RESULTS = 100_000
"""Of all sessions together."""
MAX_SESSION_BYTES = 1024 * 1024
MAX_TOTAL_BYTES = 32 * 1024 * 1024
"""Beyond these only *that* a write was applied is remembered, not its result."""
RESULT_BYTES = 64
"""What a remembered result counts besides its own bytes."""

SESSION_RECORD = b"session/"
RESULT_RECORD = b"result/"

Change = tuple[bytes, bytes | None]


class Limits(msgspec.Struct, frozen=True):
    """Part of ``system/1``: nodes with different limits would drift apart. Tests lower them."""

    sessions: int = MAX_SESSIONS
    results: int = MAX_RESULTS
    total_results: int = MAX_TOTAL_RESULTS
    session_bytes: int = MAX_SESSION_BYTES
    total_bytes: int = MAX_TOTAL_BYTES


class Remembered(msgspec.Struct, array_like=True):
    """The outcome of a write under a session. Neither ``body`` nor ``error``: too large to be kept."""

    log_id: LogId
    check: int
    body: bytes | None = None
    error: ErrorInfo | None = None

    def refusal(self) -> RaftError | None:
        """What a duplicate is told if it is no result."""
        if self.error is not None:
            return from_info(self.error)
        if self.body is None:
            return ResultForgotten(
                f"the write was applied at {self.log_id}; its result was too large to be remembered",
                outcome="applied",
            )
        return None

    @property
    def size_bytes(self) -> int:
        return RESULT_BYTES + len(self.body or b"") + (0 if self.error is None else len(self.error.message))


class _SessionRecord(msgspec.Struct, frozen=True, array_like=True):
    ttl_ms: int
    floor: int


class _Session:
    __slots__ = ("floor", "results", "size_bytes", "ttl_ms")

    def __init__(self, ttl_ms: int, floor: int = 0) -> None:
        self.ttl_ms = ttl_ms
        self.floor = floor
        self.results: dict[int, Remembered] = {}
        """By serial, all above ``floor``."""
        self.size_bytes = 0


class _Step:
    """What changes sizes, in log order: ``result`` (at ``position`` of the batch) comes, or (None) goes."""

    __slots__ = ("codec", "position", "remembered", "serial", "session", "session_id")

    def __init__(
        self,
        session_id: int,
        session: _Session,
        serial: int,
        remembered: Remembered,
        position: int | None,
        codec: Callable[[Any], bytes] | None,
    ) -> None:
        self.session_id = session_id
        self.session = session
        self.serial = serial
        self.remembered = remembered
        self.position = position
        self.codec = codec


class Sessions:
    """All sessions of the cluster by id, oldest first."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        self._sessions: dict[int, _Session] = {}
        self._total_results = 0
        self._total_bytes = 0
        self._steps: list[_Step] = []
        self._changed_sessions: set[int] = set()
        self._changed_results: dict[tuple[int, int], Remembered | None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: int) -> bool:
        return session_id in self._sessions

    def ttl_ms(self, session_id: int) -> int:
        return self._sessions[session_id].ttl_ms

    def newer_than(self, session_id: int) -> list[int]:
        """Sessions opened after ``session_id``; ids grow with the log."""
        found: list[int] = []
        for known in reversed(self._sessions):
            if known <= session_id:
                break
            found.append(known)
        return found[::-1]

    # --- commands of the system machine -----------------------------------------------------------------------------

    def open(self, log_id: LogId, ttl_ms: int) -> TooManySessions | None:
        """Begin the session whose id is the index of ``log_id``."""
        if len(self._sessions) >= self.limits.sessions:
            return TooManySessions(f"{len(self._sessions)} sessions are open, {self.limits.sessions} are kept")
        self._sessions[log_id.index] = _Session(ttl_ms)
        self._changed_sessions.add(log_id.index)
        return None

    def end(self, session_id: int) -> bool:
        """Forget a session and its results. False: there was none."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return False
        for serial in session.results:
            self._forget(session_id, session, serial)
        session.results = {}
        self._changed_sessions.add(session_id)
        return True

    # --- writes -----------------------------------------------------------------------------------------------------

    def admit(
        self,
        log_id: LogId,
        session_id: int,
        serial: int,
        floor: int,
        content: bytes,
        codec: Callable[[Any], bytes],
        position: int,
    ) -> Remembered | RaftError | None:
        """None: the write is new and goes to the machine; its result is the one at ``position`` when the batch settles.
        Else what it gets instead: the outcome of the first one with this serial, or a refusal."""
        session = self._sessions.get(session_id)
        if session is None:
            return SessionExpired(f"the session {session_id} is not open; the write {serial} was refused")
        if not (1 <= serial <= MAX_SERIAL and 0 <= floor < serial):
            return BadCommand(f"serial {serial} with acknowledged floor {floor}: a floor is below its write's serial")
        if floor > session.floor:
            self._raise_floor(session_id, session, floor)
        if serial <= session.floor:
            return ResultForgotten(
                f"write {serial} of the session {session_id} is at or below {session.floor}, which the client has"
                " acknowledged: it is not carried out again",
            )
        check = zlib.crc32(content)
        known = session.results.get(serial)
        if known is not None:
            if known.check != check:
                return SerialReused(f"serial {serial} of the session {session_id} was another command: {known.log_id}")
            return known
        if len(session.results) >= self.limits.results:
            return SessionFull(
                f"the session {session_id} has {len(session.results)} results that are not acknowledged",
                hint="wait for earlier writes: the next one acknowledges them",
            )
        if self._total_results >= self.limits.total_results:
            return SessionFull(
                f"the sessions of this cluster have {self._total_results} results that are not acknowledged",
                hint="try again in a moment; acknowledge results, and close sessions that are not used",
            )
        self._total_results += 1
        remembered = session.results[serial] = Remembered(log_id, check)
        self._steps.append(_Step(session_id, session, serial, remembered, position, codec))
        return None

    def _raise_floor(self, session_id: int, session: _Session, floor: int) -> None:
        results = session.results
        if floor - session.floor <= len(results):
            gone = [serial for serial in range(session.floor + 1, floor + 1) if serial in results]
        else:
            gone = [serial for serial in results if serial <= floor]
        for serial in gone:
            self._forget(session_id, session, serial)
            del results[serial]
        session.floor = floor
        self._changed_sessions.add(session_id)

    def _forget(self, session_id: int, session: _Session, serial: int) -> None:
        self._total_results -= 1
        self._steps.append(_Step(session_id, session, serial, session.results[serial], None, None))

    def settle(self, results: Callable[[int], Any]) -> None:
        """The results of the batch are there. Does nothing the second time."""
        steps, self._steps = self._steps, []
        for step in steps:
            if step.position is None:
                step.session.size_bytes -= step.remembered.size_bytes
                self._total_bytes -= step.remembered.size_bytes
                self._changed_results[step.session_id, step.serial] = None
            else:
                assert step.codec is not None, "a result has the codec of its machine"
                self._keep(step, results(step.position), step.codec)

    def _keep(self, step: _Step, result: Any, codec: Callable[[Any], bytes]) -> None:
        kept, session = step.remembered, step.session
        if isinstance(result, RaftError):
            kept.error = msgspec.structs.replace(to_info(result), outcome="applied")
        else:
            try:
                kept.body = codec(result)
            except Exception:
                # Of the machine's doing, alike on every node: the write stands, only its result cannot be told again.
                kept.body = None
        free = min(self.limits.session_bytes - session.size_bytes, self.limits.total_bytes - self._total_bytes)
        if kept.size_bytes > free:
            kept.body = kept.error = None
        session.size_bytes += kept.size_bytes
        self._total_bytes += kept.size_bytes
        self._changed_results[step.session_id, step.serial] = kept

    # --- as records -------------------------------------------------------------------------------------------------

    def take_changes(self) -> list[Change]:
        """Records to put and to delete since the last call. Call it when the batch is settled."""
        assert not self._steps, "results are missing"
        changes: list[Change] = []
        for session_id in sorted(self._changed_sessions):
            session = self._sessions.get(session_id)
            changes.append((_session_key(session_id), None if session is None else _encode_session(session)))
        for session_id, serial in sorted(self._changed_results):
            kept = self._changed_results[session_id, serial]
            changes.append((_result_key(session_id, serial), None if kept is None else _encoder.encode(kept)))
        self.drop_changes()
        return changes

    def drop_changes(self) -> None:
        """Nobody stores them."""
        self._changed_sessions.clear()
        self._changed_results.clear()

    def records(self) -> dict[bytes, bytes]:
        """Everything, in the order of the keys: equal states give equal records."""
        assert not self._steps, "results are missing"
        found = {_session_key(session_id): _encode_session(session) for session_id, session in self._sessions.items()}
        for session_id, session in self._sessions.items():
            for serial, kept in session.results.items():
                found[_result_key(session_id, serial)] = _encoder.encode(kept)
        return {key: found[key] for key in sorted(found)}

    @classmethod
    def from_records(cls, records: Mapping[bytes, bytes], limits: Limits | None = None) -> Sessions:
        """What :meth:`records` gave, or what the changes add up to. Raises: StorageCorrupt."""
        sessions = cls(limits)
        try:
            for key in sorted(key for key in records if key.startswith(SESSION_RECORD)):
                record = msgspec.msgpack.decode(records[key], type=_SessionRecord)
                sessions._sessions[_numbers(key, SESSION_RECORD, 1)[0]] = _Session(record.ttl_ms, record.floor)
            for key in sorted(key for key in records if key.startswith(RESULT_RECORD)):
                session_id, serial = _numbers(key, RESULT_RECORD, 2)
                kept = msgspec.msgpack.decode(records[key], type=Remembered)
                session = sessions._sessions[session_id]
                session.results[serial] = kept
                sessions._total_results += 1
                session.size_bytes += kept.size_bytes
                sessions._total_bytes += kept.size_bytes
        except (msgspec.MsgspecError, ValueError, KeyError, RecursionError) as error:
            raise StorageCorrupt(
                f"damaged record of a session: {error}", subject="state machine", verb="restore"
            ) from error
        return sessions


def _session_key(session_id: int) -> bytes:
    return SESSION_RECORD + session_id.to_bytes(8, "big")


def _result_key(session_id: int, serial: int) -> bytes:
    return RESULT_RECORD + session_id.to_bytes(8, "big") + serial.to_bytes(8, "big")


def _numbers(key: bytes, prefix: bytes, count: int) -> list[int]:
    rest = key[len(prefix) :]
    if len(rest) != 8 * count:
        raise ValueError(f"record key {key!r}")
    return [int.from_bytes(rest[start : start + 8], "big") for start in range(0, len(rest), 8)]


def _encode_session(session: _Session) -> bytes:
    return _encoder.encode(_SessionRecord(session.ttl_ms, session.floor))


_encoder = msgspec.msgpack.Encoder()
