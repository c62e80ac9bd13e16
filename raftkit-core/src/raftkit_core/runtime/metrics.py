"""Watches: a value that can be read at any time and waited for. Never through the engine's queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Watchers:
    """Who waits for a change of a node, by whichever of its watches: nobody waiting costs nothing."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class Watch(Generic[T]):
    """The latest value of something. Computed when somebody looks, so that nobody looking costs nothing.

    ``async for value in watch`` gives the present value, then every later one that differs (intermediate ones may be
    skipped); it ends when the node has stopped.
    """

    def __init__(self, compute: Callable[[], T], watchers: Watchers | None = None) -> None:
        """``watchers`` may be shared: what is published for one of several watches then wakes all of them."""
        self._compute = compute
        self._watchers = Watchers() if watchers is None else watchers
        self._closed: T | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def value(self) -> T:
        return self._compute() if self._closed is None else self._closed

    @property
    def is_closed(self) -> bool:
        return self._closed is not None

    def publish(self) -> None:
        """Something may have changed: wake whoever waits."""
        self._watchers.wake()

    def close(self, last: T) -> None:
        """No later value will come."""
        self._closed = last
        self.publish()

    async def changed(self) -> None:
        """Wait until :meth:`publish` is called. Returns at once when closed.

        Raises: RuntimeError in another event loop than the node's: nothing would wake it there.
        """
        if self._closed is not None:
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise RuntimeError("the node runs in another event loop: watch it from there")
        waiter: asyncio.Future[None] = loop.create_future()
        self._watchers.waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._watchers.waiting:
                self._watchers.waiting.remove(waiter)

    async def __aiter__(self) -> AsyncIterator[T]:
        last = self.value
        yield last
        while True:
            # Whoever iterates may have been busy while the value changed, or while it changed for the last time: what
            # it says now is looked at before anything is waited for.
            is_last = self.is_closed
            value = self.value
            if value != last:
                last = value
                yield value
            elif is_last:
                return
            else:
                await self.changed()
