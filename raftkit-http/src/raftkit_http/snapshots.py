"""Snapshots as their own streamed requests: ``PUT /raft/v1/{group}/snapshot/{id}?offset=``.

The stream is announced on the data connection, whose answer carries the offset to start at and a ticket. The ticket
binds the PUT to that announcement and to the peers that said hello there, in both directions: whoever answers it is who
gave it. The body is the bytes and nothing else.

The answer begins when all bytes are read and is a MessagePack nil each second while the snapshot is being installed,
then one frame as on a connection. So the sender sees progress until the end and needs no deadline for the whole.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import aiohttp
from aiohttp import web

from raftkit_core.errors import NetworkError, RaftError, to_info
from raftkit_core.network.calls import remote_error
from raftkit_core.network.interface import RaftService
from raftkit_core.network.wire import (
    FrameError,
    Kind,
    SnapshotOffer,
    decode_answer,
    decode_frame,
    encode_answer,
    encode_error,
    encode_frame,
)
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotSource

logger = logging.getLogger(__name__)

TICKET_HEADER = "Raftkit-Ticket"
CHUNK_BYTES = 1024 * 1024
CHUNK_TIMEOUT = 20.0
"""Seconds a receiver waits for more bytes: a sender without progress gives up earlier."""
RATE_MIN = 16 * 1024
"""Bytes a second that a stream must bring, on average and but for its first ``CHUNK_TIMEOUT``: while one comes in no
other snapshot is taken."""
KEEPALIVE_INTERVAL = 1.0
ANSWER_BYTES_MAX = 64 * 1024
TICKETS_MAX = 64
_NIL = b"\xc0"


class _Announced:
    """A snapshot a peer may stream here once."""

    def __init__(self, group: str, request: InstallSnapshotRequest, peer: PeerIdentity) -> None:
        self.group = group
        self.request = request
        self.peer = peer


class Pace:
    """How fast snapshots may leave a node, all together: they must not take the line away from appends."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    def delay(self, size: int, now: float) -> float:
        """Seconds to wait before ``size`` more bytes are sent."""
        if self._rate is None:
            return 0.0
        begins = max(now, self._free_at)
        self._free_at = begins + size / self._rate
        return begins - now


class SnapshotReceiver:
    """The serving side: tickets, and the handler of the PUT."""

    def __init__(
        self,
        find_service: Callable[[str], RaftService | None],
        admit: Callable[[web.Request, PeerIdentity, RaftService], None],
    ) -> None:
        self._find_service = find_service
        self._admit = admit
        self._announced: dict[str, _Announced] = {}
        self._running: dict[asyncio.Task[InstallSnapshotResponse], str] = {}

    def announce(self, group: str, request: InstallSnapshotRequest, peer: PeerIdentity) -> str:
        """A ticket for one stream; the oldest are forgotten when too many are out."""
        ticket = secrets.token_hex(16)
        self._announced[ticket] = _Announced(group, request, peer)
        while len(self._announced) > TICKETS_MAX:
            del self._announced[next(iter(self._announced))]
        return ticket

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Take a stream."""
        announced = self._announced.pop(request.headers.get(TICKET_HEADER, ""), None)
        group = request.match_info["group"]
        if (
            announced is None
            or announced.group != group
            or announced.request.meta.snapshot_id != request.match_info["id"]
        ):
            return _refusal(403, "this snapshot was not announced")
        service = self._find_service(group)
        offset_text = request.query.get("offset", "")
        if service is None:
            return _refusal(404, f"group {group} is not served here")
        try:
            self._admit(request, announced.peer, service)
        except RaftError as error:
            return _refusal(403, error.message)
        if not (offset_text.isascii() and offset_text.isdigit() and len(offset_text) < 19):
            return _refusal(400, "offset must be a number of bytes")
        body = _Body(request.content, announced.request.meta.size_bytes, int(offset_text))
        install = asyncio.get_running_loop().create_task(
            service.install_snapshot(announced.request, body.offset, body.chunks(), announced.peer),
            name="install snapshot",
        )
        self._running[install] = group
        try:
            return await self._respond(request, body, install)
        finally:
            self._running.pop(install, None)
            if not install.done():
                install.cancel()
                await asyncio.wait([install])

    async def _respond(
        self, request: web.Request, body: _Body, install: asyncio.Task[InstallSnapshotResponse]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/msgpack"})
        response.force_close()
        connected = True
        while not install.done():
            await asyncio.wait([install], timeout=KEEPALIVE_INTERVAL)
            if body.is_read and connected and not install.done():
                connected = await _write(request, response, _NIL)
        if install.cancelled():
            raise web.HTTPServiceUnavailable(text="the node is stopping\n")
        error = install.exception()
        if error is None:
            frame = encode_frame(Kind.ANSWER, 0, 0, encode_answer(install.result()))
        else:
            if not isinstance(error, RaftError):
                logger.error("installing a snapshot failed", exc_info=error)
            frame = encode_frame(Kind.ERROR, 0, 0, encode_error(to_info(error), ANSWER_BYTES_MAX // 2))
        if connected:
            await _write(request, response, frame)
        return response

    async def stop(self, group: str) -> None:
        """End what is under way for ``group`` and forget its tickets."""
        self._announced = {key: held for key, held in self._announced.items() if held.group != group}
        tasks = [task for task, served in self._running.items() if served == group]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Body:
    """The bytes of a PUT, never more than were announced, and never in drops."""

    def __init__(self, content: aiohttp.StreamReader, size: int, offset: int) -> None:
        self._content = content
        self._size = size
        self.offset = offset
        self.is_read = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises: NetworkError when the stream breaks, stalls or is too long."""
        position = self.offset
        loop = asyncio.get_running_loop()
        patience = (
            CHUNK_TIMEOUT  # only waiting uses it up: what this node does with the bytes is not the sender's fault
        )
        while True:
            asked_at = loop.time()
            try:
                async with asyncio.timeout(min(patience, CHUNK_TIMEOUT)):
                    chunk = await self._content.read(CHUNK_BYTES)
            except TimeoutError:
                raise NetworkError("the snapshot stream stalled") from None
            except (aiohttp.ClientError, web.RequestPayloadError, OSError) as error:
                raise NetworkError(f"the snapshot stream broke: {type(error).__name__}") from error
            if not chunk:
                self.is_read = True
                return
            position += len(chunk)
            patience += len(chunk) / RATE_MIN - (loop.time() - asked_at)
            if position > self._size:
                raise NetworkError(f"more than the {self._size} bytes of the snapshot were sent")
            yield chunk


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> bool:
    """Whether the peer is still there. The installation goes on without it."""
    try:
        async with asyncio.timeout(CHUNK_TIMEOUT):
            if not response.prepared:
                await response.prepare(request)
            await response.write(data)
    except (OSError, aiohttp.ClientError, TimeoutError):
        return False
    return True


