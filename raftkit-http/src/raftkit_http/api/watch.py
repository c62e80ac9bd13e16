"""``GET /v1/watch``: changes of keys as server-sent events, in log order and without gaps, from any node.

    id: 17
    event: put                    put, delete; progress (nothing new, but everything up to here was said); end
    data: {"type":"put","key":"a","value":"1","revision":17,"previous_revision":0}

The first event is a ``progress`` with the revision the watch begins behind. ``id`` is a revision: a browser's
``EventSource`` comes back with it as ``Last-Event-ID``, and the watch goes on behind it. A watch that cannot go on says
``end`` with an error document: ``COMPACTED`` (with ``oldest``) or ``STOPPED``. A reader that does not read is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import msgspec
from aiohttp import web

from raftkit_core.errors import BadRequest, Overloaded, RaftError, Stopped
from raftkit_core.state_machine.kv_watch import KvWatch
from raftkit_core.types.kv import KvEvent
from raftkit_http.api.decode import one_header, quoted
from raftkit_http.api.discretion import info_for
from raftkit_http.api.envelope import ErrorBody
from raftkit_http.api.guard import Call
from raftkit_http.api.schema import MAX_SAFE_INT, KvEventBody
from raftkit_http.api.write import require_kv

EVENT_STREAM = "text/event-stream"
POLL_SECONDS = 1.0
"""How soon a reader that has gone is noticed where nothing changes."""
WRITE_BYTES = 64 * 1024

_json = msgspec.json.Encoder()


async def get_watch(call: Call) -> web.StreamResponse:
    require_kv(call.raft)
    api = call.api
    if api.closing:
        raise Stopped(f"{call.raft.id} is shutting down", hint="watch at another node", retryable=True)
    if len(api.watches) >= api.limits.max_watches:
        raise Overloaded(f"{call.raft.id} serves {api.limits.max_watches} watches already", hint="ask another node")
    watch = call.raft.watch(call.query.text("prefix") or "", _start(call))
    response = web.StreamResponse(
        headers={
            "Content-Type": EVENT_STREAM,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Accel-Buffering": "no",  # nginx would collect events before it passes them on
        }
    )
    response.content_length = None
    await response.prepare(call.request)
    call.begun = response
    # A task of its own, so that closing the API can end it without ending the connection's task.
    stream = asyncio.get_running_loop().create_task(WatchStream(call, watch, response).run())
    api.watches.add(stream)
    try:
        await asyncio.wait([stream])
    finally:
        stream.cancel()
        await asyncio.wait([stream])
        api.watches.discard(stream)
    if not stream.cancelled() and (error := stream.exception()) is not None:
        raise error
    return response


def _start(call: Call) -> int | None:
    """The revision to begin with. Where a browser continues by itself, its header says more than the URL."""
    last = one_header(call.request, "Last-Event-ID")
    if last is None:
        return call.query.integer("from_revision", minimum=1, maximum=MAX_SAFE_INT - 1)
    if not (last.isascii() and last.isdecimal() and len(last) <= 16 and int(last) < MAX_SAFE_INT - 1):
        raise BadRequest(f"Last-Event-ID must be a revision, not {quoted(last)}")
    return int(last) + 1


class WatchStream:
    """One reader: what changed goes out as it comes; where nothing changes a sign of life does."""

    def __init__(self, call: Call, watch: KvWatch, response: web.StreamResponse) -> None:
        self._call = call
        self._limits = call.api.limits
        self._watch = watch
        self._response = response

    async def run(self) -> None:
        """To the end of the watch, of the reader, or of this API."""
        try:
            await self._send(self._progress())
            while not self._is_gone():
                await self._forward()
        except (ConnectionError, TimeoutError):
            self._abort()  # gone, or not reading: what it lacks is in the ring when it comes back
        except RaftError as error:
            await self._end(error)

    async def _forward(self) -> None:
        """What comes within a progress interval; if that is nothing, say how far this is."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._limits.watch_progress_seconds
        while not self._is_gone():
            left = until - loop.time()
            if left <= 0:
                await self._send(self._progress())
                return
            events = await self._watch.take(256, timeout=min(left, POLL_SECONDS))
            self._call.api.access.require_current(self._call.caller)
            if events:
                await self._send_all(events)
                return

    async def _send_all(self, events: list[KvEvent]) -> None:
        pending = bytearray()
        for event in events:
            body = KvEventBody.of(event)
            pending += _frame(body.type, body, event.revision)
            if len(pending) >= WRITE_BYTES:
                await self._send(bytes(pending))
                pending.clear()
        if pending:
            await self._send(bytes(pending))

    def _progress(self) -> bytes:
        position = self._watch.position
        return _frame("progress", {"revision": position}, position)

    async def _end(self, error: RaftError) -> None:
        try:
            await self._send(_frame("end", ErrorBody.of(info_for(self._call.caller, error)), None))
            await self._response.write_eof()
        except (ConnectionError, TimeoutError):
            self._abort()

    async def _send(self, data: bytes) -> None:
        async with asyncio.timeout(self._limits.watch_write_seconds):
            writing: Awaitable[Any] = self._response.write(data)
            await writing

    def _is_gone(self) -> bool:
        transport = self._call.request.transport
        return transport is None or transport.is_closing()

    def _abort(self) -> None:
        transport = self._call.request.transport
        if transport is not None:
            transport.abort()


def _frame(event: str, data: Any, revision: int | None) -> bytes:
    """One event. JSON has no line breaks, so one ``data`` line is enough."""
    number = b"" if revision is None else b"id: %d\n" % revision
    return number + b"event: " + event.encode() + b"\ndata: " + _json.encode(data) + b"\n\n"
