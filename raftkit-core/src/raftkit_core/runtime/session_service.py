"""Client sessions on the leader: opened, kept alive, closed. ``held_sessions`` has those an application holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import BadRequest, ForwardToLeader, OutcomeUnknown, SessionExpired
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.reads import LinearizableReads
from raftkit_core.state_machine.system import system_payload
from raftkit_core.state_machine.system_commands import CloseSession as SystemCloseSession
from raftkit_core.state_machine.system_commands import OpenSession as SystemOpenSession
from raftkit_core.state_machine.system_commands import SystemCommand
from raftkit_core.types.operations import (
    CloseSession,
    KeepSession,
    OpenSession,
    SessionClosed,
    SessionKept,
    SessionOpened,
)
from raftkit_core.types.session import MAX_SERIAL, MAX_TTL_MS, MIN_TTL_MS, SessionRef, SessionSerial

OPENINGS_KEPT = 1024
"""Nonces of sessions opened lately: a repetition comes within moments."""
NONCE_CHARS_MAX = 64


class SessionService:
    """The leader's part. Everything raises ForwardToLeader where this node does not lead."""

    def __init__(self, core: RaftCore, reads: LinearizableReads, cluster_id: Callable[[], str | None]) -> None:
        self._core = core
        self._reads = reads
        self._cluster_id = cluster_id
        self._openings: dict[tuple[int, OpenSession], asyncio.Future[SessionOpened]] = {}

    def check(self, ref: SessionRef) -> None:
        """Raises: SessionExpired for a session of another cluster: its number may be somebody else's here."""
        own = self._cluster_id()
        if own is not None and ref.cluster_id != own:
            raise SessionExpired(f"the session {ref.token} is not of this cluster, {own}")

    def heard(self, once: SessionSerial) -> None:
        """A write under a session is proposed: its client lives. Raises: SessionExpired, BadRequest."""
        self.check(once.session)
        if not (1 <= once.serial <= MAX_SERIAL and 0 <= once.acknowledged_floor < once.serial):
            raise BadRequest(
                f"serial {once.serial} with acknowledged floor {once.acknowledged_floor}: serials begin with 1, and the"
                " floor is below the write's own serial"
            )
        self._core.sessions.renew(once.session.id, self._core.clock.monotonic())

    async def open(self, operation: OpenSession, timeout: float) -> SessionOpened:
        """Raises: BadRequest, TooManySessions, and what a write raises."""
        if not MIN_TTL_MS <= operation.ttl_ms <= MAX_TTL_MS:
            raise BadRequest(f"a session lives {MIN_TTL_MS} to {MAX_TTL_MS} ms, not {operation.ttl_ms}")
        if len(operation.nonce) > NONCE_CHARS_MAX:
            raise BadRequest(f"a nonce has {NONCE_CHARS_MAX} characters at most")
        leadership = self._core.engine.session
        if not operation.nonce or leadership == 0:
            return await self._open(operation, timeout)
        key = (leadership, operation)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (former := self._openings.get(key)) is not None:
            opened = await self._opened_before(former, deadline)
            if opened is not None:
                return opened
            if self._openings.get(key) is former:
                del self._openings[key]
        timeout = max(deadline - loop.time(), 0.001)
        opening = self._openings[key] = loop.create_future()
        while len(self._openings) > OPENINGS_KEPT:
            del self._openings[next(iter(self._openings))]
        try:
            opened = await self._open(operation, timeout)
            opening.set_result(opened)
            return opened
        finally:
            if not opening.done():
                opening.cancel()
                if self._openings.get(key) is opening:
                    del self._openings[key]

    async def _opened_before(self, former: asyncio.Future[SessionOpened], deadline: float) -> SessionOpened | None:
        """What the same request led to before; None if that failed, or has expired since.

        Whoever is told of a session may count its time to live from this request. So it is kept alive here, by the
        rules of a keep-alive: a leader that was cut off could not know that it has expired.
        """
        loop = asyncio.get_running_loop()
        if not former.done():
            await asyncio.wait([former], timeout=max(deadline - loop.time(), 0))
        if not former.done():
            raise OutcomeUnknown("the session is still being opened", hint="ask again")
        if former.cancelled():
            return None
        opened = former.result()
        try:
            await self.keep(KeepSession(opened.session), max(deadline - loop.time(), 0.001))
        except SessionExpired:
            return None
        return opened

    async def _open(self, operation: OpenSession, timeout: float) -> SessionOpened:
        done = await self._write(SystemOpenSession(operation.ttl_ms), timeout)
        cluster_id = self._cluster_id()
        assert cluster_id is not None, "who commits an entry belongs to a cluster"
        return SessionOpened(SessionRef(cluster_id, done.data), operation.ttl_ms)

    async def keep(self, operation: KeepSession, timeout: float) -> SessionKept:
        """Answered under a valid read lease or after a round to a quorum, when the own first entry is applied, and not
        while an expiry of the session is in the log: another leader must not have ended it, nor this one be about to.

        Raises: SessionExpired, QuorumNotEnough, WaitTimeout.
        """
        self.check(operation.session)
        core, session_id = self._core, operation.session.id
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        leadership = core.engine.session
        await self._reads.ensure(ReadPolicy.LEASE, timeout)
        while True:
            now = core.clock.monotonic()
            core.check_running()
            if leadership == 0 or core.engine.session != leadership:
                raise ForwardToLeader(f"{core.engine.config.id} lost leadership meanwhile")
            core.sessions.follow(core.engine, core.worker.applied, now)
            if session_id not in core.worker.system.sessions:
                raise SessionExpired(f"the session {session_id} is not open")
            expiry = core.sessions.expiry_of(session_id)
            if expiry is None:
                break
            await self._reads.wait_applied(expiry, max(deadline - loop.time(), 0.001))
        core.sessions.renew(session_id, now)
        return SessionKept(core.worker.system.sessions.ttl_ms(session_id))

    async def close(self, operation: CloseSession, timeout: float) -> SessionClosed:
        self.check(operation.session)
        done = await self._write(SystemCloseSession(operation.session.id), timeout)
        return SessionClosed(bool(done.data))

    async def _write(self, command: SystemCommand, timeout: float) -> ClientWriteResponse:
        return await self._core.propose(system_payload(command), timeout)
