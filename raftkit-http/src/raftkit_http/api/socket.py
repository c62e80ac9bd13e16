"""``/v1/ws``: many requests in flight on one connection, as MessagePack frames.

Request ``[id, op, body]`` with ``id`` an integer the client chooses; ``write``: body is the command encoded by the
machine's codec; ``read``: body is what ``POST /v1/read`` takes. Answer ``[id, true, data]`` or ``[id, false, error]``,
in the order things finish. No more than ``max_socket_window`` are in flight: beyond that the server stops reading, and
TCP tells the client to slow down. Writes of one socket reach the Raft in the order of their frames.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import WSMsgType, web

from raftkit_core.errors import BadRequest, OutcomeUnknown, Overloaded, RaftError, RPCTimeout, to_info
from raftkit_http.api.decode import check_depth, clean
from raftkit_http.api.envelope import ErrorBody
from raftkit_http.api.guard import GRACE_SECONDS, Call, log
from raftkit_http.api.kv import answer_read
from raftkit_http.api.schema import MAX_SAFE_INT, ReadRequest
from raftkit_http.api.write import command_of_bytes, propose

PING_SECONDS = 20.0
CLOSE_SECONDS = 2.0


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SAFE_INT)]
    op: Literal["write", "read"]
    body: Any


_frames = msgspec.msgpack.Decoder(Frame, strict=True)
_encoder = msgspec.msgpack.Encoder()


async def get_socket(call: Call) -> web.WebSocketResponse:
    api = call.api
    if len(api.sockets) >= api.limits.max_sockets:
        raise Overloaded(f"{api.raft.id} serves {api.limits.max_sockets} WebSockets already", hint="close some")
    # compress=False: deflate costs more than loopback or a data centre saves, and a bomb is a few bytes.
    socket = web.WebSocketResponse(
        compress=False, max_msg_size=call.command_limit_bytes, heartbeat=PING_SECONDS, timeout=CLOSE_SECONDS
    )
    if not socket.can_prepare(call.request):
        raise BadRequest("/v1/ws takes WebSocket connections only", hint="use POST /v1/write and POST /v1/read")
    await socket.prepare(call.request)
    api.sockets.add(socket)
    try:
        await SocketSession(call, socket).run()
    finally:
        api.sockets.discard(socket)
    return socket


class SocketSession:
    """One connection: reads frames while the window has room, and answers each by its id."""

    def __init__(self, call: Call, socket: web.WebSocketResponse) -> None:
        self._call = call
        self._api = call.api
        self._socket = socket
        self._window = asyncio.Semaphore(call.api.limits.max_socket_window)

    async def run(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY:
                await self._socket.close(code=1003, message=b"frames are binary MessagePack")
                return
            try:
                frame = _frames.decode(message.data)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                await self._socket.close(code=1007, message=b"a frame is [id, op, body]")
                return
            await self._window.acquire()
            # Tasks start in the order they are made, and call the Raft before they first wait.
            self._api.own(self._serve(frame))

    async def _serve(self, frame: Frame) -> None:
        try:
            answer = await self._answer(frame)
            if not self._socket.closed:
                await self._socket.send_bytes(_encoder.encode(answer))
        except ConnectionError:
            pass  # the client is gone; what it asked for was carried out all the same
        finally:
            self._window.release()

    async def _answer(self, frame: Frame) -> tuple[int, bool, Any]:
        deadline = asyncio.get_running_loop().time() + self._api.limits.default_timeout
        call = Call(self._api, self._call.request, self._call.query, deadline, owned=True, caller=self._call.caller)
        try:
            with self._api.admitted():
                async with asyncio.timeout(call.remaining + GRACE_SECONDS):
                    return frame.id, True, await self._carry_out(call, frame)
        except RaftError as error:
            return frame.id, False, ErrorBody.of(to_info(error))
        except TimeoutError:
            late = OutcomeUnknown if call.changing else RPCTimeout
            outcome: Literal["unknown", "not_applied"] = "unknown" if call.changing else "not_applied"
            return frame.id, False, ErrorBody.of(to_info(late("no answer within the deadline", outcome=outcome)))
        except Exception as error:
            log.exception("a %s frame failed", frame.op)
            return frame.id, False, ErrorBody.of(to_info(error))

    async def _carry_out(self, call: Call, frame: Frame) -> Any:
        if frame.op == "write":
            call.caller.require("write")
            if type(frame.body) is not bytes:
                raise BadRequest("the body of a write is the encoded command (bytes)")
            return await propose(call, command_of_bytes(call.raft, frame.body))
        check_depth(frame.body)
        try:
            body = msgspec.convert(frame.body, ReadRequest, strict=True)
        except msgspec.ValidationError as error:
            raise BadRequest(f"this is no read: {clean(str(error))}") from error
        return (await answer_read(call, body))[1]
