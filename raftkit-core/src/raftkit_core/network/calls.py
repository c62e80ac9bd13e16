"""The calling half of a connection, whatever carries its frames: one lane to one peer.

A lane numbers requests, says hello on every new connection (T1), keeps order (T2), ends every call by its deadline
(T4) and fails what is pending when a connection breaks (T5). A transport brings a ``dial`` function and a
:class:`Link`.

::

    closed ──call──▶ dialling ──hello accepted──▶ open ──lost──▶ closed (the next call dials again)
                        └───refused, failed, nobody waits any more───▶ closed
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Any

from raftkit_core.errors import (
    Fatal,
    IdentityError,
    NetworkError,
    PayloadTooLarge,
    PeerBusy,
    RaftError,
    RemoteError,
    RPCError,
    RPCTimeout,
    StorageError,
    Unreachable,
    from_info,
)
from raftkit_core.network.deadlines import Deadlines
from raftkit_core.network.interface import RaftService
from raftkit_core.network.reply import Reply
from raftkit_core.network.wire import (
    FRAME_OVERHEAD_BYTES,
    JOINED_BYTES_MIN,
    FrameBytes,
    FrameError,
    Kind,
    decode_answer,
    decode_error,
    decode_frame,
    encode_frame,
    encode_request,
    frame_head,
)
from raftkit_core.types.ids import MAX_FRAME_BYTES, NodeId
from raftkit_core.types.messages import HelloResponse

CALLS_MAX = 4096
"""Calls that may be pending on one lane."""
CALL_BYTES_MAX = 2 * MAX_FRAME_BYTES
"""Bytes of pending calls on one lane; one whole frame always fits."""
TIMEOUT_MAX = 3600.0

_ANSWER, _ERROR = int(Kind.ANSWER), int(Kind.ERROR)
RAISED_AS_ITSELF = frozenset({Kind.FORWARD, Kind.READ_INDEX})
"""Calls made on behalf of a client: the peer's typed answer is the client's answer."""
AS_LONG_AS_CLIENTS_WAIT = RAISED_AS_ITSELF
"""How long these take says nothing about the connection: a client may be in a hurry, or its leader without a quorum."""
ABOUT_THE_PEER = (Fatal, StorageError)
"""What a peer says about its own process or disk must never read as if ours had died."""

logger = logging.getLogger(__name__)


class Link(ABC):
    """One open connection as a lane uses it. Frames leave in the order of ``send``."""

    @abstractmethod
    def send(self, frame: bytes, request_id: int) -> None:
        """Queue ``frame``. Never waits and never raises; a broken connection is told through ``lost``."""

    def send_parts(self, head: bytes, body: bytes, request_id: int) -> None:
        """``send`` a large frame that need not be put together before."""
        self.send(head + body, request_id)

    @abstractmethod
    def abort(self) -> None:
        """Drop the connection at once. Idempotent; tells nobody."""

    @property
    def unsent_bytes(self) -> int:
        """What was sent and has not left yet."""
        return 0

    @property
    def finished(self) -> bool:
        """Whether nothing of the connection is left to wait for."""
        return True

    async def wait_closed(self) -> None:
        """After ``abort``: return when the tasks of the connection have ended."""
        return


class Connection:
    """One attempt of a lane to be connected: what a transport's reader talks to. Late events of an old one are void."""

    def __init__(self, lane: CallLane) -> None:
        self._lane = lane
        self.link: Link | None = None
        self.heard_at = 0.0
        self.is_probed = False
        self.broken: RPCError | None = None
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self.hello: asyncio.Future[bytes] | None = loop.create_future()

    def received(self, data: FrameBytes) -> None:
        """A frame came in."""
        lane = self._lane
        if lane._connection is self:
            self.heard_at = self.now()
            lane._received(self, data)
        elif self.hello is not None and not self.hello.done():
            self.hello.set_result(bytes(data))

    def received_many(self, frames: Sequence[FrameBytes]) -> None:
        """Frames came in together: the node deals with their answers in one go, before this returns.

        Nothing of them is used after that. Who corks the node itself may call :meth:`received`.
        """
        service = self._lane._service
        service.cork()
        try:
            for data in frames:
                self.received(data)
        finally:
            service.uncork()

    def fail(self, request_id: int, error: RPCError) -> None:
        """One request cannot be delivered; the connection is fine."""
        if self.hello is not None:
            self.lost(error)
        elif self._lane._connection is self and self._lane._is_pending(request_id):
            self._lane._forget(request_id).set_exception(error)

    def lost(self, error: RPCError) -> None:
        """The connection broke, or the peer closed it."""
        self.broken = error
        if self.hello is not None:
            if not self.hello.done():
                self.hello.set_exception(error)
                self.hello.exception()  # retrieved: a dial that gave up meanwhile is no reason for a warning
        elif self._lane._connection is self:
            self._lane._lost(error)


