"""The ticker on event loops whose handles are not asyncio's own (uvloop's know no ``when``)."""

from __future__ import annotations

import asyncio
from typing import Any

from raftkit_core.runtime.ticker import Ticker


async def test_a_handle_need_not_say_when_it_is_due(monkeypatch: Any) -> None:
    loop = asyncio.get_running_loop()
    original = loop.call_at

    class Bare:
        def __init__(self, handle: asyncio.TimerHandle) -> None:
            self.cancel = handle.cancel

    def call_at(when: float, callback: Any, *arguments: Any, **more: Any) -> Any:
        handle = original(when, callback, *arguments, **more)
        return Bare(handle) if getattr(callback, "__qualname__", "") == "Ticker._tick" else handle

    monkeypatch.setattr(loop, "call_at", call_at)
    ticked = asyncio.Event()
    late: list[float] = []
    ticker = Ticker(0.001, ticked.set, late.append)
    ticker.start()
    await asyncio.wait_for(ticked.wait(), 5)
    ticker.stop()
    assert late[0] > -0.001
