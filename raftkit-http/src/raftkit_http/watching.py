"""The client's side of a watch: one stream at a time, from whichever node gives it, each revision once.

A stream that breaks is taken up at the next node behind what was seen. A node that no longer keeps what is asked for is
left for one that does; ``Compacted`` is raised when no node that answers has it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import aiohttp
import msgspec

from raftkit_core.errors import BadRequest, Compacted, ErrorInfo, RaftError, Unreachable, from_info
from raftkit_core.types.kv import KvEvent
from raftkit_http.api.schema import KvEventBody, Revision
from raftkit_http.endpoints import Endpoints
from raftkit_http.exchange import CONNECT_SECONDS, MAX_ANSWER_BYTES, Lost, answer_of, reason_of

SILENCE_SECONDS = 35.0
"""A node says something every ten seconds; one that is silent for this long is left."""
BACKOFF_SECONDS = 0.1
BACKOFF_SECONDS_MAX = 1.0


class Progress(msgspec.Struct, frozen=True):
    """Everything up to ``revision`` has been said."""

    revision: Revision


class SseDecoder:
    """Server-sent events out of bytes: the fields ``event`` and ``data``. Bounded: an event has an end or is Lost."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._looked = 0

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Events that ``data`` completes. Raises: Lost for an event without an end."""
        self._buffer += data
        while (end := self._buffer.find(b"\n\n", max(self._looked - 1, 0))) >= 0:
            block = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._looked = 0
            name, payload = "message", b""
            for line in block.split(b"\n"):
                field, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if field == b"event":
                    name = value.decode(errors="replace")
                elif field == b"data":
                    payload += value
            yield name, payload
        self._looked = len(self._buffer)
        if self._looked > MAX_ANSWER_BYTES:
            raise Lost(f"an event is larger than {MAX_ANSWER_BYTES} bytes")


def read_event(name: str, payload: bytes) -> KvEvent | Progress | RaftError | None:
    """What an event says: a change, a place, or why the stream ends; None for a kind a newer node may say.

    Raises: Lost for what cannot be read.
    """
    try:
        if name in ("put", "delete"):
            return msgspec.json.decode(payload, type=KvEventBody).to_event()
        if name == "progress":
            return msgspec.json.decode(payload, type=Progress)
        return from_info(msgspec.json.decode(payload, type=ErrorInfo)) if name == "end" else None
    except (msgspec.MsgspecError, ValueError, RecursionError, BadRequest) as error:
        raise Lost(f"the {name[:20]!r} event cannot be read") from error


class Follower:
    """One watch over all endpoints. ``timeout``: how long it goes on while nobody answers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoints: Endpoints,
        prefix: str,
        from_revision: int | None,
        timeout: float,
    ) -> None:
        self._session = session
        self._endpoints = endpoints
        self._prefix = prefix
        self._next = from_revision
        self._timeout = timeout
        self._now = asyncio.get_running_loop().time
        self._answered_at = self._now()
        self._reasons: dict[str, str] = {}

    async def events(self) -> AsyncGenerator[KvEvent, None]:
        """Raises: Compacted; Unreachable after ``timeout`` seconds without an answer; AccessDenied and the like."""
        delay = BACKOFF_SECONDS
        while True:
            compacted: list[Compacted] = []
            started = self._answered_at
            for endpoint in self._endpoints.order():
                try:
                    async with aclosing(self._stream(endpoint)) as stream:
                        async for event in stream:
                            yield event
                except Compacted as error:
                    compacted.append(error)
                except Lost as error:
                    self._endpoints.failed(endpoint)
                    self._reasons[endpoint] = str(error)
                except RaftError as error:
                    if not error.retryable and error.code != "STOPPED":
                        raise
                    self._reasons[endpoint] = error.message
                    self._endpoints.failed(endpoint)
                else:
                    self._reasons[endpoint] = "the stream ended"
                if self._answered_at > started:
                    break  # it was served: begin again with the best node
            if self._answered_at > started:
                delay = BACKOFF_SECONDS
            elif compacted:
                raise min(compacted, key=lambda error: error.oldest)
            elif self._now() - self._answered_at >= self._timeout:
                raise self._unreachable()
            await asyncio.sleep(delay * (0.5 + random.random() / 2))
            delay = min(delay * 2, BACKOFF_SECONDS_MAX)

    async def _stream(self, endpoint: str) -> AsyncGenerator[KvEvent, None]:
        """What ``endpoint`` says until it ends. Raises: Lost, or what it answers."""
        params = {"prefix": self._prefix} if self._prefix else {}
        if self._next is not None:
            params["from_revision"] = str(self._next)
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        try:
            async with self._session.get(
                f"{endpoint}/v1/watch",
                params=params,
                headers={"Accept": "text/event-stream"},
                allow_redirects=False,
                timeout=limits,
            ) as response:
                if response.status != 200 or response.content_type != "text/event-stream":
                    answer = await answer_of(response, dict)
                    raise answer.error or Lost("the answer is no event stream")
                decoder = SseDecoder()
                async for chunk in response.content.iter_any():
                    for name, payload in decoder.feed(chunk):
                        event = self._take(endpoint, name, payload)
                        if event is not None:
                            yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Lost(reason_of(error)) from error

    def _take(self, endpoint: str, name: str, payload: bytes) -> KvEvent | None:
        """An event of the stream: a change to give, or None. Raises: Lost for nonsense; what ``end`` says."""
        said = read_event(name, payload)
        if isinstance(said, RaftError):
            raise said
        if isinstance(said, Progress):
            self._next = max(self._next or 1, said.revision + 1)
            self._heard(endpoint)
        elif said is not None:
            if self._next is not None and said.revision < self._next:
                raise Lost(f"revision {said.revision} came after {self._next - 1}")
            self._next = said.revision + 1
            self._heard(endpoint)
            return said
        return None

    def _heard(self, endpoint: str) -> None:
        self._answered_at = self._now()
        self._endpoints.answered(endpoint, self._answered_at)

    def _unreachable(self) -> Unreachable:
        tried = ", ".join(f"{endpoint} ({reason})" for endpoint, reason in self._reasons.items())
        return Unreachable(f"no node serves the watch: {tried}", hint="look at: raftkit status", outcome="not_applied")
