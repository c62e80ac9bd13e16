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

OVERDUE_SECONDS = 1.0
"""How long after its deadline a call that should have ended by itself (clause T4) is given up."""


class PeerCalls:
    """``done`` of every call is called once: with its answer, or with a failed one when it is given up."""

    def __init__(self, stalls: StallDetector) -> None:
        self._stalls = stalls
        self._pending: dict[Answer, tuple[float, Done]] = {}
        """By futures. A reply is ended by the lane it came from, in time: nobody has to see to that."""
        self._replies: set[Reply[Any]] = set()

    def __len__(self) -> int:
        return len(self._pending) + len(self._replies)

    def start(self, network: RaftNetwork, method: str, request: Any, timeout: float, done: Done) -> None:
        """Call ``network.method(request, timeout)``: without a task if the transport gives a reply or a future."""
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
            answer.then(partial(self._replied, done))
        else:
            self._pending[answer] = (self._stalls.now() + timeout + OVERDUE_SECONDS, done)
            answer.add_done_callback(self._ended)

    def _replied(self, done: Done, reply: Reply[Any]) -> None:
        self._replies.discard(reply)
        if reply.failed or type(reply.result()) in ANSWERS:
            done(reply)
        else:
            done(_failed(TypeError(f"the transport gave {type(reply.result()).__name__} as an answer")))

    def _ended(self, answer: Answer) -> None:
        call = self._pending.pop(answer, None)
        if call is None:
            if isinstance(answer, asyncio.Future):
                forget(answer)
        elif not answer.cancelled() and answer.exception() is None and type(answer.result()) not in ANSWERS:
            call[1](_failed(TypeError(f"the transport gave {type(answer.result()).__name__} as an answer")))
        else:
            call[1](answer)

    def sweep(self, now: float) -> None:
        """Give up what is long overdue."""
        for answer in [answer for answer, (due, _) in self._pending.items() if due <= now]:
            done = self._pending.pop(answer)[1]
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
