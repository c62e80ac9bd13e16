"""Calls to peers under way. A transport that raises, gives nonsense or ignores its deadline costs one call, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias, get_args

from raftkit_core.errors import RPCTimeout
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.limits import forget
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.types.messages import AppendEntriesResponse, TransferLeaderResponse, VoteResponse

ANSWERS = frozenset((*get_args(AppendEntriesResponse), VoteResponse, TransferLeaderResponse))
"""What the calls made here may give."""

Answer: TypeAlias = asyncio.Future[Any] | Reply[Any]
Done = Callable[[Answer], None]

OVERDUE_SECONDS = 1.0
"""How long after its deadline a call that should have ended by itself (clause T4) is given up."""


class PeerCalls:
    """``done`` of every call is called once: with its answer, or with a failed one when it is given up."""

    def __init__(self, stalls: StallDetector) -> None:
        self._stalls = stalls
        self._pending: dict[Answer, tuple[float, Done]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def start(self, network: RaftNetwork, method: str, request: Any, timeout: float, done: Done) -> None:
        """Call ``network.method(request, timeout)``: without a task if the transport gives a reply or a future."""
        try:
            answer = self._stalls.call(network, method, request, timeout)
            if type(answer) is not Reply:
                answer = asyncio.ensure_future(answer)
        except Exception as error:  # of the plugin: never this node's end
            answer = _failed(error)
        self._pending[answer] = (self._stalls.now() + timeout + OVERDUE_SECONDS, done)
        if type(answer) is Reply:
            answer.then(self._ended)
        else:
            answer.add_done_callback(self._ended)

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
        pending, self._pending = self._pending, {}
        for answer in pending:
            answer.cancel()


def _failed(error: BaseException) -> Reply[Any]:
    reply: Reply[Any] = Reply()
    reply.set_exception(error)
    return reply
