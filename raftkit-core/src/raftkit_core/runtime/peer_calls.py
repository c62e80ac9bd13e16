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
from raftkit_core.runtime.figures import Durations, NodeFigures
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
Done = Callable[..., None]
"""Called with the answer, after what :meth:`PeerCalls.start` was given for it."""


class _Method:
    """One method of one peer, and how long its calls took."""

    __slots__ = ("_durations", "_figures", "function", "is_own", "name", "network", "peer")

    def __init__(self, network: RaftNetwork, name: str, figures: NodeFigures) -> None:
        self.network = network
        self.name = name
        self.peer = getattr(network, "target", "")
        self.function: Any = getattr(network, name, None)
        self.is_own = getattr(self.function, "__func__", None) in _OWN
        self._figures = figures
        self._durations: Durations | None = None

    def ended(self, seconds: float, is_answered: bool) -> None:
        if self._durations is None or not is_answered:
            self._figures.called(self.name, self.peer, seconds, is_answered)
            self._durations = self._figures.calls.get((self.name, self.peer))
        else:
            self._durations.observe(seconds)


OVERDUE_SECONDS = 1.0
"""How long after its deadline a call that should have ended by itself (clause T4) is given up."""


class PeerCalls:
    """``done`` of every call is called once: with its answer, or with a failed one when it is given up."""

    def __init__(self, stalls: StallDetector) -> None:
        self._stalls = stalls
        self._now = stalls.now
        self._methods: dict[str, _Method] = {}
        self._pending: dict[Answer, tuple[float, Callable[[Answer], None], _Method, float]] = {}
        """By futures. A reply is ended by the lane it came from, in time: nobody has to see to that."""
        self._replies: set[Reply[Any]] = set()

    def __len__(self) -> int:
        return len(self._pending) + len(self._replies)

    def start(self, network: RaftNetwork, name: str, request: Any, timeout: float, done: Done, *arguments: Any) -> None:
        """Call ``network.name(request, timeout)``: without a task if the transport gives a reply or a future; then
        ``done(*arguments, answer)``."""
        began = self._now()
        method = self._methods.get(name)
        if method is None or method.network is not network:
            method = self._methods[name] = _Method(network, name, self._stalls.figures)
        try:
            if method.is_own:  # it queues and returns: no plugin code to be timed
                answer: Any = method.function(request, timeout)
            else:
                answer = self._stalls.timed(network, name, method.function, request, timeout)
            if type(answer) is not Reply:
                answer = asyncio.ensure_future(answer)
        except Exception as error:  # of the plugin: never this node's end
            answer = _failed(error)
        if type(answer) is Reply:
            self._replies.add(answer)
            answer.then(partial(self._replied, done, arguments, method, began))
        else:
            self._pending[answer] = (began + timeout + OVERDUE_SECONDS, partial(done, *arguments), method, began)
            answer.add_done_callback(self._ended)

    def _replied(
        self, done: Done, arguments: tuple[Any, ...], method: _Method, began: float, reply: Reply[Any]
    ) -> None:
        self._replies.discard(reply)
        is_answered = not reply.failed and type(reply.result()) in ANSWERS
        method.ended(self._now() - began, is_answered)
        if not is_answered and not reply.failed:
            reply = _failed(TypeError(f"the transport gave {type(reply.result()).__name__} as an answer"))
        done(*arguments, reply)

    def _ended(self, answer: Answer) -> None:
        pending = self._pending.pop(answer, None)
        if pending is None:
            if isinstance(answer, asyncio.Future):
                forget(answer)
            return
        _, done, method, began = pending
        is_answered = not answer.cancelled() and answer.exception() is None
        if is_answered and type(answer.result()) not in ANSWERS:
            is_answered = False
            answer = _failed(TypeError(f"the transport gave {type(answer.result()).__name__} as an answer"))
        method.ended(self._now() - began, is_answered)
        done(answer)

    def sweep(self, now: float) -> None:
        """Give up what is long overdue."""
        for answer in [answer for answer, (due, *_) in self._pending.items() if due <= now]:
            _, done, method, began = self._pending.pop(answer)
            method.ended(self._now() - began, False)
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
