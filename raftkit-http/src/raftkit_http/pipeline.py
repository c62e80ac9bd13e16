"""Many writes in flight to one node, over one WebSocket: what gathers in a turn of the loop leaves as one frame.

A write is *sent* when its frame was handed to the socket; before that it can go elsewhere (``NotSent``), after that a
broken connection or silence leaves it ``Lost``. The socket is made when it is needed, and dropped when it breaks. When
a write goes without an answer while nothing at all is heard, later writes take a new one; those that are under way on
the old one have the rest of their time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import aiohttp
import msgspec
from aiohttp import WSMsgType

from raftkit_core.errors import ErrorInfo, Overloaded, from_info
from raftkit_core.types.session import SessionSerial
from raftkit_http.api.schema import WriteAnswer
from raftkit_http.exchange import CONNECT_SECONDS, MAX_ANSWER_BYTES, Answer, Lost, NotSent, reason_of

WINDOW = 1024
"""Writes in flight to one node."""
WINDOW_BYTES = 2 * 1024 * 1024
"""What they take together, if they are more than one frame. A node lets as much of both wait for its turn."""
MAX_QUEUED = 16384
"""Writes that wait for the window; more is ``Overloaded``."""
MAX_FRAME_WRITES = 256
MAX_FRAME_BYTES = 240 * 1024
"""What the writes of a frame take at most; a larger one goes another way. Any node takes a frame of 256 KiB."""
WRITE_BYTES = 64
"""What a write in a frame counts besides its command."""
PING_SECONDS = 5.0
SILENCE_SECONDS = 0.9
"""A connection on which nothing was heard for this long, though something was asked, gets no more writes."""
CLOSE_SECONDS = 1.0
REFUSED_SECONDS = 30.0
"""How long a node, or what stands before it, is not asked for a WebSocket again after it refused one."""


class NoUpgrade(NotSent):
    """There is somebody, and no WebSocket: the write may go by POST."""


class _Pending:
    """One write. ``is_sent`` says which of the two ways it fails."""

    __slots__ = ("answer", "command", "deadline", "is_sent", "once")

    def __init__(
        self, command: bytes, once: SessionSerial | None, deadline: float, answer: asyncio.Future[Answer[WriteAnswer]]
    ) -> None:
        self.command = command
        self.once = once
        self.deadline = deadline
        self.answer = answer
        self.is_sent = False

    def fail(self, reason: str, unsent: type[NotSent] = NotSent) -> None:
        if not self.answer.done():
            self.answer.set_exception(Lost(reason) if self.is_sent else unsent(reason))


class _Reply(msgspec.Struct, frozen=True, array_like=True):
    id: int
    ok: bool
    data: msgspec.Raw


class _Outcome(msgspec.Struct, frozen=True, array_like=True):
    ok: bool
    data: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_replies = msgspec.msgpack.Decoder(_Reply)
_outcomes = msgspec.msgpack.Decoder(list[_Outcome])
_answers = msgspec.msgpack.Decoder(WriteAnswer)
_errors = msgspec.msgpack.Decoder(ErrorInfo)


class Pipeline:
    """Writes to the node at ``endpoint``. The owner closes it."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session = session
        self._endpoint = endpoint
        self._connection: _Connection | None = None
        self._left: list[_Connection] = []
        """Earlier ones that are not at their end yet."""
        self._is_closed = False
        self._refused_until = float("-inf")

    @staticmethod
    def takes(command: bytes) -> bool:
        """Whether a frame may carry it: the node would break the connection with all writes on it."""
        return len(command) + WRITE_BYTES <= MAX_FRAME_BYTES

    async def write(self, command: bytes, once: SessionSerial | None, timeout: float) -> Answer[WriteAnswer]:
        """Raises: NotSent (NoUpgrade where it may go by POST), Lost."""
        if self._is_closed:
            raise NotSent("the client is closed")
        now = asyncio.get_running_loop().time()
        if now < self._refused_until:
            raise NoUpgrade("it takes no WebSocket")
        connection = self._connection
        if connection is None or connection.is_over or connection.is_silent:
            self._left = [left for left in self._left if not left.task.done()]
            left = connection
            connection = self._connection = _Connection(self._session, self._endpoint)
            if left is not None:
                self._left.append(left)
                connection.take_over(left)
        try:
            return await connection.write(command, once, timeout)
        except NoUpgrade:
            self._refused_until = now + REFUSED_SECONDS
            raise

    async def close(self) -> None:
        """What is in flight is Lost. Idempotent."""
        self._is_closed = True
        connections = self._left if self._connection is None else [*self._left, self._connection]
        for connection in connections:
            connection.end()
        if connections:
            await asyncio.wait([connection.task for connection in connections])


