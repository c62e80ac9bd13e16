"""Awaiting what others wrote: it ends in time even if the other side ignores deadlines and cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from raftkit_core.errors import PluginError

log = logging.getLogger("raftkit.runtime")

T = TypeVar("T")

GRACE_SECONDS = 0.1
"""What is cancelled gets this long to put its things away."""
SNAPSHOT_BYTES_PER_SECOND = 8 * 1024 * 1024
"""What the slowest disk worth waiting for reads, checks or writes of a snapshot."""


async def within(awaitable: Awaitable[T], seconds: float, what: str) -> T:
    """What ``awaitable`` gives. After ``seconds`` it is cancelled and, if it resists, left behind: ``asyncio.timeout``
    would wait for it.

    Raises: TimeoutError; PluginError if it was cancelled from inside, which must not look like the caller's own end.
    """
    future = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([future], timeout=seconds)
    finally:
        late = not future.done()
        future.add_done_callback(forget)  # also if the caller is cancelled now, at the moment the answer has come
        if late:
            future.cancel()
            await asyncio.wait([future], timeout=GRACE_SECONDS)
    if late:
        raise TimeoutError(f"{what} did not end within {seconds:g} s")
    if future.cancelled():
        raise PluginError(f"{what} cancelled itself", hint="look at the plugin: it must not cancel its own task")
    return future.result()


def forget(future: asyncio.Future[Any]) -> None:
    """Nobody waits for ``future`` any more: its error is no reason for a warning."""
    if not future.cancelled():
        future.exception()


def seconds_for_bytes(least: float, size_bytes: int) -> float:
    """A deadline for work on a whole snapshot: a large one must not be given up, and begun anew, for its size alone."""
    return least + size_bytes / SNAPSHOT_BYTES_PER_SECOND


async def bounded(step: Awaitable[None], seconds: float, what: str) -> None:
    """One step of an end: an error is logged, and what resists for ``seconds`` is cancelled and left behind."""
    task = asyncio.ensure_future(step)
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            log.warning("%s: did not end within %g s and is abandoned", what, seconds)
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
    finally:
        task.cancel()
        if not task.done():
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        log.warning("%s: stopping was not clean: %s", what, error)
