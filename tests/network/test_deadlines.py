"""Many deadlines behind one timer (``network/deadlines.py``)."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.network.deadlines import Deadlines

pytestmark = pytest.mark.virtual_time


class Waits:
    def __init__(self, due: float) -> None:
        self.due = due


def put(deadlines: Deadlines, pending: dict[int, Waits], key: int, due: float) -> None:
    """As every owner does it."""
    pending[key] = Waits(due)
    if due < deadlines.timer_at:
        deadlines.arm(due, asyncio.get_running_loop())


async def test_each_ends_at_its_time_in_whatever_order_they_came() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    ended: list[tuple[int, float]] = []
    pending: dict[int, Waits] = {}

    def expired(key: int) -> None:
        del pending[key]
        ended.append((key, round(loop.time() - began, 6)))

    deadlines = Deadlines(expired, pending)
    for key, seconds in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 2.5)):
        put(deadlines, pending, key, began + seconds)
    del pending[4]  # answered
    await asyncio.sleep(10)
    assert ended == [(2, 1.0), (1, 2.0), (3, 3.0)]
    put(deadlines, pending, 5, loop.time() + 1)
    await asyncio.sleep(2)
    assert ended[-1] == (5, 11.0), "one that comes when nothing waited has its end too"


async def test_the_end_of_one_that_goes_wrong_leaves_the_others_their_ends() -> None:
    loop = asyncio.get_running_loop()
    heard: list[str] = []
    loop.set_exception_handler(lambda _, context: heard.append(str(context["exception"])))
    ended: list[int] = []
    pending: dict[int, Waits] = {}

    def expired(key: int) -> None:
        del pending[key]
        ended.append(key)
        if key == 1:
            raise ValueError("of this one")

    deadlines = Deadlines(expired, pending)
    for key in (1, 2, 3):
        put(deadlines, pending, key, loop.time() + max(key, 2) / 2)
    await asyncio.sleep(5)
    assert (ended, heard) == ([1, 2, 3], ["of this one"])


async def test_a_closed_one_ends_nothing_more() -> None:
    pending: dict[int, Waits] = {}
    deadlines = Deadlines(lambda _key: pytest.fail("ended"), pending)
    put(deadlines, pending, 1, asyncio.get_running_loop().time() + 1)
    deadlines.close()
    await asyncio.sleep(2)
