"""Reading a node's snapshot: a stream that is as long and has the digest that the node announced, or an error."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence

import aiohttp
import msgspec

from raftkit_core.errors import NetworkError, StorageCorrupt, Unreachable
from raftkit_http.exchange import CONNECT_SECONDS, Lost, NotSent, decode_answer

CHUNK_BYTES = 256 * 1024
STALL_SECONDS = 60.0


async def download_snapshot(session: aiohttp.ClientSession, endpoints: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """From the first of ``endpoints`` that can be reached.

    Raises: the node's error; Unreachable; NetworkError and StorageCorrupt for a stream that breaks or does not fit.
    """
    reasons: dict[str, str] = {}
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
    for endpoint in endpoints:
        try:
            response = await session.get(f"{endpoint}/v1/snapshot", allow_redirects=False, timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reasons[endpoint] = str(error) or type(error).__name__
            continue
        async with response:
            if response.status != 200:
                await _refused(response, endpoint)
            async for chunk in _checked(response, endpoint):
                yield chunk
        return
    tried = ", ".join(f"{endpoint} ({reason})" for endpoint, reason in reasons.items())
    raise Unreachable(f"no node answers: {tried}", outcome="not_applied")


async def _checked(response: aiohttp.ClientResponse, endpoint: str) -> AsyncGenerator[bytes, None]:
    digest = hashlib.sha256()
    size = 0
    try:
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NetworkError(f"the snapshot of {endpoint} broke off after {size} bytes: {error}") from error
    promised = response.headers.get("Raftkit-Snapshot-Sha256")
    if digest.hexdigest() != promised:
        raise StorageCorrupt(
            f"the {size} bytes from {endpoint} do not have the sha256 it announced", subject="snapshot", verb="read"
        )


async def _refused(response: aiohttp.ClientResponse, endpoint: str) -> None:
    """Raises: what the node answered."""
    body = await response.content.read(64 * 1024)
    try:
        answer = decode_answer(response, body, msgspec.Raw)
    except (NotSent, Lost) as error:
        raise NetworkError(f"{endpoint}: {error}") from error
    if answer.error is not None:
        raise answer.error
    raise NetworkError(f"{endpoint} answered HTTP {response.status}")
