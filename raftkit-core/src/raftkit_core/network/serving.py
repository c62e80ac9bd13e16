"""The answering half of a connection, whatever carries its frames.

Requests are started in the order they come in and answered as they complete. Nothing but a hello is believed before the
service has accepted one (T1). Whatever is wrong with a frame is a ``FrameError``: the transport closes the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from raftkit_core.errors import ErrorInfo, IdentityError, RaftError, to_info
from raftkit_core.network.calls import CALL_BYTES_MAX, CALLS_MAX
from raftkit_core.network.deadlines import Deadlines
from raftkit_core.network.interface import RaftService
from raftkit_core.network.reply import Reply
from raftkit_core.network.wire import (
    FRAME_OVERHEAD_BYTES,
    FrameBytes,
    FrameError,
    Kind,
    decode_frame,
    decode_request,
    encode_answer_frame,
    encode_error,
    encode_frame,
    request_kind,
)
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import MAX_FRAME_BYTES, NodeId
from raftkit_core.types.messages import HelloRequest, HelloResponse, InstallSnapshotRequest
from raftkit_core.types.vote import Vote

logger = logging.getLogger(__name__)


class Admission(Protocol):
    """What a transport knows about who is at the other end, beyond what a hello claims."""

    def check(self, node_id: NodeId, service: RaftService) -> None:
        """Whether the other end may speak as ``node_id`` now. Raises: AccessDenied, and the connection is closed."""
        ...


HANDLER_TIMEOUT = 60.0
"""Seconds after which no answer is waited for, whatever the caller said."""
REQUESTS_MAX = CALLS_MAX + 1024
"""Requests of one connection under way; reading stops there until some are answered. A peer that keeps to what it may
have pending never comes so far, with those that it gave up and that are still under way here: a hello, and the entries
that settle what it forwarded, must not wait behind that."""
REQUEST_BYTES_MAX = CALL_BYTES_MAX + REQUESTS_MAX * FRAME_OVERHEAD_BYTES
_HELLO, _FORWARD, _APPEND_ENTRIES = Kind.HELLO, Kind.FORWARD, Kind.APPEND_ENTRIES
ADMITTED_AGAIN = frozenset({Kind.VOTE, Kind.PRE_VOTE, Kind.READ_INDEX, Kind.FORWARD})
"""Before these it is looked at again who asks: it may have been removed since it said hello."""
OF_A_LEADER = frozenset({Kind.APPEND_ENTRIES, Kind.HEARTBEAT, Kind.TRANSFER_LEADER})
"""Before these only when they claim another leadership than those before: a leader that removes itself must still
replicate that, and hand over."""


class _Running:
    """A request under way that is no :class:`Reply`."""

    __slots__ = ("due", "future", "request_id", "size")

    def __init__(self, future: asyncio.Future[Any], request_id: int, size: int, due: float) -> None:
        self.future = future
        self.request_id = request_id
        self.size = size
        self.due = due


class ServedConnection:
    """One accepted connection.

    ``find_service`` gives the service of ``group`` or None; ``send`` queues a frame; ``refused`` is called after an
    error answer to a hello was sent: close when it has left. ``offer`` makes the ticket of a snapshot stream;
    ``admission`` judges who says hello, and who asks for votes, reads and writes.
    """

    def __init__(
        self,
        group: str,
        find_service: Callable[[], RaftService | None],
        kinds: frozenset[Kind],
        *,
        send: Callable[[bytes], None],
        refused: Callable[[], None],
        offer: Callable[[InstallSnapshotRequest, PeerIdentity], str],
        max_frame_bytes: int = MAX_FRAME_BYTES,
        admission: Admission | None = None,
    ) -> None:
        self.group = group
        self.peer: PeerIdentity | None = None
        self._find_service = find_service
        self._kinds = {int(kind): kind for kind in kinds}
        self._send = send
        self._refused = refused
        self._offer = offer
        self._max_frame_bytes = max_frame_bytes
        self._admission = admission
        self._running: dict[int, _Running] = {}
        self._replying = 0
        self._running_bytes = 0
        self._next_serial = 1
        self._last_forward = 0
        """The request id of the last forwarded operation: a caller counts up."""
        self._leadership: Vote | None = None
        """What the peer was last admitted with as a leader."""
        self._greeting = False
        self._closed = False
        self._room: asyncio.Future[None] | None = None
        self._deadlines = Deadlines(self._expired, self._running)

    def received_many(self, frames: Sequence[FrameBytes]) -> None:
        """Take frames that came in together: the node deals with them in one go, before this returns, and nothing of
        them is used after that. Who corks the node itself may call :meth:`received`.

        Raises: FrameError, and the connection must be closed.
        """
        service = self._find_service()
        if service is not None:
            service.cork()
        try:
            for data in frames:
                self.received(data)
        finally:
            if service is not None:
                service.uncork()

    def received(self, data: FrameBytes) -> None:
        """Take one frame. Raises: FrameError, and the connection must be closed."""
        if self._closed:
            return
        frame = decode_frame(data)
        kind = self._kinds.get(frame.kind)
        if kind is None:
            raise FrameError(f"{request_kind(frame.kind).name} does not belong on this connection")
        peer = self.peer
        if peer is None or kind is _HELLO:
            if kind is not _HELLO:
                # Not even decoded: a small frame can become many objects.
                raise FrameError(f"{kind.name} before hello" + (" was answered" if self._greeting else ""))
            self._greeting = peer is None
            greeting = decode_request(kind, frame.body)
            self._start(self._hello(greeting), frame.request_id, len(data), frame.timeout_ms)
            return
        if kind is _FORWARD and self._came_before(frame.request_id):
            return
        message = decode_request(kind, frame.body)
        service = self._find_service()
        if service is None:
            self._reply_error(frame.request_id, to_info(_not_served(self.group)))
            return
        try:
            if kind is _APPEND_ENTRIES and self._admission is None:
                answer = service.append_entries(message, peer)
            else:
                answer = self._dispatch(service, kind, message, peer)
        except Exception as error:
            self._reply_failure(frame.request_id, error)
            return
        if isinstance(answer, Reply) and answer.answered:
            self._reply(frame.request_id, answer.outcome)
        else:
            self._start(answer, frame.request_id, len(data), frame.timeout_ms)

    def _came_before(self, request_id: int) -> bool:
        """A stream repeats nothing, but what stands between two nodes may: everything else changes nothing when it
        comes twice, a forwarded write would be made twice."""
        if request_id <= self._last_forward:
            who = "somebody" if self.peer is None else self.peer.node_id
            logger.warning("a forwarded request of %s came twice: the second is ignored", who)
            return True
        self._last_forward = request_id
        return False

    @property
    def has_room(self) -> bool:
        return len(self._running) + self._replying < REQUESTS_MAX and self._running_bytes < REQUEST_BYTES_MAX

    async def wait_for_room(self) -> None:
        """Return when another frame may be read. Ends with the requests under way, each of which has a deadline."""
        while not self.has_room and not self._closed:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def close(self) -> None:
        """End every handler; answers under way are dropped. Idempotent."""
        self._closed = True
        self._deadlines.close()
        tasks = [each.future for each in self._running.values() if isinstance(each.future, asyncio.Task)]
        self._running.clear()
        self._make_room()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- Handlers ---------------------------------------------------------------------------------------------------

    async def _hello(self, request: HelloRequest) -> HelloResponse:
        """Judge who connects; said again on an open connection, it is judged again. A refusal ends the connection."""
        service = self._find_service()
        try:
            if service is None:
                raise _not_served(self.group)
            if request.group != self.group:
                raise IdentityError(f"a hello of group {request.group!r} on a connection of group {self.group!r}")
            if self._admission is not None:
                self._admission.check(request.node_id, service)
            response = await service.hello(request)
        except BaseException:
            self.peer = None
            raise
        protocol = min(request.protocol_max, response.protocol_max)
        self.peer = PeerIdentity(request.node_id, request.store_id, protocol)
        return response

    def _dispatch(self, service: RaftService, kind: Kind, message: Any, peer: PeerIdentity) -> Awaitable[Any]:
        if self._admission is not None and kind in OF_A_LEADER and message.vote != self._leadership:
            self._admission.check(peer.node_id, service)
            self._leadership = message.vote
        if kind is Kind.APPEND_ENTRIES:
            return service.append_entries(message, peer)
        if kind is Kind.HEARTBEAT:
            return service.heartbeat(message, peer)
        if self._admission is not None and kind in ADMITTED_AGAIN:
            self._admission.check(peer.node_id, service)
        if kind is Kind.VOTE or kind is Kind.PRE_VOTE:
            return service.vote(message, peer) if kind is Kind.VOTE else service.pre_vote(message, peer)
        if kind is Kind.READ_INDEX:
            return service.read_index(message, peer)
        if kind is Kind.FORWARD:
            return service.forward(message, peer)
        if kind is Kind.TRANSFER_LEADER:
            return service.transfer_leader(message, peer)
        if kind is Kind.SNAPSHOT_OFFSET:
            return self._snapshot_offset(service, message, peer)
        raise FrameError(f"{kind.name} is no request of a connection")

    async def _snapshot_offset(
        self, service: RaftService, message: InstallSnapshotRequest, peer: PeerIdentity
    ) -> tuple[int, str]:
        offset = await service.snapshot_offset(message, peer)
        return offset, self._offer(message, peer)

    # --- Answers ----------------------------------------------------------------------------------------------------

    def _start(self, awaitable: Awaitable[Any], request_id: int, size: int, timeout_ms: int) -> None:
        """A reply or a future costs no task; a coroutine gets one, and tasks start in the order they were made."""
        self._running_bytes += size
        if isinstance(awaitable, Reply):
            # The node answers it in time by itself, with an error if need be.
            self._replying += 1
            awaitable.then(self._replied, (request_id, size))
            return
        serial = self._next_serial
        self._next_serial += 1
        future = awaitable if isinstance(awaitable, asyncio.Future) else asyncio.ensure_future(awaitable)
        loop = asyncio.get_running_loop()
        timeout = min(timeout_ms / 1000, HANDLER_TIMEOUT) if timeout_ms else HANDLER_TIMEOUT
        running = self._running[serial] = _Running(future, request_id, size, loop.time() + timeout)
        if future.done():
            self._done(serial, future)
            return
        if running.due < self._deadlines.timer_at:
            self._deadlines.arm(running.due, loop)
        future.add_done_callback(partial(self._done, serial))

    def _replied(self, reply: Reply[Any], asked: tuple[int, int]) -> None:
        request_id, size = asked
        self._replying -= 1
        self._running_bytes -= size
        if self._room is not None:
            self._make_room()
        if self._closed:
            return
        if reply.failed:
            self._reply_failure(request_id, reply.outcome)
        else:
            self._reply(request_id, reply.outcome)

    def _done(self, serial: int, future: asyncio.Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()  # retrieved, also when nobody waits any more
        running = self._running.pop(serial, None)
        if running is None or self._closed:
            return
        self._running_bytes -= running.size
        self._make_room()
        if future.cancelled():
            self._reply_error(running.request_id, ErrorInfo("STOPPED", "the request was cancelled", outcome="unknown"))
        elif error is None:
            self._reply(running.request_id, future.result())
        else:
            self._reply_failure(running.request_id, error)
        if self.peer is None:
            self._refused()

    def _expired(self, serial: int) -> None:
        """Nobody waits for this answer any more."""
        running = self._running.pop(serial)
        self._running_bytes -= running.size
        self._make_room()
        if isinstance(running.future, asyncio.Task):
            running.future.cancel()
        if self.peer is None:
            self._refused()

    def _reply_failure(self, request_id: int, error: BaseException) -> None:
        if not isinstance(error, RaftError):
            logger.error("a handler of group %s failed", self.group, exc_info=error)
        self._reply_error(request_id, to_info(error))

    def _reply_error(self, request_id: int, info: ErrorInfo) -> None:
        body = encode_error(info, self._max_frame_bytes - FRAME_OVERHEAD_BYTES)
        self._send(encode_frame(Kind.ERROR, request_id, 0, body))

    def _reply(self, request_id: int, message: Any) -> None:
        frame = encode_answer_frame(request_id, message)
        if len(frame) > self._max_frame_bytes:
            info = ErrorInfo("INTERNAL", f"an answer of {len(frame)} bytes does not fit a frame", outcome="unknown")
            self._reply_error(request_id, info)
        else:
            self._send(frame)

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done() and (self._closed or self.has_room):
            self._room.set_result(None)


def _not_served(group: str) -> IdentityError:
    return IdentityError(
        f"group {group!r} is not served here", hint="the node may still be starting; else check the peer address"
    )
