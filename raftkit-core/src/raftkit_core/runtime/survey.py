"""What this node sees of the whole cluster: every member is asked over the peer connections, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from raftkit_core.errors import RaftError
from raftkit_core.network.client import NodeReport
from raftkit_core.runtime.operations import Forwarder
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.types.ids import NodeId
from raftkit_core.types.operations import LookAt

SURVEY_SECONDS = 1.5


class Surveyor:
    """Peers authenticate each other, so nothing but a membership is needed, whatever protects the client side."""

    def __init__(self, core: RaftCore, forwarder: Forwarder, own: Callable[[int], Awaitable[NodeReport]]) -> None:
        self._core = core
        self._forwarder = forwarder
        self._own = own

    async def survey(self, events_after: dict[NodeId, int], timeout: float) -> list[NodeReport]:
        """A report of every member, this node first among equals; one that does not answer says why."""
        me = self._core.engine.config.id
        members = sorted({*self._core.engine.effective.nodes, me})
        return list(
            await asyncio.gather(*(self._report(member, events_after.get(member, 0), timeout) for member in members))
        )

    async def _report(self, member: NodeId, after: int, timeout: float) -> NodeReport:
        if member == self._core.engine.config.id:
            return await self._own(after)
        try:
            async with asyncio.timeout(timeout):
                report: NodeReport = await self._forwarder.ask(member, LookAt(after), timeout)
        except RaftError as error:
            return NodeReport(id=member, error=error.message)
        except TimeoutError:
            return NodeReport(id=member, error=f"no answer within {timeout:g} s")
        return report if report.id == member else NodeReport(id=member, error=f"answers as {report.id}")


__all__ = ["SURVEY_SECONDS", "Surveyor"]
