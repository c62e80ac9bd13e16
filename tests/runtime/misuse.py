"""What the tests of misuse share: a gate to hang in, who was named, calls that must end in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from raftkit_core.instrument import Instrument
from raftkit_core.testing.cluster import outcome
from raftkit_core.testing.virtual_time import VirtualTimeLoop


def block(seconds: float) -> None:
    """What ``time.sleep`` is to a real loop: time goes on, and nobody else runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.jump(seconds)


class Stalls(Instrument):
    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def on_plugin_stall(self, name: str, seconds: float) -> None:
        self.told.append((name, round(seconds, 3)))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.told}


async def ends(call: Awaitable[Any], within: float) -> Any:
    """The call's result or error; it must come in time."""
    started = asyncio.get_running_loop().time()
    told = await outcome(call)
    assert asyncio.get_running_loop().time() - started <= within + 1e-6, told
    return told
