"""Many writes and reads in flight to one node, over one WebSocket: what gathers in a turn of the loop is one frame.

A request is *sent* when its frame was handed to the socket; before that it can go elsewhere (``NotSent``), after that a
broken connection or silence leaves it ``Lost``. The socket is made when it is needed, and dropped when it breaks. When
a request goes without an answer while nothing at all is heard, later ones take a new socket; those that are under way
on the old one have the rest of their time.

Writes of one session share frames, and so do reads of one consistency: a node confirms one position for all of these.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import aiohttp
import msgspec
from aiohttp import WSMsgType

from raftkit_core.errors import ConfigError, ErrorInfo, Overloaded, RequestTooLarge, from_info
from raftkit_core.types.session import SessionSerial
from raftkit_http.api.schema import ConsistencyName, KeyValueAnswer, KeyValueBody, WriteAnswer
from raftkit_http.exchange import (
    CONNECT_SECONDS,
    MAX_ANSWER_BYTES,
    Answer,
    Lost,
    NotSent,
    Outgoing,
    exchange,
    reason_of,
)

WINDOW = 1024
"""Requests in flight to one node."""
WINDOW_BYTES = 2 * 1024 * 1024
"""What they take together, if they are more than one frame. A node lets as much of both wait for its turn."""
MAX_QUEUED = 16384
"""Requests that wait for the window; more is ``Overloaded``."""
MAX_FRAME_REQUESTS = 256
MAX_FRAME_BYTES = 240 * 1024
"""What the requests of a frame take at most; a larger one goes another way. Any node takes a frame of 256 KiB."""
REQUEST_BYTES = 64
"""What a request in a frame counts besides its command or key."""
HANDSHAKE_SECONDS = 1.0
"""How long a WebSocket may take before the node is asked whether it answers at all."""
ASKED_SECONDS = 0.5
PING_SECONDS = 5.0
SILENCE_SECONDS = 0.9
"""A connection on which nothing was heard for this long, though something was asked, gets no more writes."""
CLOSE_SECONDS = 1.0
REFUSED_SECONDS = 30.0
"""How long a node, or what stands before it, is not asked for a WebSocket again after it refused one."""


class NoUpgrade(NotSent):
    """There is somebody, and no WebSocket: the request may go by POST."""


Group = tuple[Literal["writes", "reads"], str | None]
"""What shares a frame: writes of one session (or of none), reads of one consistency."""


class _Pending:
    """One request. ``is_sent`` says which of the two ways it fails. ``item`` is what a frame has of it."""

    __slots__ = ("answer", "deadline", "group", "is_sent", "item", "size")

    def __init__(
        self, group: Group, item: Any, size: int, deadline: float, answer: asyncio.Future[Answer[Any]]
    ) -> None:
        self.group = group
        self.item = item
        self.size = size
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
_found = msgspec.msgpack.Decoder(list[KeyValueBody | None])
_errors = msgspec.msgpack.Decoder(ErrorInfo)


class Pipeline:
    """Writes to and reads from the node at ``endpoint``. The owner closes it."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session = session
        self._endpoint = endpoint
        self._connection: _Connection | None = None
        self._left: list[_Connection] = []
        """Earlier ones that are not at their end yet."""
        self._is_closed = False
        self._refused_until = float("-inf")

    @staticmethod
    def takes(content: bytes) -> bool:
        """Whether a frame may carry it: the node would break the connection with all requests on it."""
        return len(content) + REQUEST_BYTES <= MAX_FRAME_BYTES

    async def write(self, command: bytes, once: SessionSerial | None, timeout: float) -> Answer[WriteAnswer]:
        """Raises: NotSent (NoUpgrade where it may go by POST), Lost."""
        session, serial, floor = None, 0, 0
        if once is not None:
            session, serial, floor = once.session.token, once.serial, once.acknowledged_floor
        return await self._ask(("writes", session), (serial, floor, command), len(command), timeout)

    async def read(self, key: str, consistency: ConsistencyName, timeout: float) -> Answer[KeyValueAnswer]:
        """Answered with ``RequestTooLarge`` where what the keys of the frame hold together is too much for an answer.

        Raises: NotSent (NoUpgrade where it may go by POST), Lost.
        """
        return await self._ask(("reads", consistency), key, len(key.encode()), timeout)

    async def _ask(self, group: Group, item: Any, size: int, timeout: float) -> Answer[Any]:
        if self._is_closed:
            raise NotSent("the client is closed")
        if asyncio.get_running_loop().time() < self._refused_until:
            raise NoUpgrade("it takes no WebSocket")
        connection = self._connection
        if connection is None or connection.is_over or connection.is_silent:
            self._left = [left for left in self._left if not left.task.done()]
            left = connection
            connection = self._connection = _Connection(self._session, self._endpoint, self._refused)
            if left is not None:
                self._left.append(left)
                connection.take_over(left)
        return await connection.ask(group, item, size, timeout)

    def _refused(self) -> None:
        self._refused_until = asyncio.get_running_loop().time() + REFUSED_SECONDS

    async def close(self) -> None:
        """What is in flight is Lost. Idempotent."""
        self._is_closed = True
        connections = self._left if self._connection is None else [*self._left, self._connection]
        for connection in connections:
            connection.end()
        if connections:
            await asyncio.wait([connection.task for connection in connections])


