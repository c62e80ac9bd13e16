"""Callers that wait: by log id until their entry's index is committed here, or by request id until they are answered.

A waiter learns the truth about its entry, never a guess: applied, or *not applied* because another entry was committed
in its place, or *unknown* (deadline, shutdown, superseded by a snapshot). Truncation answers nobody: a truncated entry
can still commit later. Deadlines are swept by the tick: no timer per call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from raftkit_core.errors import NotApplied, OutcomeUnknown, RaftError, RPCTimeout
from raftkit_core.network.reply import Reply
from raftkit_core.types.ids import RequestId
from raftkit_core.types.log_id import LogId

SWEEP_SECONDS = 0.05


class _Waiter:
    __slots__ = ("deadline", "future", "log_id", "next")

    def __init__(self, log_id: LogId, future: asyncio.Future[Any], deadline: float, following: _Waiter | None) -> None:
        self.log_id = log_id
        self.future = future
        self.deadline = deadline
        self.next = following
        """An earlier waiter at the same index, whose entry was truncated."""


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
        self._by_index[log_id.index] = _Waiter(log_id, future, deadline, self._by_index.get(log_id.index))

    def resolve(self, log_id: LogId, result: Any) -> None:
        """The entry ``log_id`` was applied with ``result`` (a ``RaftError`` is a refusal)."""
        waiter = self._by_index.pop(log_id.index, None)
        while waiter is not None:
            future = waiter.future
            if not future.done():
                if waiter.log_id != log_id:
                    future.set_exception(
                        NotApplied(
                            f"{waiter.log_id} was replaced by {log_id}, which is committed", hint="write it again"
                        )
                    )
                elif isinstance(result, RaftError):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            waiter = waiter.next

    def superseded(self, upto: int) -> None:
        """A snapshot took the place of everything up to ``upto``: nobody here knows what became of those entries."""
        for index in [index for index in self._by_index if index <= upto]:
            waiter: _Waiter | None = self._by_index.pop(index)
            while waiter is not None:
                if not waiter.future.done():
                    waiter.future.set_exception(
                        OutcomeUnknown(
                            f"{waiter.log_id} was superseded by a snapshot; it may have been applied",
                            hint="read the key back",
                        )
                    )
                waiter = waiter.next

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
        for index in [index for index, waiter in self._by_index.items() if self._is_over(waiter, now)]:
            del self._by_index[index]

    def _is_over(self, head: _Waiter, now: float) -> bool:
        """Expire the waiters of one index; says whether none of them waits any more."""
        over = True
        waiter: _Waiter | None = head
        while waiter is not None:
            if not waiter.future.done():
                if waiter.deadline <= now:
                    waiter.future.set_exception(
                        OutcomeUnknown(
                            f"{waiter.log_id} was not answered within its deadline; it may still be applied",
                            hint="read the key back, or repeat the write with a precondition",
                        )
                    )
                else:
                    over = False
            waiter = waiter.next
        return over

    # --- the end ----------------------------------------------------------------------------------------------------

    def fail_all(self, make_error: Callable[[], RaftError]) -> None:
        """The node has stopped. Requests get its error; a write whose entry is in the log may still be applied, here
        after a restart or by the others: its outcome is unknown."""
        requests = [reply for reply, _ in self._requests.values()]
        writes = list(self._by_index.values())
        self._requests.clear()
        self._by_index.clear()
        for reply in requests:
            reply.set_exception(make_error())
        for head in writes:
            waiter: _Waiter | None = head
            while waiter is not None:
                if not waiter.future.done():
                    stopped = make_error()
                    error = OutcomeUnknown(
                        f"{waiter.log_id} may or may not be applied: {stopped.message}", hint="read the key back"
                    )
                    error.__cause__ = stopped
                    waiter.future.set_exception(error)
                waiter = waiter.next
