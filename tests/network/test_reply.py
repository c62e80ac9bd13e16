"""An answer that is told at once (``network/reply.py``)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.network.reply import Reply


def test_the_listener_is_called_when_it_is_answered_and_once() -> None:
    reply: Reply[int] = Reply()
    told: list[int] = []
    reply.then(lambda done, _: told.append(done.result()))
    assert not reply.done()
    reply.set_result(3)
    reply.set_result(4)
    reply.set_exception(ValueError())
    assert told == [3]
    assert (reply.done(), reply.cancelled(), reply.exception()) == (True, False, None)


def test_a_listener_of_an_answered_one_is_called_at_once() -> None:
    reply: Reply[int] = Reply()
    reply.set_exception(ValueError("no"))
    told: list[BaseException | None] = []
    reply.then(lambda done, _: told.append(done.exception()))
    assert str(told[0]) == "no"
    with pytest.raises(ValueError, match="no"):
        reply.result()


def test_a_cancelled_one_tells_nobody() -> None:
    reply: Reply[int] = Reply()
    reply.then(lambda _done, _: pytest.fail("told"))
    reply.cancel()
    reply.set_result(1)
    assert reply.cancelled()
    with pytest.raises(asyncio.CancelledError):
        reply.exception()


def test_it_gives_nothing_before_the_end() -> None:
    with pytest.raises(asyncio.InvalidStateError):
        Reply[int]().result()


async def test_it_can_be_awaited_and_a_cancelled_caller_cancels_it() -> None:
    early: Reply[int] = Reply()
    early.set_result(1)
    assert await early == 1
    late: Reply[int] = Reply()
    asyncio.get_running_loop().call_soon(late.set_result, 2)
    assert await late == 2

    async def wait(reply: Reply[int]) -> int:
        return await reply

    never: Reply[int] = Reply()
    waiting = asyncio.ensure_future(wait(never))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert never.cancelled()


async def test_what_a_listener_raises_stops_nobody_else() -> None:
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))

    def fails(_: Reply[int], _argument: Any) -> None:
        raise RuntimeError("mine")

    reply: Reply[int] = Reply()
    reply.then(fails)
    reply.set_result(1)
    loop.set_exception_handler(None)
    assert [str(context["exception"]) for context in heard] == ["mine"]
