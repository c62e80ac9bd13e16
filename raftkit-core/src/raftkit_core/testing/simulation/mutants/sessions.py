"""Mutants of client sessions: one effect for each serial, a table that travels with the state, and time to live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from raftkit_core.config import ReadPolicy
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import RaftError, SessionExpired
from raftkit_core.network import client_session
from raftkit_core.network.client_session import RETRY_SECONDS, ClientSession, Serials
from raftkit_core.runtime.session_keeper import SessionKeeper
from raftkit_core.runtime.session_service import SessionService
from raftkit_core.state_machine import sessions
from raftkit_core.state_machine.sessions import Change, Remembered, Sessions
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.log_id import LogId
from raftkit_core.types.operations import KeepSession, SessionKept
from raftkit_core.types.session import SessionRef, SessionSerial

# --- one effect for each serial ---------------------------------------------------------------------------------------


ELSE: Any = object()
"""As the product has it."""


def _judge_serials(patch: Patch, judge: Callable[[Any, int], Any]) -> None:
    """Let ``judge`` say what becomes of a serial in an open session: what :meth:`Sessions.admit` gives, or ELSE."""
    original = Sessions.admit

    def admit(
        self: Sessions, log_id: LogId, session_id: int, serial: int, *arguments: Any
    ) -> Remembered | RaftError | None:
        session = self._sessions.get(session_id)
        said = ELSE if session is None else judge(session, serial)
        return original(self, log_id, session_id, serial, *arguments) if said is ELSE else said

    patch.set(Sessions, "admit", admit)


@mutant(
    "sessions-forget-results",
    "safety",
    "runtime",
    "A write that is sent twice takes effect twice.",
)
def _(patch: Patch) -> None:
    patch.set(Sessions, "admit", lambda self, *arguments, **options: None)


@mutant(
    "only-the-last-serial-is-remembered",
    "safety",
    "runtime",
    "A session remembers its latest write only: one that was overtaken takes effect again when it is repeated.",
)
def _(patch: Patch) -> None:
    def is_overtaken(session: Any, serial: int) -> Any:
        return None if session.results and serial < max(session.results) else ELSE

    _judge_serials(patch, is_overtaken)


@mutant(
    "overtaken-serials-are-duplicates",
    "safety",
    "runtime",
    "A serial below the latest one counts as repeated, though it was only overtaken: it gets the other one's result.",
)
def _(patch: Patch) -> None:
    def result_of_a_later_one(session: Any, serial: int) -> Any:
        later = [each for each in session.results if each > serial > session.floor]
        return session.results[later[0]] if later and serial not in session.results else ELSE

    _judge_serials(patch, result_of_a_later_one)


@mutant(
    "floor-ignored",
    "safety",
    "runtime",
    "A late copy of a write that the client has acknowledged is carried out again.",
)
def _(patch: Patch) -> None:
    _judge_serials(patch, lambda session, serial: None if 1 <= serial <= session.floor else ELSE)


@mutant(
    "another-command-with-a-known-serial",
    "safety",
    "runtime",
    "A serial that is used for a second command gets the result of the first, and no error.",
)
def _(patch: Patch) -> None:
    patch.set(sessions, "zlib", _NoChecksum)


class _NoChecksum:
    @staticmethod
    def crc32(content: bytes) -> int:
        return 0


@mutant(
    "ended-session-is-opened-again",
    "safety",
    "runtime",
    "A write under a session that is over is taken for the first of a new one.",
)
def _(patch: Patch) -> None:
    original = Sessions.admit

    def admit(self: Sessions, log_id: LogId, session_id: int, *arguments: Any) -> Remembered | RaftError | None:
        if session_id not in self:
            self.open(LogId(log_id.leader_id, session_id), 1000)
        return original(self, log_id, session_id, *arguments)

    patch.set(Sessions, "admit", admit)


@mutant(
    "ended-session-is-no-session",
    "safety",
    "runtime",
    "A write under a session that is over is carried out as one without a session.",
)
def _(patch: Patch) -> None:
    original = Sessions.admit

    def admit(self: Sessions, *arguments: Any) -> Remembered | RaftError | None:
        seen = original(self, *arguments)
        return None if isinstance(seen, SessionExpired) else seen

    patch.set(Sessions, "admit", admit)


@mutant(
    "a-serial-for-each-attempt",
    "safety",
    "runtime",
    "A client that asks again gives the same write another serial.",
)
def _(patch: Patch) -> None:
    asked: dict[tuple[SessionRef, int], int] = {}

    def attempt(ref: SessionRef, serial: int, floor: int) -> SessionSerial:
        number = asked[ref, serial] = asked.get((ref, serial), -1) + 1
        return SessionSerial(ref, 100 * serial + min(number, 99), 100 * floor + 99 if floor else 0)

    patch.set(client_session, "SessionSerial", attempt)


@mutant(
    "floor-above-what-waits",
    "liveness",
    "runtime",
    "A client acknowledges everything up to its latest answer, also what still waits below it.",
)
def _(patch: Patch) -> None:
    def settle(self: Serials, serial: int) -> None:
        self.floor = max(self.floor, serial)

    patch.set(Serials, "settle", settle)


# --- the table travels with the state ---------------------------------------------------------------------------------


@mutant(
    "sessions-not-in-snapshots",
    "safety",
    "runtime",
    "A snapshot carries no sessions: who restores it refuses their writes.",
)
def _(patch: Patch) -> None:
    original = SystemMachine.restore

    def restore(self: SystemMachine, encoded: bytes) -> None:
        original(self, encoded)
        self.sessions = Sessions()

    patch.set(SystemMachine, "restore", restore)


@mutant(
    "results-not-in-snapshots",
    "safety",
    "runtime",
    "A snapshot carries sessions without their results: who restores it carries writes out again.",
)
def _(patch: Patch) -> None:
    original = SystemMachine.restore

    def restore(self: SystemMachine, encoded: bytes) -> None:
        original(self, encoded)
        for session in self.sessions._sessions.values():
            session.results.clear()

    patch.set(SystemMachine, "restore", restore)


@mutant(
    "sessions-lost-at-restart",
    "safety",
    "runtime",
    "A durable machine that starts again has forgotten the sessions.",
)
def _(patch: Patch) -> None:
    original = SystemMachine.restore_records

    def restore_records(self: SystemMachine, records: Mapping[bytes, bytes]) -> None:
        original(self, records)
        self.sessions = Sessions()

    patch.set(SystemMachine, "restore_records", restore_records)


@mutant(
    "ends-are-not-stored",
    "safety",
    "runtime",
    "A durable machine stores what sessions remember and not that one has ended: it is back after a restart.",
)
def _(patch: Patch) -> None:
    original = Sessions.take_changes

    def take_changes(self: Sessions) -> list[Change]:
        return [change for change in original(self) if change[1] is not None]

    patch.set(Sessions, "take_changes", take_changes)


# --- time to live -----------------------------------------------------------------------------------------------------


@mutant(
    "expiry-by-the-nodes-own-clock",
    "safety",
    "runtime",
    "Every node ends a session by its own clock instead of by an entry.",
)
def _(patch: Patch) -> None:
    original = Sessions.admit

    def admit(self: Sessions, log_id: LogId, session_id: int, *arguments: Any) -> Remembered | RaftError | None:
        heard: dict[int, float] = self.__dict__.setdefault("heard", {})
        now = asyncio.get_running_loop().time()
        if session_id in self and now - heard.setdefault(session_id, now) > self.ttl_ms(session_id) / 1000:
            return SessionExpired(f"the session {session_id} was not heard")
        heard[session_id] = now
        return original(self, log_id, session_id, *arguments)

    patch.set(Sessions, "admit", admit)


@mutant(
    "new-leader-keeps-old-deadlines",
    "safety",
    "runtime",
    "A node that leads again goes by the deadlines of when it led before.",
)
def _(patch: Patch) -> None:
    original = SessionKeeper.follow

    def follow(self: SessionKeeper, engine: Engine, applied: LogId | None, now: float) -> bool:
        before = dict(self._deadlines)
        granted = original(self, engine, applied, now)
        if granted:
            for session_id in self._deadlines:
                self._deadlines[session_id] = before.get(session_id, self._deadlines[session_id])
            self._order[:] = sorted((at, session_id) for session_id, at in self._deadlines.items())
        return granted

    patch.set(SessionKeeper, "follow", follow)


@mutant(
    "keep-alive-without-a-lease",
    "safety",
    "runtime",
    "A node that believes it leads answers keep-alives, whether a quorum still follows it or not.",
)
def _(patch: Patch) -> None:
    async def keep(self: SessionService, operation: KeepSession, timeout: float) -> SessionKept:
        core, session_id = self._core, operation.session.id
        if not core.engine.is_leader:
            await self._reads.ensure(ReadPolicy.LEASE, timeout)
        core.sessions.follow(core.engine, core.worker.applied, core.clock.monotonic())
        if session_id not in core.worker.system.sessions:
            raise SessionExpired(f"the session {session_id} is not open")
        core.sessions.renew(session_id, core.clock.monotonic())
        return SessionKept(core.worker.system.sessions.ttl_ms(session_id))

    patch.set(SessionService, "keep", keep)


@mutant(
    "keep-alive-beside-an-expiry",
    "safety",
    "runtime",
    "A keep-alive is answered while the end of its session is in the log.",
)
def _(patch: Patch) -> None:
    patch.set(SessionKeeper, "expiry_of", lambda self, session_id: None)


@mutant(
    "keep-alive-of-any-session",
    "safety",
    "runtime",
    "A keep-alive is answered whether there is such a session or not.",
)
def _(patch: Patch) -> None:
    original = SessionService.keep

    async def keep(self: SessionService, operation: KeepSession, timeout: float) -> SessionKept:
        try:
            return await original(self, operation, timeout)
        except SessionExpired:
            return SessionKept(1000)

    patch.set(SessionService, "keep", keep)


@mutant(
    "expiry-not-by-what-was-heard",
    "safety",
    "runtime",
    "A leader ends a session its time to live after it was opened, though it is kept alive.",
)
def _(patch: Patch) -> None:
    patch.set(SessionKeeper, "renew", lambda self, session_id, now: None)


@mutant(
    "client-counts-from-the-answer",
    "safety",
    "runtime",
    "A client counts its session's time from the arrival of an answer, not from the sending of the question.",
)
def _(patch: Patch) -> None:
    async def keep_alive(self: ClientSession) -> None:
        interval = self._valid_seconds / 3
        delay = interval
        while True:
            await asyncio.sleep(delay)
            try:
                await self._send_keep_alive(interval)
            except SessionExpired as error:
                self._ended = error
                self._wake()
                return
            except RaftError:
                delay = min(RETRY_SECONDS, interval)
                continue
            self._valid_until = self._clock.monotonic() + self._valid_seconds
            delay = interval

    patch.set(ClientSession, "_keep_alive", keep_alive)


@mutant(
    "client-forgets-the-drift",
    "safety",
    "runtime",
    "A client counts the whole time to live, as if its clock were the leader's.",
)
def _(patch: Patch) -> None:
    original: Callable[..., None] = ClientSession.__init__

    def init(self: ClientSession, ref: SessionRef, ttl_ms: int, **more: Any) -> None:
        original(self, ref, ttl_ms, **{**more, "max_clock_drift": 0.0})

    patch.set(ClientSession, "__init__", init)


@mutant(
    "sessions-never-expire",
    "liveness",
    "runtime",
    "Nobody ends a session whose client is gone.",
)
def _(patch: Patch) -> None:
    patch.set(SessionKeeper, "due", lambda self, engine, applied, now: ())
