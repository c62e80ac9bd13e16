"""What waits for a turn of a node's loop: messages in order, writes that join each other, and notifications."""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

from raftkit_core.errors import Fatal, Overloaded, Stopped
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.messages import (
    ChangeMembershipRequest,
    ClientWrite,
    ClientWriteResponse,
    ExternalRequest,
    Notification,
    RaftMsg,
)
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.ids import NodeId, RequestId

MAX_QUEUED = 65536
"""API messages waiting for the loop; more is ``Overloaded``."""
MAX_JOINED = 256
"""So many single writes are put together: more might be too many for one turn."""


class Balancer:
    """How many API messages and notifications one turn may take: whoever used all of its share gets more (seed)."""

    def __init__(self, total: int = 10000) -> None:
        self._total = total
        self.raft_msg = total // 10
        self.notification = total - self.raft_msg

    def turned(self, raft_msgs: int, notifications: int) -> None:
        """What the last turn really took, if it left something over."""
        if notifications >= self.notification:
            self.raft_msg = max(1, self.raft_msg * 15 // 16)
        elif raft_msgs >= self.raft_msg:
            self.raft_msg = min(self._total // 2, self.raft_msg * 17 // 16 + 1)
        self.notification = self._total - self.raft_msg


class Inbox(ABC):
    """Bounded, and for calls from the loop it was made in. Whoever takes from it says what a turn is."""

    def __init__(self, node_id: NodeId, now: Callable[[], float], waiting: WaitingClients) -> None:
        self.node_id = node_id
        self.waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._thread_id = get_ident()
        self._context = contextvars.copy_context()
        self._now = now
        self._inbox: deque[RaftMsg] = deque()
        self._places = 0
        """How many writes the last message may have, while single ones may join those it has; 0 if none may. Its
        columns:"""
        self._payloads: list[bytes] = []
        self._commands: list[Any] = []
        self._futures: list[Future[Any]] = []
        self._timeouts: list[float] = []
        self._writes_alone = 0
        """How many writes lately came one after the other, each when nobody waited for an earlier one."""
        self._joined = 0
        """Single writes in the inbox, without those that may be joined."""
        self._notifications: deque[Notification] = deque()
        self._turn_is_due = True
        """A turn is scheduled or under way, or begins when the frames that are being handed over are all here; or there
        is none to be had: before the loop runs, and once the node has ended."""
        self._is_corked = False
        self._corks = 0
        self.fatal: BaseException | None = None
        """Why the node has stopped; :class:`Stopped` after a shutdown."""

    # --- a turn -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _next_turn(self) -> None:
        """Take what waits."""

    @abstractmethod
    def _write_at_once(
        self, payload: bytes, timeout: float, condition: WriteCondition | None, command: Any
    ) -> asyncio.Future[ClientWriteResponse]:
        """A turn for this write alone."""

    def _wake(self) -> None:
        """Something is there: have a turn soon, unless one is coming or under way (which looks again at its end)."""
        if not self._turn_is_due:
            self._turn_is_due = True
            if self._corks:
                self._is_corked = True
            else:
                self._loop.call_soon(self._next_turn, context=self._context)

    def cork(self) -> None:
        """A transport hands over what came in together: the turn that deals with it waits for :meth:`uncork`."""
        self._corks += 1

    def uncork(self) -> None:
        """All of it is here: have the turn it needs now, in this step of the event loop. One that was scheduled before
        is left to come: what waits for it may still grow."""
        self._corks -= 1
        if self._is_corked and not self._corks:
            self._is_corked = False
            self._next_turn()

    # --- in ---------------------------------------------------------------------------------------------------------

    def send(self, message: RaftMsg) -> None:
        """Queue a message for the loop.

        Raises: Fatal (Stopped) if the node has ended; Overloaded if too much is waiting. Both are definite.
        """
        self._check_room()
        self._put(message)

    def propose(
        self, payload: bytes, timeout: float, condition: WriteCondition | None = None, command: Any = None
    ) -> asyncio.Future[ClientWriteResponse]:
        """Queue one write, beside the single ones that were the last to come if there is room; the future gives its
        result. ``command`` is what the body of ``payload`` decodes to, if that is known. Raises: as :meth:`send`."""
        payloads = self._payloads
        if len(payloads) >= self._places or condition is not None or get_ident() != self._thread_id:
            if self.fatal is not None or running_loop() is not self._loop:
                self.check_running()
            if self._writes_alone > 1 and not self._turn_is_due and not self.waiting.writers:
                return self._write_at_once(payload, timeout, condition, command)
            payloads = self._begin_writes(condition)
        future: Future[ClientWriteResponse] = Future(loop=self._loop)
        payloads.append(payload)
        self._commands.append(command)
        self._futures.append(future)
        self._timeouts.append(timeout)
        return future

    def _begin_writes(self, condition: WriteCondition | None) -> list[bytes]:
        """Queue a message for a write and those that come after it; gives its payloads. A write with a condition is
        judged alone: its neighbours would change what it depends on."""
        message = ClientWrite([], [], [], [], self._now(), condition, True)
        self.send(message)
        self._payloads, self._commands = message.payloads, message.commands
        self._futures, self._timeouts = message.futures, message.timeouts
        if condition is None:
            self._places = MAX_JOINED
        return message.payloads

    def _put(self, message: RaftMsg) -> None:
        if self._places or self._payloads:
            self._close_writes()  # order is kept: nothing joins what is before this
        self._inbox.append(message)
        if not self._turn_is_due:
            self._wake()

    def _close_writes(self) -> None:
        """Nothing joins the writes that came last any more."""
        self._places = 0
        self._joined += len(self._payloads)
        self._payloads, self._commands, self._futures, self._timeouts = [], [], [], []

    def ask(self, timeout: float, message: Callable[[RequestId], RaftMsg]) -> Reply[Any]:
        """Queue a request. The reply is the engine's answer, or RPCTimeout after ``timeout`` seconds.

        Raises: as :meth:`send`, and then nobody waits for anything.
        """
        self._check_room()
        request_id, reply = self.waiting.new_request(self._now() + timeout)
        self._put(message(request_id))
        return reply

    def _check_room(self) -> None:
        if self.fatal is not None or running_loop() is not self._loop:
            self.check_running()
        if len(self._inbox) + self._joined >= MAX_QUEUED:
            raise Overloaded(f"{MAX_QUEUED} requests wait for this node", hint="wait for earlier ones first")

    def notify(self, notification: Notification) -> None:
        """An effect of this node has finished."""
        self._notifications.append(notification)
        self._wake()

    def check_running(self) -> None:
        """Raises: Fatal (Stopped) if the node has ended; RuntimeError for a call from elsewhere than its loop."""
        if self.fatal is None:
            if running_loop() is not self._loop:
                self.check_loop()
            return
        if isinstance(self.fatal, Stopped):
            raise Stopped(self.fatal.message, outcome="not_applied")
        text = str(self.fatal) or type(self.fatal).__name__
        hint = getattr(self.fatal, "hint", None)
        raise Fatal(f"the node has stopped: {text}", hint=hint, outcome="not_applied") from self.fatal

    def check_loop(self) -> None:
        """A node belongs to the event loop it was started in: from elsewhere a call could be lost, or hang.

        Raises: RuntimeError.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self._loop:
            raise RuntimeError(
                f"{self.node_id} runs in another event loop; from another thread use"
                " asyncio.run_coroutine_threadsafe(call, loop), with the loop it was started in"
            )

    # --- out --------------------------------------------------------------------------------------------------------

    def stop_error(self) -> Fatal:
        """What a call that cannot be carried on is told."""
        node_id = self.node_id
        error: Fatal
        if isinstance(self.fatal, Stopped):
            return Stopped(f"{node_id} was shut down")
        error = Fatal(f"node {node_id} has stopped: {self.fatal}", hint=getattr(self.fatal, "hint", None))
        error.__cause__ = self.fatal
        return error

    def _refuse_inbox(self) -> None:
        """What was not looked at yet never entered the log: a definite answer."""
        for message in self._inbox:
            match message:
                case ClientWrite():
                    futures = message.futures
                case ChangeMembershipRequest(future=future) | ExternalRequest(future=future):
                    futures = [] if future is None else [future]
                case _:
                    futures = []
            for waiting in futures:
                if not waiting.done():
                    error = self.stop_error()
                    error.outcome = "not_applied"
                    waiting.set_exception(error)
        self._inbox.clear()
        self._close_writes()
        self._joined = 0


def refuse(futures: Iterable[Future[Any]], make_error: Callable[[], BaseException]) -> None:
    """Tell everybody who waits for one of ``futures``."""
    for future in futures:
        if not future.done():
            future.set_exception(make_error())


running_loop = asyncio._get_running_loop
