"""``/v1/ws``: many requests in flight on one connection, as MessagePack frames.

Request ``[id, op, body]`` or ``[id, op, body, timeout_ms]`` with ``id`` an integer the client chooses.

- ``write``: body is the command encoded by the machine's codec.
- ``writes``: body is ``[session, [[serial, floor, command]…]]``, many at once; without a session (null) the serials and
  floors are 0.
- ``read``: body is what ``POST /v1/read`` takes.
- ``reads``: body is ``[consistency, [key…]]``, many keys at once: one round for all of them.

Answer ``[id, true, data]`` or ``[id, false, error]``, in the order things finish; the data of ``writes`` is one
``[true, data]`` or ``[false, error]`` for each, that of ``reads`` one item or null for each. No more than
``max_socket_window`` requests are in flight (each write or read counts, and one frame is always taken). Frames beyond
that wait their turn, ``max_socket_waiting`` requests and
:data:`WAITING_BYTES_MAX` of them; what comes on top is refused as ``OVERLOADED``, which is definite. So whatever the
node is busy with, pings are answered. Writes of one socket reach the Raft in the order of their frames.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from aiohttp import WSMsgType, web

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import BadRequest, OutcomeUnknown, Overloaded, RaftError, RPCTimeout
from raftkit_core.types.session import SessionSerial
from raftkit_http.api.decode import check_depth, clean
from raftkit_http.api.discretion import info_for
from raftkit_http.api.envelope import ErrorBody
from raftkit_http.api.guard import GRACE_SECONDS, Call, log
from raftkit_http.api.kv import answer_read, read_keys
from raftkit_http.api.schema import MAX_SAFE_INT, ConsistencyName, KeyValueBody, ReadRequest
from raftkit_http.api.write import command_of_bytes, propose, propose_many, session_ref
from raftkit_http.listener import GuardedHandler

PING_SECONDS = 20.0
MAX_IN_FRAME = 1024
"""Writes, or reads."""
CLOSE_SECONDS = 2.0
WAITING_BYTES_MAX = 2 * 1024 * 1024
"""Of frames that wait for their turn. One is always taken."""


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SAFE_INT)]
    op: Literal["write", "writes", "read", "reads"]
    body: Any
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None


class SerialWrite(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    serial: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SAFE_INT)]
    acknowledged_floor: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SAFE_INT)]
    command: bytes


class ManyWrites(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    session: str | None
    writes: Annotated[list[SerialWrite], msgspec.Meta(min_length=1, max_length=MAX_IN_FRAME)]


class ManyReads(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    consistency: ConsistencyName
    keys: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_IN_FRAME)]


_frames = msgspec.msgpack.Decoder(Frame, strict=True)
_encoder = msgspec.msgpack.Encoder()


def decode_socket_frame(data: bytes) -> Frame:
    """Raises: BadRequest."""
    try:
        frame = _frames.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f"this is no frame: {clean(str(error))}") from error
    check_depth(frame.body)
    return frame


async def get_socket(call: Call) -> web.WebSocketResponse:
    api = call.api
    if len(api.sockets) >= api.limits.max_sockets:
        raise Overloaded(f"{api.raft.id} serves {api.limits.max_sockets} WebSockets already", hint="close some")
    # compress=False: deflate costs more than loopback or a data centre saves, and a bomb is a few bytes.
    # autoping=False: a ping is a message like others to whoever watches how long messages take.
    socket = web.WebSocketResponse(
        compress=False,
        max_msg_size=call.command_limit_bytes,
        heartbeat=PING_SECONDS,
        timeout=CLOSE_SECONDS,
        autoping=False,
    )
    if not socket.can_prepare(call.request):
        raise BadRequest("/v1/ws takes WebSocket connections only", hint="use POST /v1/write and POST /v1/read")
    await socket.prepare(call.request)
    call.begun = socket
    api.sockets.add(socket)
    try:
        await SocketSession(call, socket).run()
    finally:
        api.sockets.discard(socket)
    return socket


class Taken(NamedTuple):
    """A frame that has come in. ``deadline`` is on the loop's clock."""

    frame: Frame
    weight: int
    size: int
    deadline: float


