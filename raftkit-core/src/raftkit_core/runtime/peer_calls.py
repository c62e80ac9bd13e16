"""Calls to peers under way. A transport that raises, gives nonsense or ignores its deadline costs one call, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, get_args

from raftkit_core.errors import RPCTimeout
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.network.lanes import LaneNetwork
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.limits import forget
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.types.messages import AppendEntriesResponse, TransferLeaderResponse, VoteResponse

ANSWERS = frozenset((*get_args(AppendEntriesResponse), VoteResponse, TransferLeaderResponse))
"""What the calls made here may give."""

_OWN = frozenset(
    (
        LaneNetwork.append_entries,
        LaneNetwork.heartbeat,
        LaneNetwork.vote,
        LaneNetwork.pre_vote,
        LaneNetwork.transfer_leader,
    )
)

Answer: TypeAlias = asyncio.Future[Any] | Reply[Any]
Done = Callable[[Answer], None]
_Call: TypeAlias = tuple[str, str, float]
"""Kind, peer, and when it began."""

OVERDUE_SECONDS = 1.0
"""How long after its deadline a call that should have ended by itself (clause T4) is given up."""


class PeerCalls:
    """``done`` of every call is called once: with its answer, or with a failed one when it is given up."""

    def __init__(self, stalls: StallDetector) -> None:
        self._stalls = stalls
        self._pending: dict[Answer, tuple[float, Done, _Call]] = {}
        """By futures. A reply is ended by the lane it came from, in time: nobody has to see to that."""
        self._replies: set[Reply[Any]] = set()

    def __len__(self) -> int:
        return len(self._pending) + len(self._replies)

    def start(self, network: RaftNetwork, method: str, request: Any, timeout: float, done: Done) -> None:
        """Call ``network.method(request, timeout)``: without a task if the transport gives a reply or a future."""
        call: _Call = (method, getattr(network, "target", ""), self._stalls.now())
        try:
            function = getattr(network, method)
            if getattr(function, "__func__", None) in _OWN:  # it queues and returns: no plugin code to be timed
                answer: Any = function(request, timeout)
            else:
                answer = self._stalls.timed(network, method, function, request, timeout)
            if type(answer) is not Reply:
                answer = asyncio.ensure_future(answer)
        except Exception as error:  # of the plugin: never this node's end
            answer = _failed(error)
        if type(answer) is Reply:
            self._replies.add(answer)
            answer.then(partial(self._replied, done, call))
        else:
            self._pending[answer] = (call[2] + timeout + OVERDUE_SECONDS, done, call)
            answer.add_done_callback(self._ended)

    def _replied(self, done: Done, call: _Call, reply: Reply[Any]) -> None:
        self._replies.discard(reply)
        is_answered = not reply.failed and type(reply.result()) in ANSWERS
        self._measure(call, is_answered)
        if is_answered or reply.failed:
            done(reply)
        else:
            done(_failed(TypeError(f"the transport gave {type(reply.result()).__name__} as an answer")))

    def _ended(self, answer: Answer) -> None:
        pending = self._pending.pop(answer, None)
        if pending is None:
            if isinstance(answer, asyncio.Future):
                forget(answer)
            return
        _, done, call = pending
        is_answered = not answer.cancelled() and answer.exception() is None
        if is_answered and type(answer.result()) not in ANSWERS:
            is_answered = False
            answer = _failed(TypeError(f"the transport gave {type(answer.result()).__name__} as an answer"))
        self._measure(call, is_answered)
        done(answer)

    def _measure(self, call: _Call, is_answered: bool) -> None:
        kind, peer, began = call
        self._stalls.figures.called(kind, peer, self._stalls.now() - began, is_answered)

    def sweep(self, now: float) -> None:
        """Give up what is long overdue."""
        for answer in [answer for answer, (due, _, _) in self._pending.items() if due <= now]:
            _, done, call = self._pending.pop(answer)
            self._measure(call, False)
            answer.cancel()
            done(_failed(RPCTimeout("the transport did not end a call by its deadline")))

    def cancel(self) -> None:
        """Nobody waits for any of them any more."""
        pending: list[Answer] = [*self._pending, *self._replies]
        self._pending.clear()
        self._replies.clear()
        for answer in pending:
            answer.cancel()


def _failed(error: BaseException) -> Reply[Any]:
    reply: Reply[Any] = Reply()
    reply.set_exception(error)
    return reply
