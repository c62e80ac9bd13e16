"""One HTTP exchange with one node, and what became of it: answered, never sent, or lost.

The difference between the last two is what a client may repeat. The other end is not trusted either: answers are
bounded, never decompressed, never redirected, and decoded strictly.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec

from raftkit_core.errors import ConfigError, ErrorInfo, RaftError, from_info
from raftkit_http.api.schema import JSON_TYPE

T = TypeVar("T")

MAX_ANSWER_BYTES = 40 * 1024 * 1024
"""The largest honest answer is one entry of 16 MiB, every byte of which JSON escapes."""
STREAM_FROM_BYTES = 256 * 1024
CONNECT_SECONDS = 2.0
CALLS_MAX = 100
"""Calls of one client that are under way at once, each on a connection; others wait for their turn."""
KEEPALIVE_SECONDS = 10.0
"""Shorter than any server's: a connection the server is about to close must not carry a write (aiohttp 13283)."""


NOT_TRUSTED = "its certificate is not trusted: name the CA with --cacert FILE"
NO_TLS = "it does not speak TLS"
BROKE = "the connection broke"


class NotSent(Exception):
    """The node was not asked, or provably did nothing: another one may be."""


class Lost(Exception):
    """The request may have been carried out: no (usable) answer came back."""


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A request. Changes go by POST only: aiohttp silently repeats GET, PUT and DELETE on a stale connection."""

    method: str
    path: str
    body: bytes | None = None
    content_type: str = JSON_TYPE
    headers: dict[str, str] = {}


class Envelope(msgspec.Struct, frozen=True):
    schema: str
    ok: bool
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorInfo | None = None


class Answer(Generic[T]):
    """What a node said: ``data``, or the error it answered with."""

    def __init__(self, data: T | None, error: RaftError | None) -> None:
        self.data = data
        self.error = error


_envelopes = msgspec.json.Decoder(Envelope, strict=True)


class Connections(aiohttp.TCPConnector):
    """Connections that callers get in the order in which they came.

    aiohttp's own limit gives a connection to whoever asks in the moment it is free, mostly to who just had it; the
    others wait until they give up on a node that is well.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(limit=0, **options)
        self._turns = asyncio.Semaphore(CALLS_MAX)

    @asynccontextmanager
    async def turn(self, timeout: float) -> AsyncIterator[None]:
        """Raises: NotSent after ``timeout`` seconds."""
        if self._turns.locked():
            try:
                async with asyncio.timeout(timeout):
                    await self._turns.acquire()
            except TimeoutError:
                raise NotSent(f"{CALLS_MAX} calls of this client are under way already") from None
        else:
            await self._turns.acquire()  # does not wait
        try:
            yield
        finally:
            self._turns.release()


def make_session(token: str | None, tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """A session without proxies from the environment, cookies, or decompression. The caller closes it."""
    headers = {"Accept": JSON_TYPE, "Accept-Encoding": "identity"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return aiohttp.ClientSession(
        connector=Connections(keepalive_timeout=KEEPALIVE_SECONDS, ssl=True if tls is None else tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        auto_decompress=False,
        trust_env=False,
        trace_configs=[no_redirects()],
    )


def no_redirects() -> aiohttp.TraceConfig:
    """For a session: a node must not be able to send us elsewhere. (aiohttp's ``ws_connect`` follows redirects.)"""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    return trace


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> None:
    raise aiohttp.ClientConnectionError(f"{params.url.origin()} answered with a redirect")


async def exchange(
    session: aiohttp.ClientSession, endpoint: str, outgoing: Outgoing, into: type[T], timeout: float
) -> Answer[T]:
    """Ask ``endpoint`` in our turn and decode its answer as ``into``. ``session`` is of :func:`make_session`.

    Raises: NotSent, Lost; ConfigError if the client is closed.
    """
    connections, now = session.connector, asyncio.get_running_loop().time
    if connections is None:
        raise ConfigError("the client is closed")
    assert isinstance(connections, Connections), "make_session made it"
    began = now()
    async with connections.turn(timeout):
        return await _exchange(session, endpoint, outgoing, into, max(began + timeout - now(), 0.001))


async def _exchange(
    session: aiohttp.ClientSession, endpoint: str, outgoing: Outgoing, into: type[T], timeout: float
) -> Answer[T]:
    if session.closed:
        raise ConfigError("the client is closed")
    limits = aiohttp.ClientTimeout(total=timeout, connect=min(CONNECT_SECONDS, timeout / 2))
    # The node gives up a little earlier than we do: its own verdict says more than our timeout.
    url = f"{endpoint}{outgoing.path}"
    params = {"timeout_ms": str(max(int(timeout * 900), 1))}
    headers = {"Content-Type": outgoing.content_type, **outgoing.headers} if outgoing.body is not None else {}
    try:
        async with session.request(
            outgoing.method,
            url,
            params=params,
            data=_streamed(outgoing.body),
            headers=headers,
            allow_redirects=False,
            timeout=limits,
        ) as response:
            return await answer_of(response, into)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
        raise NotSent(reason_of(error)) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Lost(reason_of(error)) from error


def _streamed(body: bytes | None) -> bytes | io.BytesIO | None:
    """Large bodies piece by piece: in one piece the loop stands still, and an early refusal is not seen."""
    return body if body is None or len(body) <= STREAM_FROM_BYTES else io.BytesIO(body)


async def answer_of(response: aiohttp.ClientResponse, into: type[T]) -> Answer[T]:
    """What ``response`` says, whatever its status. Raises: NotSent, Lost."""
    return decode_answer(response, await _read(response), into)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    announced = response.content_length or 0
    chunks: list[bytes] = []
    size = 0
    if announced <= MAX_ANSWER_BYTES:
        async for chunk in response.content.iter_chunked(64 * 1024):
            size += len(chunk)
            chunks.append(chunk)
            if size > MAX_ANSWER_BYTES:
                break
    if max(announced, size) > MAX_ANSWER_BYTES:
        response.close()
        raise Lost(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return b"".join(chunks)


def decode_answer(response: aiohttp.ClientResponse, body: bytes, into: type[T]) -> Answer[T]:
    try:
        envelope = _envelopes.decode(body)
        if envelope.ok:
            return Answer(msgspec.json.decode(envelope.data, type=into, strict=True), None)
        if envelope.error is not None:
            return Answer(None, from_info(envelope.error))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        failure: Exception | None = error
    else:
        failure = None
    status = response.status
    reason = f"HTTP {status}, which is no answer of a raftkit node"
    # A redirect or a client error was not carried out. A success or a gateway's error may have been.
    if 300 <= status < 500 and status != 408:
        raise NotSent(reason) from failure
    raise Lost(reason) from failure


def reason_of(error: BaseException) -> str:
    """Short, and without the library's own words where plain ones exist."""
    os_error = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return NOT_TRUSTED
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return NO_TLS if getattr(os_error, "reason", None) == "WRONG_VERSION_NUMBER" else f"no TLS: {os_error}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(os_error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(os_error, ConnectionResetError):
        return BROKE
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(os_error, "strerror", None) or str(error) or type(error).__name__)