def _refusal(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=text + "\n")
    response.force_close()
    return response


async def send_snapshot(
    session: aiohttp.ClientSession,
    url: str,
    name: str,
    source: SnapshotSource,
    offer: SnapshotOffer,
    progressed: Callable[[], None],
    *,
    tls: ssl.SSLContext | None = None,
    pace: Pace | None = None,
) -> InstallSnapshotResponse:
    """Stream the bytes from ``offer.offset`` on and give the answer.

    Raises: NetworkError, RemoteError; what ``source`` raises, as it is. The caller's deadline cancels it.
    """
    failed: list[BaseException] = []
    loop = asyncio.get_running_loop()

    async def body() -> AsyncIterator[bytes]:
        try:
            chunks = source.open(offer.offset, CHUNK_BYTES)
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    if pace is not None and (seconds := pace.delay(len(chunk), loop.time())) > 0:
                        await asyncio.sleep(seconds)
                    yield chunk
                    progressed()
        except Exception as error:
            failed.append(error)
            raise

    headers = {TICKET_HEADER: offer.ticket, "Content-Type": "application/octet-stream", "Accept-Encoding": "identity"}
    try:
        async with session.put(
            url,
            params={"offset": str(offer.offset)},
            data=body(),
            headers=headers,
            allow_redirects=False,
            ssl=True if tls is None else tls,
        ) as response:
            answer = await _read_answer(response, name, progressed)
            if response.status != 200:
                text = answer[:200].decode("utf-8", "replace").strip()
                raise NetworkError(f"{name} refused the snapshot with HTTP status {response.status}: {text}")
    except (aiohttp.ClientError, OSError) as error:
        if failed:
            raise failed[0] from None
        raise NetworkError(f"the snapshot stream to {name} broke: {error}") from error
    if failed:
        raise failed[0]
    return _decoded(answer, name)


async def _read_answer(response: aiohttp.ClientResponse, name: str, progressed: Callable[[], None]) -> bytes:
    answer = bytearray()
    async for data in response.content.iter_any():
        progressed()
        answer += data
        if answer and not answer.strip(_NIL):
            answer.clear()  # an installation may take long, its keep-alives need no memory
        if len(answer) > ANSWER_BYTES_MAX:
            raise NetworkError(f"{name} sent more than {ANSWER_BYTES_MAX} bytes in answer to a snapshot")
    return bytes(answer)


def _decoded(answer: bytes, name: str) -> InstallSnapshotResponse:
    try:
        frame = decode_frame(answer.lstrip(_NIL))
        if frame.kind == Kind.ERROR:
            raise remote_error(Kind.INSTALL_SNAPSHOT, name, frame.body)
        if frame.kind != Kind.ANSWER:
            raise FrameError(f"a frame of kind {frame.kind}")
        response: InstallSnapshotResponse = decode_answer(Kind.INSTALL_SNAPSHOT, frame.body)
    except FrameError as error:
        raise NetworkError(f"{name} answered a snapshot with garbage: {error}") from None
    return response
