"""Where a follower may read: one call to the leader for all reads that wait.

A read joins only a call that has not left yet, so that the leader takes the position after the read began (DESIGN §4):
what was under way before may be answered with a position from before a write that this reader has seen acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import RaftError
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.types.ids import RequestId
from raftkit_core.types.log_id import LogId


class SharedReadIndex:
    """Calls of one policy leave one after the other. One that is under way for ``hurry`` seconds holds up nobody: its
    frame may be lost, and the next one leaves beside it."""

    def __init__(
        self,
        waiting: WaitingClients,
        now: Callable[[], float],
        ask: Callable[[ReadPolicy], Awaitable[LogId | None]],
        hurry: float,
    ) -> None:
        self._waiting = waiting
        self._now = now
        self._ask = ask
        self._hurry = hurry
        self._gathering: dict[ReadPolicy, list[RequestId]] = {}
        """Who joined the call that leaves next."""
        self._last: dict[ReadPolicy, asyncio.Task[None]] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}

    async def position(self, policy: ReadPolicy, timeout: float) -> LogId | RaftError | None:
        """A position that the leader took after this call began, or why there is none, which all who share it get.

        Raises: RPCTimeout after ``timeout``.
        """
        request_id, reply = self._waiting.new_request(self._now() + timeout)
        gathering = self._gathering.get(policy)
        if gathering is None:
            self._gathering[policy] = [request_id]
            before = self._last.get(policy)
            task = self._last[policy] = asyncio.ensure_future(self._call(policy, before))
            self._tasks[task] = None
            task.add_done_callback(self._tasks.pop)
        else:
            gathering.append(request_id)
        found: tuple[LogId | RaftError | None] = await reply
        return found[0]

    async def _call(self, policy: ReadPolicy, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait((before,), timeout=self._hurry)
        joined = self._gathering.pop(policy)
        try:
            found: LogId | RaftError | None = await self._ask(policy)
        except RaftError as error:
            found = error
        except Exception as error:
            for request_id in joined:
                self._waiting.respond(request_id, error)
            return
        for request_id in joined:
            self._waiting.respond(request_id, (found,))  # an error as a value: one that many raise grows with each

    async def close(self) -> None:
        """End the calls under way; whoever waits was told by the node's end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
