"""Calls to peers under way. A transport that raises, gives nonsense or ignores its deadline costs one call, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, get_args

from raftkit_core.errors import RPCTimeout
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.runtime.limits import forget
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.types.messages import AppendEntriesResponse, TransferLeaderResponse, VoteResponse

ANSWERS = (*get_args(AppendEntriesResponse), VoteResponse, TransferLeaderResponse)
"""What the calls made here may give."""

Done = Callable[[asyncio.Future[Any]], None]

OVERDUE_SECONDS = 1.0
"""How long after its deadline a call that should have ended by itself (clause T4) is given up."""


class PeerCalls:
    """``done`` of every call is called once: with its future, or with a failed one when it is given up."""

    def __init__(self, stalls: StallDetector) -> None:
        self._stalls = stalls
        self._pending: dict[asyncio.Future[Any], tuple[float, Done]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def start(self, network: RaftNetwork, method: str, request: Any, timeout: float, done: Done) -> None:
        """Call ``network.method(request, timeout)``: without a task if the transport gives a future."""
        try:
            future = asyncio.ensure_future(self._stalls.call(network, method, request, timeout))
        except Exception as error:  # of the plugin: never this node's end
            future = _failed(error)
        self._pending[future] = (self._stalls.now() + timeout + OVERDUE_SECONDS, done)
        future.add_done_callback(self._ended)

    def _ended(self, future: asyncio.Future[Any]) -> None:
        call = self._pending.pop(future, None)
        if call is None:
            forget(future)
        elif not future.cancelled() and future.exception() is None and not isinstance(future.result(), ANSWERS):
            call[1](_failed(TypeError(f"the transport gave {type(future.result()).__name__} as an answer")))
        else:
            call[1](future)

    def sweep(self, now: float) -> None:
        """Give up what is long overdue."""
        for future in [future for future, (due, _) in self._pending.items() if due <= now]:
            done = self._pending.pop(future)[1]
            future.cancel()
            done(_failed(RPCTimeout("the transport did not end a call by its deadline")))

    def cancel(self) -> None:
        """Nobody waits for any of them any more."""
        pending, self._pending = self._pending, {}
        for future in pending:
            future.cancel()


def _failed(error: BaseException) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    future.exception()  # retrieved: nobody may come to ask
    return future
