"""Operations any node accepts: run here if this node leads, else forwarded, one hop at most (DESIGN §8)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from raftkit_core.errors import (
    BadRequest,
    ForwardToLeader,
    NetworkError,
    OutcomeUnknown,
    QuorumNotEnough,
    RaftError,
    RemoteError,
    RPCError,
    RPCTimeout,
    Stopped,
    Unreachable,
)
from raftkit_core.network.client import NodeReport
from raftkit_core.network.repeating import Attempts
from raftkit_core.runtime.limits import within
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.types.ids import NodeId
from raftkit_core.types.messages import ForwardRequest, ForwardResponse
from raftkit_core.types.operations import (
    AddLearner,
    ChangeMembership,
    CloseSession,
    KeepSession,
    LookAt,
    MembershipDone,
    OpenSession,
    Operation,
    SessionClosed,
    SessionKept,
    SessionOpened,
    TransferDone,
    TransferLeader,
    Write,
    WriteDone,
)

RESULTS: dict[type[Any], type[Any]] = {
    Write: WriteDone,
    AddLearner: MembershipDone,
    ChangeMembership: MembershipDone,
    TransferLeader: TransferDone,
    LookAt: NodeReport,
    OpenSession: SessionOpened,
    KeepSession: SessionKept,
    CloseSession: SessionClosed,
}
NAMES: dict[str, type[Any]] = {
    "write": Write,
    "add_learner": AddLearner,
    "change_membership": ChangeMembership,
    "transfer": TransferLeader,
    "open_session": OpenSession,
    "keep_session": KeepSession,
    "close_session": CloseSession,
    "look_at": LookAt,
}
_NAME_OF = {operation: name for name, operation in NAMES.items()}
_encoder = msgspec.msgpack.Encoder()

RETRY_SECONDS = 0.05
OVERDUE_SECONDS = 0.1
"""How long after its deadline a transport may take to end a call by itself."""
PATIENCE_SECONDS = 1.0
"""How long the first attempt at what may be repeated waits for its answer; each further one twice as long."""
PATIENCE_SECONDS_MAX = 4.0


class Forwarder:
    """Runs an operation where the leader is, and again while nobody leads, until the deadline."""

    def __init__(self, core: RaftCore, run: Callable[[Operation, float], Awaitable[Any]]) -> None:
        self._core = core
        self._run = run
        self._is_stopping = False
        self.under_way = 0
        """Operations whose answer another node owes."""

    def stop(self) -> None:
        """From now on nothing is sent to others: whoever asks is told so for certain, and asks another node."""
        self._is_stopping = True

    async def call(self, operation: Operation, timeout: float) -> Any:
        """The operation's result.

        Raises: OutcomeUnknown where an answer was lost; else the leader's own typed error, or ForwardToLeader /
        QuorumNotEnough when the deadline passed without a leader.
        """
        if isinstance(operation, OpenSession | KeepSession | CloseSession):
            return await self.call_again(lambda: operation, timeout, self._run)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            left = deadline - loop.time()
            try:
                return await self._once(operation, max(left, 0.001), self._run)
            except (ForwardToLeader, QuorumNotEnough, Unreachable) as error:
                # Definite: nothing entered any log. Another leader may be about to be elected.
                if loop.time() + RETRY_SECONDS >= deadline:
                    raise self._no_leader(error) from error
            await asyncio.sleep(RETRY_SECONDS)

    async def call_again(
        self,
        make: Callable[[], Operation],
        timeout: float,
        run: Callable[[Any, float], Awaitable[Any]],
        attempts: Attempts | None = None,
    ) -> Any:
        """Like :meth:`call` for what may be sent again after a lost answer: each attempt sends what ``make`` gives, and
        ``run`` carries it out where this node leads. With ``attempts`` (a write under a session) a refusal is reported
        as definite only if every attempt was."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        patience = PATIENCE_SECONDS
        while True:
            left = deadline - loop.time()
            try:
                return await self._once(make(), max(min(left, patience), 0.001), run)
            except RaftError as error:
                if attempts is not None:
                    told = attempts.failed(error)
                else:
                    told = None if error.retryable or error.outcome == "unknown" else error
                if told is error:
                    raise
                if told is not None:
                    raise told from error
                if loop.time() + RETRY_SECONDS >= deadline:
                    if isinstance(error, ForwardToLeader | QuorumNotEnough | Unreachable):
                        error = self._no_leader(error)
                    raise error if attempts is None else attempts.given_up(error)  # noqa: B904 - it has its own cause
                patience = min(2 * patience, PATIENCE_SECONDS_MAX)
            await asyncio.sleep(RETRY_SECONDS)

    async def _once(self, operation: Operation, timeout: float, run: Callable[[Any, float], Awaitable[Any]]) -> Any:
        """Here, or on the node that is said to lead."""
        try:
            return await run(operation, timeout)
        except ForwardToLeader as error:
            if error.leader is None:
                raise
            return await self.ask(error.leader, operation, timeout)

    def _no_leader(self, error: RaftError) -> RaftError:
        if isinstance(error, QuorumNotEnough) or (isinstance(error, Unreachable) and error.hint is not None):
            return error  # with a hint it is about another node than the leader: one that is to become a member
        nodes = self._core.engine.effective
        if not nodes.configs:
            return ForwardToLeader(
                f"{self._core.engine.config.id} belongs to no cluster yet",
                hint="initialize one: raftkit cluster init n1=URL n2=URL n3=URL",
            )
        return QuorumNotEnough(
            f"no leader was found in time; {error.message}; nothing was written",
            hint="start the missing nodes, or look at: raftkit status",
        )

    async def ask(self, leader: NodeId, operation: Operation, timeout: float) -> Any:
        """``operation`` at another member, once. Raises: OutcomeUnknown; Unreachable; Stopped; its own typed error."""
        if self._is_stopping:
            raise Stopped(
                f"{self._core.engine.config.id} is shutting down; nothing was sent",
                hint="ask another node",
                retryable=True,
                outcome="not_applied",
            )
        self.under_way += 1
        try:
            return await self._ask(leader, operation, timeout)
        finally:
            self.under_way -= 1

    async def _ask(self, leader: NodeId, operation: Operation, timeout: float) -> Any:
        node = self._core.engine.effective.nodes.get(leader)
        if node is None or leader == self._core.engine.config.id:
            raise ForwardToLeader("the leader is changing")
        client = self._core.peers.get(leader, node)
        request = ForwardRequest(_NAME_OF[type(operation)], _encoder.encode(operation), max(1, int(timeout * 1000)))
        try:
            sent: Awaitable[ForwardResponse] = self._core.stalls.call(client, "forward", request, timeout)
            answer = await within(sent, timeout + OVERDUE_SECONDS, f"a call to {leader}")
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{leader} did not answer in time", hint="look first: the change may have happened"
            ) from error
        except (NetworkError, RPCTimeout) as error:
            raise OutcomeUnknown(
                f"{leader} did not answer: {error.message}", hint="look first: the change may have happened"
            ) from error
        except RemoteError as error:
            if error.info is not None and error.info.outcome == "not_applied":
                raise Unreachable(f"{leader} refused: {error.message}", outcome="not_applied") from error
            raise OutcomeUnknown(f"{leader} failed: {error.message}") from error
        except Unreachable:
            raise
        except RPCError as error:
            raise Unreachable(f"{leader} cannot take it: {error.message}", outcome="not_applied") from error
        try:
            return msgspec.msgpack.decode(answer.body, type=RESULTS[type(operation)])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise OutcomeUnknown(f"{leader} gave an answer that cannot be read: {error}") from error

    async def serve(self, request: ForwardRequest) -> ForwardResponse:
        """Another node forwarded an operation: run it here, never forward it again."""
        operation_type = NAMES.get(request.operation)
        if operation_type is None:
            raise BadRequest(f"unknown operation {request.operation!r}", hint="upgrade the older node")
        try:
            operation = msgspec.msgpack.decode(request.body, type=operation_type)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadRequest(f"operation {request.operation!r} cannot be decoded: {error}") from error
        result = await self._run(operation, request.timeout_ms / 1000)
        return ForwardResponse(_encoder.encode(result))
