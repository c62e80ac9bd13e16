"""Names the plugin that blocks the event loop, or does not come to an end (DESIGN §6).

Two readings of the clock around each step of plugin code, and nothing per entry. A plugin that awaits is timed step by
step: what blocks is the code between two awaits.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import types
from collections.abc import Callable
from typing import Any, TypeVar

from raftkit_core.clock import Clock, SystemClock
from raftkit_core.instrument import Instruments
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.figures import NodeFigures
from raftkit_core.runtime.timed_steps import timed_steps

log = logging.getLogger("raftkit.runtime")

T = TypeVar("T")

STALL_SECONDS = 0.25
"""Plugin code that runs longer than this at a stretch delays heartbeats: it is named."""
QUIET_SECONDS = 10.0
"""One warning per plugin method in this time; the next one says how many there were meanwhile."""


class StallDetector:
    """Calls plugin methods, and tells whoever observes the node which of them take too long."""

    def __init__(self, node_id: str = "", clock: Clock | None = None, instruments: Instruments | None = None) -> None:
        self._node_id = node_id
        self.now: Callable[[], float] = (SystemClock() if clock is None else clock).monotonic
        self._instruments = Instruments() if instruments is None else instruments
        self.figures = NodeFigures()
        self._logged: dict[str, tuple[float, int]] = {}
        """When a method was named last, and how often since."""
        self._named_one = False
        """Whether somebody was blamed since the loop was last found late."""

    def call(self, plugin: object, method: str, *arguments: Any) -> Any:
        """``plugin.method(*arguments)``; a coroutine it gives is timed too, while it is awaited."""
        return self.timed(plugin, method, getattr(plugin, method), *arguments)

    def timed(self, plugin: object, method: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """As :meth:`call`, for who has looked ``function`` up already: ``plugin.method``."""
        now = self.now
        started = now()
        try:
            result = function(*arguments)
        except BaseException:
            self.ran(plugin, method, started)
            raise
        if now() - started > STALL_SECONDS:
            self.ran(plugin, method, started)
        return self.watched(result, plugin, method)

    def watched(self, result: Any, plugin: object, method: str) -> Any:
        """``result`` of ``plugin.method`` as it is, or, where plugin code runs while it is awaited, timed step by step.
        For who takes the time of the call itself."""
        kind = type(result)
        if kind is not types.CoroutineType and (kind in _AT_ONCE or not _must_be_awaited(result)):
            return result
        return timed_steps(result, self, plugin, method)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function(*arguments)``, an application's code in the node's loop."""
        started = self.now()
        try:
            return function(*arguments)
        finally:
            self.ran(function, "", started)

    def ran(self, plugin: object, method: str, started: float) -> None:
        """One step of ``plugin`` that began at ``started`` is over."""
        seconds = self.now() - started
        if seconds > STALL_SECONDS:
            name = _name(plugin, method)
            self._named_one = True
            self._tell(name, seconds, f"{name} blocked the event loop for {seconds * 1000:.0f} ms: it must not block")

    def unfinished(self, plugin: object, method: str, seconds: float) -> None:
        """``plugin.method`` is still awaited after ``seconds``; the caller says so once for each time."""
        name = _name(plugin, method)
        self._tell(name, seconds, f"{name} has not finished for {seconds:.1f} s")

    def loop_was_late(self, seconds: float) -> None:
        """A timer fired ``seconds`` late: somebody blocked the loop, and was perhaps named already."""
        if seconds <= STALL_SECONDS:
            return
        if self._named_one:
            self._named_one = False
            return
        milliseconds = seconds * 1000
        self._log(
            "", f"the event loop was blocked for {milliseconds:.0f} ms: look for code of this process that blocks"
        )

    def _tell(self, name: str, seconds: float, text: str) -> None:
        self._log(name, text)
        self._instruments.on_plugin_stall(name, seconds)

    def _log(self, name: str, text: str) -> None:
        now = self.now()
        logged_at, more = self._logged.get(name, (float("-inf"), 0))
        if now - logged_at < QUIET_SECONDS:
            self._logged[name] = (logged_at, more + 1)
            return
        self._logged[name] = (now, 0)
        log.warning("node %s: %s%s", self._node_id, text, f" ({more} more since the last warning)" if more else "")


_AT_ONCE = frozenset((type(None), list, tuple, asyncio.Future, Reply))
"""What plugins mostly give, and nobody has to look at twice."""


def _must_be_awaited(result: object) -> bool:
    """Whether plugin code runs while ``result`` is awaited; a future runs none."""
    return inspect.isawaitable(result) and not asyncio.isfuture(result) and not isinstance(result, Reply)


def _name(plugin: object, method: str) -> str:
    if method:
        name = f"{type(plugin).__qualname__}.{method}"
    else:
        name = str(getattr(plugin, "__qualname__", type(plugin).__qualname__))
    return name.rpartition("<locals>.")[2]