class _Connection:
    """One WebSocket, from the first write to its end."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session = session
        self._endpoint = endpoint
        self._queue: deque[_Pending] = deque()
        self._flights: dict[int, list[_Pending]] = {}
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._frame_id = 0
        self._heard_at = float("-inf")
        self._work = asyncio.Event()
        self._callers = 0
        self.is_over = False
        self.is_silent = False
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"writes to {endpoint}")

    async def write(self, command: bytes, once: SessionSerial | None, timeout: float) -> Answer[WriteAnswer]:
        if len(self._queue) >= MAX_QUEUED:
            return Answer(None, Overloaded(f"{MAX_QUEUED} writes wait for {self._endpoint}"))
        loop = asyncio.get_running_loop()
        started = loop.time()
        pending = _Pending(command, once, started + timeout, loop.create_future())
        self._queue.append(pending)
        self._work.set()
        self._callers += 1
        try:
            await asyncio.wait([pending.answer], timeout=timeout)
            if not pending.answer.done():
                pending.fail("no answer in time")
                if pending.is_sent and loop.time() - max(self._heard_at, started) >= SILENCE_SECONDS:
                    self.is_silent = True
            return pending.answer.result()
        finally:
            pending.answer.cancel()  # whoever gave up is not sent any more
            self._callers -= 1
            if self.is_silent and not self._callers:
                self.end()

    def take_over(self, other: _Connection) -> None:
        """What ``other`` has not sent goes out here."""
        self._queue.extend(other._queue)
        other._queue.clear()

    def end(self) -> None:
        """Break it off."""
        self.is_over = True
        self.task.cancel()

    async def _run(self) -> None:
        reason = "the connection was closed"
        unsent: type[NotSent] = NotSent
        try:
            connecting = self._session.ws_connect(
                f"{self._endpoint}/v1/ws",
                heartbeat=PING_SECONDS,
                max_msg_size=MAX_ANSWER_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
            socket = await asyncio.wait_for(connecting, CONNECT_SECONDS)
            self._heard_at = asyncio.get_running_loop().time()
            try:
                reason = await self._exchange(socket)
            finally:
                self.is_over = True
                self._fail_all(reason)
                await socket.close()
        except aiohttp.WSServerHandshakeError as error:
            reason, unsent = f"HTTP {error.status}, it takes no WebSocket", NoUpgrade
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = reason_of(error)
        finally:
            self.is_over = True
            self._fail_all(reason, unsent)

    async def _exchange(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        """Send and read until one of them ends; gives the reason."""
        tasks = [asyncio.ensure_future(self._read(socket)), asyncio.ensure_future(self._send(socket))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        return next((str(end) for end in ended if isinstance(end, Lost)), "the connection broke")

    def _fail_all(self, reason: str, unsent: type[NotSent] = NotSent) -> None:
        flights, self._flights = self._flights, {}
        waiting = [pending for flight in flights.values() for pending in flight] + list(self._queue)
        self._queue.clear()
        self._in_flight = self._bytes_in_flight = 0
        for pending in waiting:
            pending.fail(reason, unsent)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            self._work.clear()
            if socket.closed:
                return
            frame = self._next_frame()
            if frame is None:
                await self._work.wait()
            else:
                await socket.send_bytes(frame)
                await asyncio.sleep(0)  # more may gather meanwhile

    def _next_frame(self) -> bytes | None:
        """The next writes of one session that fit into the window; from here on they count as sent."""
        flight: list[_Pending] = []
        size_bytes = 0
        while self._queue and self._in_flight + len(flight) < WINDOW and len(flight) < MAX_FRAME_WRITES:
            pending = self._queue[0]
            if pending.answer.done():
                self._queue.popleft()
                continue
            larger = size_bytes + len(pending.command) + WRITE_BYTES
            if flight and (_session(flight[0]) != _session(pending) or larger > MAX_FRAME_BYTES):
                break
            if self._in_flight and self._bytes_in_flight + larger > WINDOW_BYTES:
                break
            size_bytes = larger
            flight.append(self._queue.popleft())
        if not flight:
            return None
        self._frame_id += 1
        self._in_flight += len(flight)
        self._bytes_in_flight += size_bytes
        self._flights[self._frame_id] = flight
        now = asyncio.get_running_loop().time()
        writes: list[tuple[int, int, bytes]] = []
        for pending in flight:
            pending.is_sent = True
            serial, floor = (0, 0) if pending.once is None else (pending.once.serial, pending.once.acknowledged_floor)
            writes.append((serial, floor, pending.command))
        # The node gives up a little earlier than we do: its own verdict says more than our timeout.
        timeout_ms = max(1, int(max(pending.deadline - now for pending in flight) * 900))
        return _encoder.encode((self._frame_id, "writes", (_session(flight[0]), writes), timeout_ms))

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                break
            self._heard_at = loop.time()
            try:
                self._settle(_replies.decode(message.data))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise Lost("its answer cannot be read") from error
            self._work.set()
        raise Lost("the connection broke")

    def _settle(self, reply: _Reply) -> None:
        flight = self._flights.pop(reply.id, None)
        if flight is None:
            return
        self._in_flight -= len(flight)
        self._bytes_in_flight -= sum(len(pending.command) + WRITE_BYTES for pending in flight)
        answers: list[Answer[WriteAnswer]]
        try:
            if reply.ok:
                outcomes = _outcomes.decode(reply.data)
                answers = [_answer(outcome.ok, outcome.data) for outcome in outcomes]
            else:
                answers = [_answer(False, reply.data)] * len(flight)
            if len(answers) != len(flight):
                raise ValueError("another number of answers")
        except (msgspec.MsgspecError, ValueError, RecursionError):
            for pending in flight:
                pending.fail("its answer cannot be read")
            raise
        for pending, answer in zip(flight, answers, strict=True):
            if not pending.answer.done():
                pending.answer.set_result(answer)


def _session(pending: _Pending) -> str | None:
    return None if pending.once is None else pending.once.session.token


def _answer(ok: bool, data: Any) -> Answer[WriteAnswer]:
    return Answer(_answers.decode(data), None) if ok else Answer(None, from_info(_errors.decode(data)))