class _Connection:
    """One WebSocket, from the first request to its end. ``refused`` is called where none can be had."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str, refused: Callable[[], None]) -> None:
        self._session = session
        self._endpoint = endpoint
        self._refused = refused
        self._queues: dict[str, deque[_Pending]] = {"writes": deque(), "reads": deque()}
        """Served in turn: neither waits for all of the other."""
        self._reads_max = MAX_FRAME_REQUESTS
        """Fewer while the values are so large that those of a full frame are too much for an answer."""
        self._flights: dict[int, list[_Pending]] = {}
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._frame_id = 0
        self._heard_at = float("-inf")
        self._work = asyncio.Event()
        self._callers = 0
        self.is_over = False
        self.is_silent = False
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"requests to {endpoint}")

    async def ask(self, group: Group, item: Any, size: int, timeout: float) -> Answer[Any]:
        queue = self._queues[group[0]]
        if len(queue) >= MAX_QUEUED:
            return Answer(None, Overloaded(f"{MAX_QUEUED} {group[0]} wait for {self._endpoint}"))
        loop = asyncio.get_running_loop()
        started = loop.time()
        pending = _Pending(group, item, size + REQUEST_BYTES, started + timeout, loop.create_future())
        queue.append(pending)
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
        for kind, queue in self._queues.items():
            queue.extend(other._queues[kind])
            other._queues[kind].clear()

    def end(self) -> None:
        """Break it off."""
        self.is_over = True
        self.task.cancel()

    async def _run(self) -> None:
        reason = "the connection was closed"
        unsent: type[NotSent] = NotSent
        try:
            socket = await self._connect()
            self._heard_at = asyncio.get_running_loop().time()
            try:
                reason = await self._exchange(socket)
            finally:
                self.is_over = True
                self._fail_all(reason)
                await socket.close()
        except aiohttp.WSServerHandshakeError as error:
            reason, unsent = f"HTTP {error.status}, it takes no WebSocket", NoUpgrade
        except NoUpgrade as error:
            reason, unsent = str(error), NoUpgrade
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = reason_of(error)
        finally:
            self.is_over = True
            if unsent is NoUpgrade:
                self._refused()
            self._fail_all(reason, unsent)

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        """Raises: NoUpgrade if the node answers what else it is asked: a proxy may hold an upgrade without a word."""
        connecting = asyncio.ensure_future(
            self._session.ws_connect(
                f"{self._endpoint}/v1/ws",
                heartbeat=PING_SECONDS,
                max_msg_size=MAX_ANSWER_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
        )
        try:
            await asyncio.wait([connecting], timeout=HANDSHAKE_SECONDS)
            if not connecting.done() and await self._answers_otherwise() and not connecting.done():
                raise NoUpgrade("it answers, and makes no WebSocket")
            return await asyncio.wait_for(connecting, CONNECT_SECONDS - HANDSHAKE_SECONDS)
        finally:
            if not connecting.done():
                connecting.cancel()
                await asyncio.wait([connecting])

    async def _answers_otherwise(self) -> bool:
        try:
            await exchange(self._session, self._endpoint, Outgoing(method="GET", path="/livez"), dict, ASKED_SECONDS)
        except (NotSent, Lost, ConfigError):
            return False
        return True

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
        waiting = [pending for flight in flights.values() for pending in flight]
        for queue in self._queues.values():
            waiting += queue
            queue.clear()
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
        """The next requests of one group that fit into the window; from here on they count as sent."""
        for kind in list(self._queues):
            flight = self._next_flight(self._queues[kind], MAX_FRAME_REQUESTS if kind == "writes" else self._reads_max)
            if flight:
                self._queues[kind] = self._queues.pop(kind)  # the other one is first now
                return self._frame_of(flight)
        return None

    def _next_flight(self, queue: deque[_Pending], count: int) -> list[_Pending]:
        flight: list[_Pending] = []
        size_bytes = 0
        while queue and self._in_flight + len(flight) < WINDOW and len(flight) < count:
            pending = queue[0]
            if pending.answer.done():
                queue.popleft()
                continue
            larger = size_bytes + pending.size
            if flight and (flight[0].group != pending.group or larger > MAX_FRAME_BYTES):
                break
            if self._in_flight and self._bytes_in_flight + larger > WINDOW_BYTES:
                break
            size_bytes = larger
            flight.append(queue.popleft())
        return flight

    def _frame_of(self, flight: list[_Pending]) -> bytes:
        kind, shared = flight[0].group
        self._frame_id += 1
        self._in_flight += len(flight)
        self._bytes_in_flight += sum(pending.size for pending in flight)
        self._flights[self._frame_id] = flight
        now = asyncio.get_running_loop().time()
        for pending in flight:
            pending.is_sent = True
        # The node gives up a little earlier than we do: its own verdict says more than our timeout.
        timeout_ms = max(1, int(max(pending.deadline - now for pending in flight) * 900))
        return _encoder.encode((self._frame_id, kind, (shared, [pending.item for pending in flight]), timeout_ms))

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
        self._bytes_in_flight -= sum(pending.size for pending in flight)
        try:
            answers = self._answers_of(reply, flight)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            for pending in flight:
                pending.fail("its answer cannot be read")
            raise
        for pending, answer in zip(flight, answers, strict=True):
            if not pending.answer.done():
                pending.answer.set_result(answer)

    def _answers_of(self, reply: _Reply, flight: list[_Pending]) -> list[Answer[Any]]:
        """One for each. Raises: MsgspecError, ValueError."""
        answers: list[Answer[Any]]
        is_read = flight[0].group[0] == "reads"
        if not reply.ok:
            refusal = _answer(False, reply.data)
            answers = [refusal] * len(flight)
            if is_read and isinstance(refusal.error, RequestTooLarge):
                self._reads_max = max(1, len(flight) // 2)
        elif is_read:
            answers = [Answer(KeyValueAnswer(item=item), None) for item in _found.decode(reply.data)]
            self._reads_max = min(self._reads_max + 1, MAX_FRAME_REQUESTS)
        else:
            answers = [_answer(outcome.ok, outcome.data) for outcome in _outcomes.decode(reply.data)]
        if len(answers) != len(flight):
            raise ValueError("another number of answers")
        return answers


def _answer(ok: bool, data: Any) -> Answer[WriteAnswer]:
    return Answer(_answers.decode(data), None) if ok else Answer(None, from_info(_errors.decode(data)))