Dial = Callable[[Connection], Awaitable[Link]]
"""Connects and gives a link whose reader calls ``received`` and ``lost``. Raises: RPCError."""


class _Call(Reply[Any]):
    """A call under way: its reply, and all that is known about it."""

    kind: Kind
    size: int
    sent_at: float
    due: float


class CallLane:
    """Calls to one peer in order. ``name`` is for messages; ``dial_timeout`` is in seconds."""

    def __init__(
        self,
        name: str,
        target: NodeId,
        service: RaftService,
        dial: Dial,
        *,
        dial_timeout: float,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self.name = name
        self.target = target
        self._service = service
        self._dial = dial
        self._dial_timeout = dial_timeout
        self._body_bytes_max = max_frame_bytes - FRAME_OVERHEAD_BYTES
        self._calls: dict[int, _Call] = {}
        self._call_bytes = 0
        self._next_id = 1
        self._unsent: list[tuple[int, bytes]] = []
        self._connection: Connection | None = None
        self._link: Link | None = None
        """That of the open connection."""
        self._time: Callable[[], float] = _time_of_the_loop
        self._dialling: asyncio.Task[None] | None = None
        self._hello_waiters: list[asyncio.Future[HelloResponse]] = []
        self._aborted: list[Link] = []
        self._deadlines = Deadlines(self._expired, self._calls)
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def call(self, kind: Kind, body: bytes, timeout: float) -> Reply[Any]:
        """Send a request. The reply is the answer, or an RPCError, or what the peer said to a client's call.

        An encoded message that is too large fails the reply too: nothing is raised here.
        """
        call = _Call()
        calls, link, size = self._calls, self._link, len(body)
        bytes_pending = self._call_bytes + size
        if (
            link is None
            or size > self._body_bytes_max
            or bytes_pending > CALL_BYTES_MAX
            or len(calls) >= CALLS_MAX
            or link.unsent_bytes
        ) and (refusal := self._refusal(size, link)) is not None:
            call.set_exception(refusal)
            return call
        if not 0.0 <= timeout <= TIMEOUT_MAX:
            timeout = min(max(timeout, 0.0), TIMEOUT_MAX)
        request_id = self._next_id
        self._next_id = request_id + 1
        call.kind = kind
        call.size = size
        call.sent_at = now = self._time()
        call.due = due = now + timeout
        calls[request_id] = call
        self._call_bytes = bytes_pending
        if due < self._deadlines.timer_at:
            self._deadlines.arm(due, asyncio.get_running_loop())
        timeout_ms = ceil(timeout * 1000)
        if link is None:
            self._unsent.append((request_id, encode_frame(kind, request_id, timeout_ms, body)))
            self._start_dialling()
        elif size < JOINED_BYTES_MIN:
            link.send(encode_frame(kind, request_id, timeout_ms, body), request_id)
        else:
            link.send_parts(frame_head(kind, request_id, timeout_ms), body, request_id)
        return call

    async def hello(self, timeout: float) -> HelloResponse:
        """Say hello, on a new connection if none is open, and give the answer. Raises: RPCError, IdentityError."""
        if self._connection is not None:
            body = encode_request(Kind.HELLO, self._service.local_hello(self.target))
            try:
                response: HelloResponse = await self.call(Kind.HELLO, body, timeout)
                self._service.check_hello(self.target, response)
            except IdentityError as error:
                self._drop(Unreachable(f"{self.target} is not who it should be: {error}"))
                raise
            return response
        if self._closed:
            raise Unreachable(f"the {self.name} to {self.target} is closed")
        waiter: asyncio.Future[HelloResponse] = asyncio.get_running_loop().create_future()
        self._hello_waiters.append(waiter)
        self._start_dialling()
        try:
            async with asyncio.timeout(min(max(timeout, 0.0), TIMEOUT_MAX)):
                return await waiter
        except TimeoutError:
            raise Unreachable(f"{self.target} did not answer a hello within {timeout:g} s") from None
        finally:
            if waiter in self._hello_waiters:
                self._hello_waiters.remove(waiter)
            self._stop_dialling_for_nobody()

    async def close(self) -> None:
        """Drop the connection, fail what is pending, end every task. Idempotent."""
        self._closed = True
        dialling = self._dialling
        self._drop(Unreachable(f"the {self.name} to {self.target} was closed"))
        if dialling is not None:
            dialling.cancel()
            await asyncio.wait([dialling])
        self._deadlines.close()
        while self._aborted:
            await self._aborted.pop().wait_closed()

    # --- Connecting -------------------------------------------------------------------------------------------------

    def _start_dialling(self) -> None:
        if self._dialling is None:
            self._dialling = asyncio.get_running_loop().create_task(self._connect(), name=f"dial {self.target}")
            self._dialling.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        if self._dialling is task:
            self._dialling = None
        if task.cancelled():
            if not self._closed and (self._calls or self._hello_waiters):
                self._start_dialling()  # somebody called after it was given up
        else:
            task.result()

    def _stop_dialling_for_nobody(self) -> None:
        """Nobody waits for it: the next call dials afresh, which also notices a healed network sooner."""
        if self._dialling is not None and not self._calls and not self._hello_waiters:
            self._dialling.cancel()

    async def _connect(self) -> None:
        connection = Connection(self)
        error: RaftError
        try:
            async with asyncio.timeout(self._dial_timeout):
                connection.link = await self._dial(connection)
                response = await self._say_hello(connection)
            self._service.check_hello(self.target, response)
            if connection.broken is not None:
                raise connection.broken
        except asyncio.CancelledError:
            if connection.link is not None:
                self._abort(connection.link)
            raise
        except TimeoutError:
            error = Unreachable(f"no connection to {self.target} within {self._dial_timeout:g} s")
        except RaftError as failure:
            error = failure
        except FrameError as failure:
            error = Unreachable(f"{self.target} answered a hello with garbage: {failure}")
        except Exception as failure:
            logger.exception("connecting to %s failed", self.target)
            error = Unreachable(f"cannot connect to {self.target}: {type(failure).__name__}")
        else:
            self._dialling = None
            self._opened(connection, response)
            return
        self._dialling = None
        self._dial_failed(connection, error)

    async def _say_hello(self, connection: Connection) -> HelloResponse:
        assert connection.link is not None, "a dial gives a link"
        assert connection.hello is not None, "hello is said once"
        request = encode_request(Kind.HELLO, self._service.local_hello(self.target))
        connection.link.send(encode_frame(Kind.HELLO, 0, ceil(self._dial_timeout * 1000), request), 0)
        frame = decode_frame(await connection.hello)
        if frame.kind == Kind.ERROR:
            raise from_info(decode_error(frame.body))
        if frame.kind != Kind.ANSWER or frame.request_id != 0:
            raise FrameError(f"frame of kind {frame.kind} for request {frame.request_id}")
        response: HelloResponse = decode_answer(Kind.HELLO, frame.body)
        return response

    def _opened(self, connection: Connection, response: HelloResponse) -> None:
        connection.hello = None
        connection.heard_at = connection.now()
        self._connection = connection
        self._time = connection.now
        assert connection.link is not None, "an open connection has a link"
        self._link = connection.link
        unsent, self._unsent = self._unsent, []
        for request_id, frame in unsent:
            call = self._calls.get(request_id)
            if call is None:
                continue
            if call.done():  # its caller has stopped: of a node that failed nothing leaves any more
                self._forget(request_id)
                continue
            call.sent_at = connection.heard_at
            connection.link.send(frame, request_id)
        waiters, self._hello_waiters = self._hello_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(response)

    def _dial_failed(self, connection: Connection, error: RaftError) -> None:
        if connection.link is not None:
            self._abort(connection.link)
        connection.hello = None
        waiters, self._hello_waiters = self._hello_waiters, []
        for waiter in waiters:
            _failed(waiter, error if isinstance(error, IdentityError | RPCError) else _unreachable(self.target, error))
        self._fail_pending(_unreachable(self.target, error))

    # --- Answers ----------------------------------------------------------------------------------------------------

    def _is_pending(self, request_id: int) -> bool:
        call = self._calls.get(request_id)
        return call is not None and not call.done()

    def _received(self, connection: Connection, data: FrameBytes) -> None:
        try:
            frame = decode_frame(data)
            call = self._calls.get(frame.request_id)
            if call is None:
                return  # late: its caller has gone (T4)
            error: RaftError | None = None
            if frame.kind == _ANSWER:
                answer = decode_answer(call.kind, frame.body)
            elif frame.kind == _ERROR:
                error = remote_error(call.kind, self.target, frame.body)
            else:
                raise FrameError(f"a peer must not send frames of kind {frame.kind} here")
        except FrameError as garbage:
            self._drop(NetworkError(f"{self.target} sent garbage: {garbage}"))
            return
        del self._calls[frame.request_id]
        self._call_bytes -= call.size
        call.seconds = connection.heard_at - call.sent_at
        if error is None:
            call.set_result(answer)
        else:
            call.set_exception(error)

    def _lost(self, error: RPCError) -> None:
        self._drop(error)

    def _expired(self, request_id: int) -> None:
        call = self._forget(request_id)
        connection = self._connection
        if connection is None:
            call.set_exception(Unreachable(f"no connection to {self.target} in time"))
            self._stop_dialling_for_nobody()
            return
        call.set_exception(RPCTimeout(f"{self.target} did not answer {call.kind.name.lower()} in time"))
        if connection.heard_at > call.sent_at or self._connection is not connection:
            return
        # Nothing at all came back since this was sent: the connection may be half open, and a new one will tell.
        if call.kind in AS_LONG_AS_CLIENTS_WAIT:
            self._probe(connection)
        else:
            self._drop(NetworkError(f"the connection to {self.target} went silent"))

    def _probe(self, connection: Connection) -> None:
        """Ask for something that is answered at once, before others who wait on this connection are let down."""
        if connection.is_probed:
            return
        connection.is_probed = True

        def answered(reply: Reply[HelloResponse], _: Any) -> None:
            connection.is_probed = False  # unanswered, it has ended the connection
            if reply.failed:
                return
            try:
                self._service.check_hello(self.target, reply.result())
            except RaftError as error:
                self._drop(_unreachable(self.target, error))

        body = encode_request(Kind.HELLO, self._service.local_hello(self.target))
        self.call(Kind.HELLO, body, self._dial_timeout).then(answered)

    # --- Book-keeping -----------------------------------------------------------------------------------------------

    def _refusal(self, size: int, link: Link | None) -> RPCError | None:
        if self._closed:
            return Unreachable(f"the {self.name} to {self.target} is closed")
        if size > self._body_bytes_max:
            return PayloadTooLarge(f"a message of {size} bytes is too large for the {self.name} to {self.target}")
        if len(self._calls) >= CALLS_MAX or (self._calls and self._call_bytes + size > CALL_BYTES_MAX):
            return PeerBusy(f"{len(self._calls)} calls to {self.target} are pending already")
        if link is not None and (unsent := link.unsent_bytes) and unsent + size > CALL_BYTES_MAX:
            # Also of calls nobody waits for any more: a peer that reads slowly would let them pile up.
            return PeerBusy(f"{self.target} has not read {unsent} bytes yet")
        return None

    def _forget(self, request_id: int) -> _Call:
        call = self._calls.pop(request_id)
        self._call_bytes -= call.size
        return call

    def _fail_pending(self, error: RPCError) -> None:
        calls = list(self._calls.values())
        self._calls.clear()
        self._call_bytes = 0
        self._unsent = []
        for call in calls:
            call.set_exception(error)

    def _drop(self, error: RPCError) -> None:
        connection, self._connection = self._connection, None
        self._link = None
        if connection is not None and connection.link is not None:
            self._abort(connection.link)
        if connection is not None and isinstance(error, Unreachable):
            # These calls have left: "unreachable" would say that they never did, and a write would be sent again.
            error = NetworkError(error.message, hint=error.hint)
        self._fail_pending(error)

    def _abort(self, link: Link) -> None:
        link.abort()
        self._aborted = [old for old in self._aborted if not old.finished]
        self._aborted.append(link)


def _time_of_the_loop() -> float:
    return asyncio.get_running_loop().time()


def _failed(future: asyncio.Future[Any], error: BaseException) -> None:
    """Fail ``future`` unless it is done. An error of the network nobody asks about is not worth a warning."""
    if not future.done():
        future.set_exception(error)
        future.exception()


def _unreachable(target: NodeId, error: RaftError) -> Unreachable:
    if isinstance(error, Unreachable):
        return error
    refused = Unreachable(f"{target} cannot be used: {error.message}", hint=error.hint)
    refused.__cause__ = error
    return refused


def remote_error(kind: Kind, target: NodeId, body: Any) -> RaftError:
    """What an error answer means to the caller of ``kind``. Raises: FrameError."""
    info = decode_error(body)
    typed = from_info(info)
    if kind is Kind.HELLO:
        return typed
    if kind in RAISED_AS_ITSELF:
        is_the_answer = not isinstance(typed, ABOUT_THE_PEER)
    else:
        is_the_answer = isinstance(typed, PeerBusy | PayloadTooLarge)  # the peer says what to do next
    return typed if is_the_answer else RemoteError(f"{target}: {info.message}", info=info)
