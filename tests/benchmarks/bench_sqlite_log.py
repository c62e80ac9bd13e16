"""How far ``sqlite:`` is from a hand-written loop on the same disk.

Run it by ``uv run python tests/benchmarks/bench_sqlite_log.py``. The loop does BEGIN, executemany, COMMIT on the
calling thread, with the settings and the rows of the real one but without checksum and bounds. "one hop" is that
loop's transaction run on aiosqlite's thread: what no adapter on aiosqlite can go much below. All are measured in turns,
so that a slow moment of the disk hits each. Prints the median time of a transaction and the ratios; the budget is 1.5.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import aiosqlite

from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing.conformance.log_storage import context, entry, identity, log_id
from raftkit_sqlite import SqliteLogStorage

PAYLOAD = b"x" * 256
ROUNDS = 10


class HandWritten:
    def __init__(self, path: Path, connection: sqlite3.Connection | None = None) -> None:
        self.connection = connection or sqlite3.connect(path, isolation_level=None)
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=8000"):
            self.connection.execute(f"PRAGMA {pragma}").fetchall()
        self.connection.execute(
            "CREATE TABLE log (idx INTEGER PRIMARY KEY, term INTEGER, leader TEXT, time_ms INTEGER, kind INTEGER, "
            "payload BLOB)"
        )

    def write(self, start: int, count: int) -> None:
        rows = [(index, 1, "n1", 0, 1, PAYLOAD) for index in range(start, start + count)]
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany("INSERT INTO log VALUES (?,?,?,?,?,?)", rows)
        self.connection.execute("COMMIT")


class HandWrittenJob(sqlite3.Connection):
    """The hand-written transaction as what aiosqlite's ``commit`` runs."""

    job = (0, 0)

    def __init__(self, path: Path) -> None:
        super().__init__(path, isolation_level=None)
        self.hand = HandWritten(path, self)

    def commit(self) -> None:
        self.hand.write(*self.job)


async def compare(folder: Path, count: int, transactions: int) -> tuple[float, float, float]:
    """Median seconds of one transaction: by hand, by hand on aiosqlite's thread, and through the adapter."""
    hand = HandWritten(folder / f"hand-{count}.db")
    hopping = aiosqlite.Connection(lambda: HandWrittenJob(folder / f"hop-{count}.db"), 64)
    await hopping
    storage = SqliteLogStorage(folder / f"raftkit-{count}.db")
    await storage.open(context())
    await storage.save_identity(identity())
    by_hand: list[float] = []
    by_hop: list[float] = []
    by_adapter: list[float] = []
    start = 0
    try:
        for _ in range(ROUNDS):
            first = start
            for _ in range(transactions // ROUNDS):
                began = time.perf_counter()
                hand.write(start, count)
                by_hand.append(time.perf_counter() - began)
                start += count
            for index in range(first, start, count):
                began = time.perf_counter()
                HandWrittenJob.job = (index, count)
                await hopping.commit()
                by_hop.append(time.perf_counter() - began)
            for index in range(first, start, count):
                made = [entry(1, i, PAYLOAD) for i in range(index, index + count)]
                began = time.perf_counter()
                await storage.write(LogBatch(entries=made, committed=log_id(1, max(index - 1, 0))))
                by_adapter.append(time.perf_counter() - began)
    finally:
        await storage.close()
        await hopping.close()
        hand.connection.close()
    return statistics.median(by_hand), statistics.median(by_hop), statistics.median(by_adapter)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to measure; the disk matters")
    arguments = parser.parse_args()
    print(f"{'rows':>5} {'by hand':>10} {'one hop':>10} {'raftkit':>10} {'to hand':>8} {'to hop':>7}   rows/s")
    for count in (1, 64, 256):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            by_hand, by_hop, ours = await compare(Path(folder), count, arguments.transactions)
        times = f"{by_hand * 1e6:>7.0f} us {by_hop * 1e6:>7.0f} us {ours * 1e6:>7.0f} us"
        print(f"{count:>5} {times} {ours / by_hand:>8.2f} {ours / by_hop:>7.2f}   {count / ours:,.0f}")


if __name__ == "__main__":
    asyncio.run(main())
