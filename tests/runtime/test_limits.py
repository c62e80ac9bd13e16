"""What others wrote is awaited with an end, and leaves no noise behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from raftkit_core.runtime.limits import within

pytestmark = pytest.mark.virtual_time


async def test_an_error_that_comes_in_the_moment_the_caller_is_cancelled_is_no_warning() -> None:
    """Found by simulation: the error reached nobody, and the event loop said so when it was collected."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    caller = asyncio.ensure_future(within(answer, 1.0, "a call"))
    await asyncio.sleep(0)
    answer.set_exception(ValueError("too late"))
    await asyncio.sleep(0)  # the caller is about to be woken up
    caller.cancel()
    with suppress(asyncio.CancelledError):
        await caller
    assert caller.cancelled()
    del answer  # the harness fails a test whose loop heard of an error nobody asked for
