"""Callers that wait: by log id until their entry's index is committed here, or by request id until they are answered.

A waiter learns the truth about its entry, never a guess: applied, or *not applied* because another entry was committed
in its place, or *unknown* (deadline, shutdown, superseded by a snapshot). Truncation answers nobody: a truncated entry
can still commit later. Deadlines are swept by the tick: no timer per call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from raftkit_core.errors import NotApplied, OutcomeUnknown, RaftError, RPCTimeout
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.messages import ClientWrite, ClientWriteResponse
from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import RequestId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

SWEEP_SECONDS = 0.05


_Waiter: TypeAlias = tuple[asyncio.Future[Any], float, LeaderId, Any]
"""Who waits, until when, under whose entry, and an earlier waiter at the same index, whose entry was truncated."""


class WaitingClients:
    """Answers every future exactly once, or finds it cancelled and leaves it alone."""

    def __init__(self) -> None:
        self._by_index: dict[int, _Waiter] = {}
        self._requests: dict[RequestId, tuple[Reply[Any], float]] = {}
        self._request_id = 0
        self._swept_at = float("-inf")

    def __len__(self) -> int:
        return len(self._by_index)

    # --- writes -----------------------------------------------------------------------------------------------------

    def wait_for(self, log_id: LogId, future: asyncio.Future[Any], deadline: float) -> None:
        """``future`` waits for the entry ``log_id``."""
        index = log_id.index
        self._by_index[index] = (future, deadline, log_id.leader_id, self._by_index.get(index))

    def wait_for_all(self, first: LogId, writes: Iterable[ClientWrite]) -> None:
        """The futures of ``writes`` wait for consecutive entries from ``first`` on."""
        by_index, leader_id, index = self._by_index, first.leader_id, first.index
        for write in writes:
            deadline = write.deadline
            for future in write.futures:
                by_index[index] = (future, deadline, leader_id, by_index.get(index))
                index += 1

    def resolve_all(self, log: Sequence[Entry], results: Sequence[Any]) -> None:
        """Every entry of ``log`` was applied, with the result at its place."""
        pop = self._by_index.pop
        for entry, result in zip(log, results, strict=True):
            log_id = entry.log_id
            waiter = pop(log_id.index, None)
            if waiter is None:
                continue
            if waiter[3] is not None or waiter[2] != log_id.leader_id or isinstance(result, RaftError):
                response = result if isinstance(result, RaftError) else ClientWriteResponse(log_id, result)
                self._answer(waiter, log_id, response)
            elif not waiter[0].done():
                waiter[0].set_result(ClientWriteResponse(log_id, result))

    def resolve(self, log_id: LogId, response: ClientWriteResponse | RaftError) -> None:
        """The entry ``log_id`` was applied; an error is a refusal."""
        self._answer(self._by_index.pop(log_id.index, None), log_id, response)

    def _answer(self, waiter: _Waiter | None, log_id: LogId, response: ClientWriteResponse | RaftError) -> None:
        while waiter is not None:
            future, _, leader_id, waiter = waiter
            if future.done():
                continue
            if leader_id != log_id.leader_id:
                future.set_exception(
                    NotApplied(
                        f"{LogId(leader_id, log_id.index)} was replaced by {log_id}, which is committed",
                        hint="write it again",
                    )
                )
            elif isinstance(response, RaftError):
                future.set_exception(response)
            else:
                future.set_result(response)

    def superseded(self, upto: int) -> None:
        """A snapshot took the place of everything up to ``upto``: nobody here knows what became of those entries."""
        for index in [index for index in self._by_index if index <= upto]:
            waiter: _Waiter | None = self._by_index.pop(index)
            while waiter is not None:
                future, _, leader_id, waiter = waiter
                if not future.done():
                    future.set_exception(
                        OutcomeUnknown(
                            f"{LogId(leader_id, index)} was superseded by a snapshot; it may have been applied",
                            hint="read the key back",
                        )
                    )

    # --- requests ---------------------------------------------------------------------------------------------------

    def new_request(self, deadline: float) -> tuple[RequestId, Reply[Any]]:
        """A request id for the engine, and where its answer goes; ``RPCTimeout`` if none comes in time."""
        self._request_id += 1
        reply: Reply[Any] = Reply()
        self._requests[self._request_id] = (reply, deadline)
        return self._request_id, reply

    def respond(self, request_id: RequestId, response: Any) -> None:
        """Answer a request; an error is raised there. Unknown ids were answered or given up before."""
        waiting = self._requests.pop(request_id, None)
        if waiting is None:
            return
        if isinstance(response, BaseException):
            waiting[0].set_exception(response)
        else:
            waiting[0].set_result(response)

    def sweep(self, now: float) -> None:
        """Fail whatever is due. Looks at everything that waits, a few times a second: cheaper than a timer per call."""
        if now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        for request_id in [key for key, (reply, due) in self._requests.items() if due <= now or reply.done()]:
            self._requests.pop(request_id)[0].set_exception(RPCTimeout("no answer within the deadline"))
        for index in [index for index, waiter in self._by_index.items() if self._is_over(index, waiter, now)]:
            del self._by_index[index]

    def _is_over(self, index: int, waiter: _Waiter | None, now: float) -> bool:
        """Expire the waiters of one index; says whether none of them waits any more."""
        over = True
        while waiter is not None:
            future, deadline, leader_id, waiter = waiter
            if not future.done():
                if deadline <= now:
                    future.set_exception(
                        OutcomeUnknown(
                            f"{LogId(leader_id, index)} was not answered within its deadline; it may still be applied",
                            hint="read the key back, or repeat the write with a precondition",
                        )
                    )
                else:
                    over = False
        return over

    # --- the end ----------------------------------------------------------------------------------------------------

    def fail_all(self, make_error: Callable[[], RaftError]) -> None:
        """The node has stopped. Requests get its error; a write whose entry is in the log may still be applied, here
        after a restart or by the others: its outcome is unknown."""
        requests = [reply for reply, _ in self._requests.values()]
        writes = list(self._by_index.items())
        self._requests.clear()
        self._by_index.clear()
        for reply in requests:
            reply.set_exception(make_error())
        for index, head in writes:
            waiter: _Waiter | None = head
            while waiter is not None:
                future, _, leader_id, waiter = waiter
                if not future.done():
                    stopped = make_error()
                    error = OutcomeUnknown(
                        f"{LogId(leader_id, index)} may or may not be applied: {stopped.message}",
                        hint="read the key back",
                    )
                    error.__cause__ = stopped
                    future.set_exception(error)
