"""Work that a cancelled caller must not cut short: what was sent to Redis happens, whoever still waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from raftkit_core.errors import RaftError

T = TypeVar("T")


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in a task of its own: a cancelled caller leaves at once, and the work is done whole."""
    task = asyncio.create_task(work)
    task.add_done_callback(_look_at_result)
    return await asyncio.shield(task)


def _look_at_result(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and isinstance(task.exception(), RaftError):
        return  # told to the caller, or kept as the handle's failure if the caller has left
