"""Running an ``async def`` test: a fresh event loop each, and nothing may be left behind in it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from typing import Any, TypeAlias

LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]
GRACE_TURNS = 20
"""Loop turns a cancelled task may take to end before it counts as leaked."""


class LeftBehind(AssertionError):
    """The test passed, but a task still runs, or an error reached nobody."""


def in_a_loop(
    test: Callable[..., Awaitable[Any]], *, virtual: bool = False, new_loop: LoopFactory = asyncio.new_event_loop
) -> Callable[..., None]:
    """``test`` as a plain function, on ``new_loop``. ``virtual``: on a loop whose time jumps when everything waits.

    Raises: what the test raises, else LeftBehind.
    """

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        unhandled: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=_virtual_time() if virtual else new_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
            leaked = runner.run(_run_and_find_leaks(test(*args, **kwargs)))
            del leaked[50:]
            gc.collect(1)  # a failed task tells the loop when it is collected
            problems = [f"leaked task: {text}" for text in leaked]
            problems += [f"unhandled in the loop: {_describe(context)}" for context in unhandled]
        if problems:
            raise LeftBehind("\n".join(problems))

    return run


def _virtual_time() -> LoopFactory:
    from raftkit_core.testing.virtual_time import VirtualTimeLoop

    return VirtualTimeLoop


async def _run_and_find_leaks(test: Awaitable[Any]) -> list[str]:
    await test
    for _ in range(GRACE_TURNS):
        if not any(_others()):
            return []
        await asyncio.sleep(0)
    return [repr(task) for task in _others()]


def _others() -> Iterator[asyncio.Task[Any]]:
    return (task for task in asyncio.all_tasks() if task is not asyncio.current_task())


def _describe(context: dict[str, Any]) -> str:
    details = {key: value for key, value in context.items() if key != "message"}
    return f"{context.get('message')} {details}"
