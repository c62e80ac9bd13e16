"""Plugin code that is awaited, each step of it timed. Nothing here runs for a plugin that answers at once."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from raftkit_core.errors import Fatal

if TYPE_CHECKING:
    from raftkit_core.runtime.stalls import StallDetector

T = TypeVar("T")


class Busy:
    """A step of a plugin that is awaited."""

    __slots__ = ("is_named", "method", "plugin", "since")

    def __init__(self, plugin: object, method: str, since: float) -> None:
        self.plugin = plugin
        self.method = method
        self.since = since
        self.is_named = False


def timed_steps(result: Any, stalls: StallDetector, plugin: object, method: str) -> Coroutine[Any, Any, Any]:
    """``result`` of ``plugin.method``, to be awaited in its place."""
    watched: Any = _watch(result, stalls, plugin, method)
    watched.__qualname__ = getattr(result, "__qualname__", method)  # who lists tasks sees the plugin's name
    timed: Coroutine[Any, Any, Any] = watched
    return timed


async def timed_items(items: AsyncIterator[T], stalls: StallDetector, plugin: object, method: str) -> AsyncIterator[T]:
    """The items of an asynchronous iterator that a plugin gave, each step timed."""
    try:
        while True:
            try:
                item = await _watch(anext(items), stalls, plugin, method)
            except StopAsyncIteration:
                return
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def timed_chunks(
    chunks: AsyncIterator[bytes],
    stalls: StallDetector,
    machine: Any,
    waits_again: Callable[[], None],
    ended: Callable[[], None],
) -> AsyncIterator[bytes]:
    """The chunks of a machine's snapshot; what fails among them is the machine's. Raises: Fatal."""
    try:
        async with aclosing(timed_items(chunks, stalls, machine, "snapshot")) as timed:  # type: ignore[type-var]
            async for chunk in timed:
                yield chunk
                waits_again()
        ended()  # what is left is the storage's to do, not the machine's
    except Exception as error:
        raise Fatal(
            f"the state machine {machine.name} failed to give a snapshot: {type(error).__name__}: {error}",
            hint="a snapshot is tried again after the next start; fix the machine first",
        ) from error


async def _watch(awaitable: Awaitable[T], stalls: StallDetector, plugin: object, method: str) -> T:
    found: T = await _timed(awaitable, stalls, plugin, method)
    return found


@types.coroutine
def _timed(awaitable: Awaitable[Any], stalls: StallDetector, plugin: object, method: str) -> Generator[Any, Any, Any]:
    """Like ``await awaitable``, each step of it timed."""
    steps: Any = awaitable.__await__()
    if not hasattr(steps, "send"):
        return (yield from steps)  # a bare iterator
    value: Any = None
    error: BaseException | None = None
    while True:
        started = stalls.now()
        try:
            waits_for = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        finally:
            stalls.ran(plugin, method, started)
        value = error = None
        try:
            value = yield waits_for
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as thrown:
            error = thrown
