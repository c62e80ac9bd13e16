"""Calls to peers under way. A transport that raises, gives nonsense or ignores its deadline costs one call, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, get_args

from raftkit_core.errors import NetworkError, RPCTimeout
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.network.lanes import LaneNetwork
from raftkit_core.network.reply import Reply, failed_reply
from raftkit_core.runtime.figures import NodeFigures
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

OVERDUE_SECONDS = 1.0
"""How long after its deadline a call that should have ended by itself (clause T4) is given up."""


class PeerMethod:
    """One method of one peer: :attr:`call` gives the :class:`Reply` to a request, whatever the transport gives.

    A lane of ours gives one by itself: it queues and returns, ends every call in time and decodes nothing but answers.
    A plugin's is called as plugins are, and its future becomes a reply here.
    """

    def __init__(self, network: RaftNetwork, name: str, stalls: StallDetector) -> None:
        self.network = network
        self._name = name
        self._peer = getattr(network, "target", "")
        self._stalls = stalls
        self._figures: NodeFigures = stalls.figures
        self._function: Callable[[Any, float], Any] = getattr(network, name)
        self._adapted: dict[asyncio.Future[Any], tuple[float, Reply[Any], float]] = {}
        """Under way, by the plugin's futures: when to give one up, the reply, and when it began."""
        self.observe: Callable[[float], None] = self._observe_first
        """Note how long a call took that was answered."""
        is_own = getattr(self._function, "__func__", None) in _OWN
        self.call: Callable[[Any, float], Reply[Any]] = self._function if is_own else self._call_plugin
        """``(request, timeout)``, in seconds. Raises whatever the transport raises."""

    def start(self, request: Any, timeout: float) -> Reply[Any]:
        """:attr:`call`, where an error is an answer like any other."""
        try:
            return self.call(request, timeout)
        except Exception as error:  # of the plugin: never this node's end
            return failed_reply(error)

    def _observe_first(self, seconds: float) -> None:
        self._figures.called(self._name, self._peer, seconds, True)
        self.observe = self._figures.calls[(self._name, self._peer)].observe

    def failed(self) -> None:
        """A call was not answered."""
        self._figures.called(self._name, self._peer, 0.0, False)

    # --- what plugins give ------------------------------------------------------------------------------------------

    def _call_plugin(self, request: Any, timeout: float) -> Reply[Any]:
        began = self._stalls.now()
        answer: Any = self._stalls.timed(self.network, self._name, self._function, request, timeout)
        reply: Reply[Any] = Reply()
        if isinstance(answer, Reply):
            answer.then(self._plugin_replied, (reply, began))
            return reply
        future: asyncio.Future[Any] = asyncio.ensure_future(answer)
        self._adapted[future] = (began + timeout + OVERDUE_SECONDS, reply, began)
        future.add_done_callback(self._plugin_ended)
        return reply

    def _plugin_replied(self, answer: Reply[Any], asked: tuple[Reply[Any], float]) -> None:
        reply, began = asked
        if answer.failed:
            reply.set_exception(answer.outcome)
        else:
            self._answer(reply, answer.outcome, began)

    def _plugin_ended(self, future: asyncio.Future[Any]) -> None:
        adapted = self._adapted.pop(future, None)
        if adapted is None:
            forget(future)
            return
        _, reply, began = adapted
        if future.cancelled():
            reply.set_exception(NetworkError("the call was cancelled"))
        elif (error := future.exception()) is not None:
            reply.set_exception(error)
        else:
            self._answer(reply, future.result(), began)

    def _answer(self, reply: Reply[Any], answer: Any, began: float) -> None:
        reply.seconds = self._stalls.now() - began
        if type(answer) in ANSWERS:
            reply.set_result(answer)
        else:
            reply.set_exception(TypeError(f"the transport gave {type(answer).__name__} as an answer"))

    def sweep(self, now: float) -> None:
        """Give up what is long overdue."""
        for future in [future for future, (due, _, _) in self._adapted.items() if due <= now]:
            _, reply, _ = self._adapted.pop(future)
            future.cancel()
            reply.set_exception(RPCTimeout("the transport did not end a call by its deadline"))

    def cancel(self) -> None:
        """Nobody waits for any of them any more."""
        adapted, self._adapted = self._adapted, {}
        for future, (_, reply, _) in adapted.items():
            reply.cancel()
            future.cancel()


Done = Callable[[Any, BaseException | None, Any], None]
"""Called once with the argument of the call, what it failed with or None, and the answer."""


class PeerCalls:
    """Single calls: ``done`` of each is called once, unless :meth:`cancel` was before."""

    def __init__(self, stalls: StallDetector) -> None:
        self._stalls = stalls
        self._methods: dict[tuple[str, str], PeerMethod] = {}
        self._pending: dict[Reply[Any], PeerMethod] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def start(
        self, network: RaftNetwork, name: str, request: Any, timeout: float, done: Done, argument: Any = None
    ) -> None:
        """Call ``network.name(request, timeout)``, then ``done(argument, error, answer)``: without a task if the
        transport gives a reply or a future."""
        key = (getattr(network, "target", ""), name)
        method = self._methods.get(key)
        if method is None or method.network is not network:
            method = self._methods[key] = PeerMethod(network, name, self._stalls)
        reply = method.start(request, timeout)
        self._pending[reply] = method
        reply.then(self._replied, (method, done, argument))

    def _replied(self, reply: Reply[Any], asked: tuple[PeerMethod, Done, Any]) -> None:
        method, done, argument = asked
        self._pending.pop(reply, None)
        if reply.failed:
            method.failed()
            done(argument, reply.outcome, None)
        else:
            method.observe(reply.seconds)
            done(argument, None, reply.outcome)

    def sweep(self, now: float) -> None:
        """Give up what is long overdue."""
        for method in set(self._pending.values()):
            method.sweep(now)

    def cancel(self) -> None:
        """Nobody waits for any of them any more."""
        pending, self._pending = self._pending, {}
        for reply, method in pending.items():
            method.cancel()
            reply.cancel()
