"""``python -m raftkit_core.testing.conformance.machine_writer URL FOLDER``: apply until killed, telling what is done.

The batch at index N puts key ``count`` to N, sets record ``count`` to N, deletes record ``r(N-1)`` and sets ``r(N)``;
every third one carries a membership of index N. ``N`` is printed once ``apply`` returned. A line that was cut short by
the kill promises nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from raftkit_core.clock import SystemClock
from raftkit_core.plugins import load_plugins
from raftkit_core.testing.conformance.machine_case import MadeBatch, apply, batch_of, membership_at
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.kv import Put
from raftkit_core.types.log_id import next_index

BATCHES_MAX = 20_000
"""An end, should nobody kill it."""


def batch_at(index: int) -> MadeBatch:
    records = [(b"count", b"%d" % index), (b"r%d" % (index - 1), None), (b"r%d" % index, b"")]
    membership = membership_at(index, "n1", f"m{index}") if index % 3 == 0 else None
    return batch_of(index, [Put("count", b"%d" % index)], records=records, membership=membership)


async def main(url: str, folder: Path) -> None:
    """Apply one batch after the other, from where the machine stands."""
    context = AdapterContext("n1", clock=SystemClock(), data_dir=folder)
    machine = load_plugins().state_machine(url, context)
    await machine.open(context)
    start = max(next_index((await machine.applied_state()).applied), 1)
    for index in range(start, start + BATCHES_MAX):
        await apply(machine, batch_at(index))
        os.write(1, b"%d\n" % index)
    await machine.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