class SocketSession:
    """One connection: reads always, carries out while the window has room, and answers each by its id."""

    def __init__(self, call: Call, socket: web.WebSocketResponse) -> None:
        self._call = call
        self._api = call.api
        self._socket = socket
        self._running = 0
        self._waiting: deque[Taken] = deque()
        self._waiting_weight = 0
        self._waiting_bytes = 0

    async def run(self) -> None:
        try:
            await self._read()
        finally:
            self._waiting.clear()  # nobody is there to be answered, and none of it has begun

    async def _read(self) -> None:
        handler = self._call.request.protocol
        while True:
            if isinstance(handler, GuardedHandler):
                handler.message_arrived()
            message = await self._socket.receive()
            if message.type is WSMsgType.PING:
                await self._send_pong(message.data)
            elif message.type is WSMsgType.BINARY:
                try:
                    frame = decode_socket_frame(message.data)
                except BadRequest:
                    await self._socket.close(code=1007, message=b"a frame is [id, op, body]")
                    return
                await self._take(frame, len(message.data))
            elif message.type is WSMsgType.TEXT:
                await self._socket.close(code=1003, message=b"frames are binary MessagePack")
                return
            elif message.type is not WSMsgType.PONG:
                return

    async def _take(self, frame: Frame, size: int) -> None:
        limits = self._api.limits
        timeout = limits.default_timeout
        if frame.timeout_ms is not None:
            timeout = min(frame.timeout_ms / 1000, limits.max_timeout)
        taken = Taken(frame, _weight(frame), size, asyncio.get_running_loop().time() + timeout)
        if not self._waiting and self._has_room_for(taken):
            self._begin(taken)
        elif self._waiting and (
            self._waiting_weight + taken.weight > limits.max_socket_waiting
            or self._waiting_bytes + size > WAITING_BYTES_MAX
        ):
            await self._refuse(frame)  # and reads no further while the refusals are not read
        else:
            self._waiting.append(taken)
            self._waiting_weight += taken.weight
            self._waiting_bytes += size

    def _has_room_for(self, taken: Taken) -> bool:
        return not self._running or self._running + taken.weight <= self._api.limits.max_socket_window

    def _begin(self, taken: Taken) -> None:
        self._running += taken.weight
        # Tasks start in the order they are made, and call the Raft before they first wait.
        self._api.own(self._serve(taken))

    def _ended(self, weight: int) -> None:
        self._running -= weight
        while self._waiting and self._has_room_for(self._waiting[0]):
            taken = self._waiting.popleft()
            self._waiting_weight -= taken.weight
            self._waiting_bytes -= taken.size
            self._begin(taken)

    async def _serve(self, taken: Taken) -> None:
        try:
            await self._send(await self._answer(taken.frame, taken.deadline))
        finally:
            self._ended(taken.weight)

    def _told(self, error: BaseException) -> ErrorBody:
        return ErrorBody.of(info_for(self._call.caller, error))

    async def _refuse(self, frame: Frame) -> None:
        error = Overloaded(
            f"{self._api.limits.max_socket_window} requests of this connection are in flight, and more wait",
            hint="await answers before you send more",
        )
        await self._send((frame.id, False, self._told(error)))

    async def _send(self, answer: tuple[int, bool, Any]) -> None:
        try:
            data = _encoder.encode(answer)
        except Exception as error:
            log.exception("an answer cannot be encoded")  # of the machine's doing; whoever asked must not wait for it
            data = _encoder.encode((answer[0], False, self._told(error)))
        # Where the client is gone, what it asked for was carried out all the same.
        if not self._socket.closed:
            with suppress(ConnectionError):
                await self._socket.send_bytes(data)

    async def _send_pong(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the next receive() says so
            await self._socket.pong(data)

    async def _answer(self, frame: Frame, deadline: float) -> tuple[int, bool, Any]:
        call = Call(self._api, self._call.request, self._call.query, deadline, owned=True, caller=self._call.caller)
        try:
            self._api.access.require_current(call.caller)
            if deadline <= asyncio.get_running_loop().time():
                raise RPCTimeout("its turn did not come within the deadline", outcome="not_applied")
            with self._api.admitted():
                async with asyncio.timeout(call.remaining + GRACE_SECONDS):
                    return frame.id, True, await self._carry_out(call, frame)
        except RaftError as error:
            return frame.id, False, self._told(error)
        except TimeoutError:
            late = OutcomeUnknown if call.changing else RPCTimeout
            outcome: Literal["unknown", "not_applied"] = "unknown" if call.changing else "not_applied"
            return frame.id, False, self._told(late("no answer within the deadline", outcome=outcome))
        except Exception as error:
            log.exception("a %s frame failed", frame.op)
            return frame.id, False, self._told(error)

    async def _carry_out(self, call: Call, frame: Frame) -> Any:
        if frame.op in ("write", "writes"):
            call.caller.require("write")
        if frame.op == "writes":
            return await _many(call, frame.body)
        if frame.op == "write":
            if type(frame.body) is not bytes:
                raise BadRequest("the body of a write is the encoded command (bytes)")
            return await propose(call, command_of_bytes(call.raft, frame.body))
        if frame.op == "reads":
            return await _many_reads(call, frame.body)
        try:
            body = msgspec.convert(frame.body, ReadRequest, strict=True)
        except msgspec.ValidationError as error:
            raise BadRequest(f"this is no read: {clean(str(error))}") from error
        return (await answer_read(call, body))[1]


def _weight(frame: Frame) -> int:
    """How many requests a frame counts for; what is malformed is refused later."""
    body = frame.body
    if frame.op not in ("writes", "reads") or type(body) is not list or len(body) != 2 or type(body[1]) is not list:
        return 1
    return max(1, min(len(body[1]), MAX_IN_FRAME))


async def _many_reads(call: Call, body: Any) -> list[KeyValueBody | None]:
    try:
        many = msgspec.convert(body, ManyReads, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest(f"these are no reads: {clean(str(error))}") from error
    return await read_keys(call, many.keys, ReadPolicy(many.consistency))


async def _many(call: Call, body: Any) -> list[tuple[bool, Any]]:
    try:
        many = msgspec.convert(body, ManyWrites, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest(f"these are no writes: {clean(str(error))}") from error
    session = None if many.session is None else session_ref(many.session)
    if session is None and any(write.serial or write.acknowledged_floor for write in many.writes):
        raise BadRequest("a serial says nothing without its session")
    refused: dict[int, RaftError] = {}
    commands: list[Any] = []
    serials: list[SessionSerial] = []
    for number, write in enumerate(many.writes):
        try:
            command = command_of_bytes(call.raft, write.command)
        except RaftError as error:
            refused[number] = error
            continue
        commands.append(command)
        if session is not None:
            serials.append(SessionSerial(session, write.serial, write.acknowledged_floor))
    answers = iter(await propose_many(call, commands, None if session is None else serials) if commands else ())
    told = [refused[number] if number in refused else next(answers) for number in range(len(many.writes))]
    return [
        (False, ErrorBody.of(info_for(call.caller, answer))) if isinstance(answer, RaftError) else (True, answer)
        for answer in told
    ]
