"""Which client sessions a leader has heard of: deadlines in its memory, never in the log.

A new leader grants every session its full time to live, from the moment its own first entry is applied; so does one
whose quorum lease was interrupted (a paused process must not end sessions it could not hear). Expiry is an entry,
proposed under a valid quorum lease; while one is in the log, no keep-alive of its sessions is answered.
"""

from __future__ import annotations

from heapq import heappop, heappush

from raftkit_core.engine.engine import Engine
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.types.log_id import LogId, index_of

EXPIRED_AT_ONCE = 1000
"""Sessions in one expiry entry."""


class SessionKeeper:
    """Belongs to the loop of one node; does nothing while that does not lead."""

    def __init__(self, system: SystemMachine) -> None:
        self._system = system
        self._leadership = 0
        self._is_granted = False
        self._looked_at = float("-inf")
        self._newest = 0
        self._deadlines: dict[int, float] = {}
        self._order: list[tuple[float, int]] = []
        """A heap of the deadlines as they were; each session is in it once."""
        self._expiring: dict[int, LogId] = {}

    def expiry_of(self, session_id: int) -> LogId | None:
        """The entry in this leader's log that ends the session, if one is."""
        return self._expiring.get(session_id)

    def follow(self, engine: Engine, applied: LogId | None, now: float) -> bool:
        """Take note of the role and of sessions opened and ended. Whether deadlines are kept now."""
        looked_at, self._looked_at = self._looked_at, now
        if engine.session != self._leadership:
            self._leadership = engine.session
            self._is_granted = False
            self._expiring.clear()
        noop = engine.noop_log_id
        if noop is None or index_of(applied) < noop.index:
            return False
        if now >= engine.quorum_lease_until(now):
            self._is_granted = False
            return False
        if not self._is_granted or now - looked_at >= engine.config.leader_lease:
            # A single voter has a valid lease also when it stood still.
            self._is_granted = True
            self._newest = 0
            self._deadlines.clear()
            self._order.clear()
            self._forget_expired()
        for session_id in self._system.sessions.newer_than(self._newest):
            self._newest = session_id
            deadline = now + self._system.sessions.ttl_ms(session_id) / 1000
            self._deadlines[session_id] = deadline
            heappush(self._order, (deadline, session_id))
        return True

    def renew(self, session_id: int, now: float) -> None:
        """The client was heard. An expiry that is proposed already is not taken back."""
        if session_id in self._deadlines and session_id in self._system.sessions:
            self._deadlines[session_id] = now + self._system.sessions.ttl_ms(session_id) / 1000

    def due(self, engine: Engine, applied: LogId | None, now: float) -> tuple[int, ...]:
        """Sessions to expire now. Each is named again until :meth:`proposed` or :meth:`renew`."""
        if not self.follow(engine, applied, now):
            return ()
        sessions, order = self._system.sessions, self._order
        if len(order) > 2 * len(sessions) + 64:
            # Sessions that were closed long before their deadline must cost no memory until then.
            self._deadlines = {known: at for known, at in self._deadlines.items() if known in sessions}
            order[:] = sorted((at, known) for known, at in self._deadlines.items())
            self._forget_expired()
        due: list[int] = []
        while order and order[0][0] <= now and len(due) < EXPIRED_AT_ONCE:
            _, session_id = heappop(order)
            deadline = self._deadlines[session_id]
            if session_id not in sessions:
                del self._deadlines[session_id]
                self._expiring.pop(session_id, None)
            elif session_id in self._expiring:
                heappush(order, (now + 1.0, session_id))
            elif deadline > now:
                heappush(order, (deadline, session_id))
            else:
                due.append(session_id)
        for session_id in due:
            heappush(order, (now, session_id))
        return tuple(due)

    def _forget_expired(self) -> None:
        sessions = self._system.sessions
        self._expiring = {known: at for known, at in self._expiring.items() if known in sessions}

    def proposed(self, session_ids: tuple[int, ...], log_id: LogId) -> None:
        """The expiry of these sessions is in this leader's log."""
        for session_id in session_ids:
            self._expiring[session_id] = log_id
