"""Leadership as an application may rely on it: from the leader's own first entry to the end of its *read lease*."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from raftkit_core.errors import LeadershipLost
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.wait import Wait
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.metrics import RaftMetrics


class LeadershipTerm:
    """One leadership of this node. ``token`` grows from one leadership of the cluster to the next: give it to whatever
    you write to, and let that refuse a smaller one (a fencing token)."""

    __slots__ = ("_core", "_session", "leader_id", "term", "token")

    def __init__(self, core: RaftCore, session: int, noop: LogId) -> None:
        self._core = core
        self._session = session
        self.leader_id: NodeId = noop.leader_id.node_id
        self.term = noop.term
        self.token = noop.index

    @property
    def is_valid(self) -> bool:
        """Whether the read lease of this leadership lasts at this moment."""
        return self.seconds_left > 0

    @property
    def seconds_left(self) -> float:
        """How long the read lease lasts if no peer answers any more; 0 or less when it is over."""
        core = self._core
        if core.fatal is not None or core.engine.session != self._session:
            return 0.0
        now = core.clock.monotonic()
        return core.engine.read_lease_until(now) - now

    def raise_if_lost(self) -> None:
        """Raises: LeadershipLost."""
        if not self.is_valid:
            raise LeadershipLost(
                f"{self.leader_id} no longer leads in term {self.term}", hint="another node may lead already"
            )


class _Watcher:
    """Cancels the body as soon as the lease is over: by time, or before a message leaves that ends it."""

    def __init__(self, core: RaftCore, held: LeadershipTerm, body: asyncio.Task[object]) -> None:
        self._core = core
        self._held = held
        self._body = body
        self._timer: asyncio.TimerHandle | None = None
        self.lost = False
        core.lease_watchers[self.check] = None
        self.check()

    def check(self) -> None:
        if self.lost:
            return
        left = self._held.seconds_left
        if left <= 0:
            self.lost = True
            self._body.cancel()
            self.stop()
        elif self._timer is None or self._timer.cancelled() or self._timer.when() <= asyncio.get_running_loop().time():
            self._timer = asyncio.get_running_loop().call_later(left, self.check)

    def stop(self) -> None:
        self._core.lease_watchers.pop(self.check, None)
        if self._timer is not None:
            self._timer.cancel()


@asynccontextmanager
async def hold_leadership(core: RaftCore, wait: Wait) -> AsyncIterator[LeadershipTerm]:
    """Enter once this node leads, has applied its own first entry and holds a valid read lease; cancel the body when
    that lease ends.

    Raises: LeadershipLost when it ended inside the block; WaitTimeout if this node does not get to lead in time.
    """

    def leads(m: RaftMetrics) -> bool:
        noop = core.engine.noop_log_id
        now = core.clock.monotonic()
        return noop is not None and index_of(m.last_applied) >= noop.index and core.engine.read_lease_until(now) > now

    await wait.metrics(leads, "leadership")
    noop = core.engine.noop_log_id
    body = asyncio.current_task()
    assert noop is not None, "the condition above holds: nothing ran in between"
    assert body is not None, "inside a coroutine there is a task"
    held = LeadershipTerm(core, core.engine.session, noop)
    watcher = _Watcher(core, held, body)
    try:
        yield held
    except asyncio.CancelledError:
        if not watcher.lost or body.uncancel() > 0:
            raise
    finally:
        watcher.stop()
    if watcher.lost:
        raise LeadershipLost(
            f"{held.leader_id} lost its read lease in term {held.term}; the block was cancelled",
            hint="enter again: it waits until this node leads",
        )
