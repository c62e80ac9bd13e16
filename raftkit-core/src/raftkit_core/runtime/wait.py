"""Wait until the node's metrics show something (openraft.md §1.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from raftkit_core.errors import Stopped, WaitTimeout
from raftkit_core.runtime.metrics import Watch
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.metrics import RaftMetrics, ServerState
from raftkit_core.types.vote import Vote


class Wait:
    """Conditions on metrics. Each gives the metrics that met it.

    Raises: WaitTimeout with the latest metrics; Stopped if the node ends first. ``timeout`` is in seconds.
    """

    def __init__(self, watch: Watch[RaftMetrics], timeout: float) -> None:
        self._watch = watch
        self._timeout = timeout

    async def metrics(self, predicate: Callable[[RaftMetrics], bool], what: str = "the condition") -> RaftMetrics:
        """The present value is looked at first, before any deadline."""
        value = self._watch.value
        if predicate(value):
            return value
        try:
            async with asyncio.timeout(self._timeout):
                while value.running and not self._watch.is_closed:
                    await self._watch.changed()
                    value = self._watch.value
                    if predicate(value):
                        return value
        except TimeoutError:
            raise WaitTimeout(f"{what} did not hold within {self._timeout} s; latest: {_brief(value)}") from None
        why = "" if value.fatal is None else f": {value.fatal}"
        raise Stopped(f"the node stopped while waiting for {what}{why}")

    async def current_leader(self, node_id: NodeId) -> RaftMetrics:
        return await self.metrics(lambda m: m.current_leader == node_id, f"leader {node_id}")

    async def any_leader(self) -> RaftMetrics:
        return await self.metrics(lambda m: m.current_leader is not None, "a leader")

    async def state(self, state: ServerState) -> RaftMetrics:
        return await self.metrics(lambda m: m.state is state, f"state {state.value}")

    async def vote(self, vote: Vote) -> RaftMetrics:
        return await self.metrics(lambda m: m.vote == vote, f"vote {vote}")

    async def log_index(self, index: int) -> RaftMetrics:
        return await self.metrics(lambda m: index_of(m.last_log_id) == index, f"last log index {index}")

    async def log_index_at_least(self, index: int) -> RaftMetrics:
        return await self.metrics(lambda m: index_of(m.last_log_id) >= index, f"last log index >= {index}")

    async def applied_index(self, index: int) -> RaftMetrics:
        return await self.metrics(lambda m: index_of(m.last_applied) == index, f"applied index {index}")

    async def applied_index_at_least(self, index: int) -> RaftMetrics:
        return await self.metrics(lambda m: index_of(m.last_applied) >= index, f"applied index >= {index}")

    async def voter_ids(self, ids: Iterable[NodeId]) -> RaftMetrics:
        wanted = tuple(sorted(set(ids)))
        return await self.metrics(lambda m: m.membership.membership.voter_ids == wanted, f"voters {wanted}")

    async def snapshot(self, log_id: LogId | None) -> RaftMetrics:
        return await self.metrics(lambda m: m.snapshot == log_id, f"snapshot {log_id}")

    async def purged(self, log_id: LogId | None) -> RaftMetrics:
        return await self.metrics(lambda m: m.purged == log_id, f"purged {log_id}")


def _brief(m: RaftMetrics) -> str:
    return (
        f"{m.id} {m.state.value} term {m.current_term} leader {m.current_leader} last {m.last_log_id}"
        f" committed {m.committed} applied {m.last_applied} voters {m.membership.membership.voter_ids}"
    )
