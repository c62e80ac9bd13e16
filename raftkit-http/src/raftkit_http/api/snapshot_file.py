"""``GET /v1/snapshot``: the node's published snapshot as the bytes of its container, for ``raftkit snapshot save``."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from aiohttp import web

from raftkit_core.errors import NotFound, Stopped
from raftkit_http.api.guard import Call

CHUNK_TIMEOUT = 60.0
"""Seconds a reader may take for a chunk."""


async def get_snapshot(call: Call) -> web.StreamResponse:
    """The digest comes first, as a header; a stream that ends before its length is broken, and so is its sha256."""
    if call.api.closing:
        raise Stopped(f"{call.raft.id} is shutting down", hint="ask another node", retryable=True)
    source = await call.raft.get_snapshot()
    if source is None:
        raise NotFound(f"{call.raft.id} has no snapshot yet", hint="let it write one: raftkit snapshot create")
    try:
        meta = source.meta
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Raftkit-Snapshot-Id": meta.snapshot_id,
                "Raftkit-Snapshot-Sha256": meta.sha256,
            }
        )
        response.content_length = meta.size_bytes
        await response.prepare(call.request)
        call.begun = response
        async with aclosing(source.open(0)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                async with asyncio.timeout(CHUNK_TIMEOUT):
                    await response.write(chunk)
        await response.write_eof()
        return response
    finally:
        await source.close()
