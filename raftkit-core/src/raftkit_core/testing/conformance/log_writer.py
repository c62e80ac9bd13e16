"""``python -m raftkit_core.testing.conformance.log_writer URL FOLDER``: write until killed, telling what is durable.

Each batch holds a vote of term N and entry N-1; ``N`` is printed once the storage said that it is durable. A line that
was cut short by the kill promises nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from raftkit_core.clock import SystemClock
from raftkit_core.plugins import load_plugins
from raftkit_core.storage.interface import LogBatch
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId, Vote

BATCHES_MAX = 20_000
"""An end, should nobody kill it."""


async def main(url: str, folder: Path) -> None:
    """Write one batch after the other."""
    context = AdapterContext("n1", clock=SystemClock(), data_dir=folder)
    storage = load_plugins().log_storage(url, context)
    if await storage.open(context) is None:
        await storage.save_identity(StoreIdentity(node_id="n1", store_id="5a" * 16, cluster="default"))
    for index in range(BATCHES_MAX):
        leader = LeaderId(index + 1, "n1")
        entry = Entry(LogId(leader, index), 0, NORMAL, b"%d" % index)
        pending = storage.write(LogBatch(vote=Vote(leader, True), entries=[entry], committed=entry.log_id))
        if pending is not None:
            await pending
        os.write(1, b"%d\n" % (index + 1))
    await storage.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
