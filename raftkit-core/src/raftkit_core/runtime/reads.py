"""Linearizable reads: a position confirmed by a quorum, then this node's own applied position (DESIGN §4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import ForwardToLeader, QuorumNotEnough, RaftError, RPCError, RPCTimeout, Stopped, WaitTimeout
from raftkit_core.runtime.limits import within
from raftkit_core.runtime.messages import Read
from raftkit_core.runtime.operations import OVERDUE_SECONDS
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.read_index import SharedReadIndex
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.messages import ReadIndexRequest, ReadIndexResponse

READ_INDEX_TIMEOUT = 2.0
RETRY_SECONDS = 0.05


class LinearizableReads:
    """Makes a local read safe, on the leader or by asking it."""

    def __init__(self, core: RaftCore) -> None:
        self._core = core
        hurry = core.engine.config.heartbeat_interval
        self._shared = SharedReadIndex(core.waiting, core.stalls.now, self._ask_read_index, hurry)

    async def close(self) -> None:
        """The node has ended: nobody asks a leader any more."""
        await self._shared.close()

    async def read_log_id(self, policy: ReadPolicy, timeout: float) -> tuple[LogId, LogId | None]:
        """Leader only: a log id such that a read after applying it is linearizable, and what is applied now.

        Raises: ForwardToLeader, QuorumNotEnough.
        """
        by_lease = policy is ReadPolicy.LEASE
        try:
            read_log_id: LogId = await self._core.ask(timeout, lambda request_id: Read(request_id, by_lease))
        except RPCTimeout:
            raise QuorumNotEnough("no quorum confirmed the leader in time; nothing was read") from None
        return read_log_id, self._core.worker.applied

    async def ensure(self, policy: ReadPolicy, timeout: float) -> LogId:
        """Leader only: return once a local read is linearizable. Raises: as read_log_id."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        read_log_id, _ = await self.read_log_id(policy, timeout)
        await self.wait_applied(read_log_id, max(deadline - loop.time(), 0.001))
        return read_log_id

    async def wait_applied(self, log_id: LogId | None, timeout: float) -> None:
        if self._core.worker.applied_index >= index_of(log_id):
            return
        try:
            async with asyncio.timeout(timeout):
                await self._core.worker.wait_applied(index_of(log_id))
        except Stopped:
            self._core.check_running()
            raise
        except TimeoutError:
            self._core.check_running()
            raise WaitTimeout(
                f"{log_id} was not applied here within {timeout} s; applied is {self._core.worker.applied}"
            ) from None

    async def confirm(self, policy: ReadPolicy, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        began = self._core.stalls.now()
        deadline = loop.time() + timeout
        while True:
            self._core.check_running()
            left = max(deadline - loop.time(), 0.001)
            try:
                if self._core.engine.is_leader:
                    await self.ensure(policy, left)
                    error = None
                else:
                    found = await self._shared.position(policy, left)
                    error = found if isinstance(found, RaftError) else None
                    if not isinstance(found, RaftError):
                        await self.wait_applied(found, max(deadline - loop.time(), 0.001))
            except (ForwardToLeader, QuorumNotEnough, RPCError) as failed:
                error = failed
            if error is None:
                self._core.stalls.figures.read_index.observe(self._core.stalls.now() - began)
                return
            if not isinstance(error, ForwardToLeader | QuorumNotEnough | RPCError):
                raise error
            if loop.time() + RETRY_SECONDS >= deadline:
                raise self._unconfirmed(error) from error
            await asyncio.sleep(RETRY_SECONDS)

    def _unconfirmed(self, error: RaftError) -> RaftError:
        if not self._core.engine.effective.configs:
            return ForwardToLeader(
                f"{self._core.engine.config.id} belongs to no cluster yet",
                hint="initialize one: raftkit cluster init n1=URL n2=URL n3=URL",
            )
        return QuorumNotEnough(
            f"no leader was confirmed in time: {error.message}",
            hint="read what this node has without a promise: --consistency stale, ReadPolicy.STALE; or look at: raftkit"
            " status",
        )

    async def _ask_read_index(self, policy: ReadPolicy) -> LogId | None:
        """One call to the leader, for everybody who waits for it. Raises: ForwardToLeader; RPCError; as read_log_id."""
        leader = self._core.engine.known_leader
        node = None if leader is None else self._core.engine.effective.nodes.get(leader)
        if leader is None or node is None or leader == self._core.engine.config.id:
            raise ForwardToLeader(f"{self._core.engine.config.id} knows no leader")
        client = self._core.peers.get(leader, node)
        timeout = READ_INDEX_TIMEOUT
        request = ReadIndexRequest(policy.value, int(timeout * 1000))
        try:
            asked: Awaitable[ReadIndexResponse] = self._core.stalls.call(client, "read_index", request, timeout)
            answer = await within(asked, timeout + OVERDUE_SECONDS, f"a call to {leader}")
        except TimeoutError as error:
            raise RPCTimeout(str(error)) from None
        return answer.read_log_id

    async def serve_read_index(self, request: ReadIndexRequest) -> ReadIndexResponse:
        policy = ReadPolicy.LEASE if request.policy == ReadPolicy.LEASE.value else ReadPolicy.READ_INDEX
        read_log_id, _ = await self.read_log_id(policy, request.timeout_ms / 1000)
        return ReadIndexResponse(read_log_id)
