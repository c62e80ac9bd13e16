"""``sqlite:`` across processes: the claim, sudden death, and programs that fail with a store open."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageLocked
from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing.conformance.log_storage import context, entries, opened, read_all, vote, write
from raftkit_sqlite import SqliteLogStorage

PRELUDE = """
import asyncio, os, sys
from pathlib import Path
from raftkit_core.errors import *
from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing.conformance.log_storage import *
from raftkit_core.types.log_id import index_of
from raftkit_sqlite import SqliteLogStorage

storage = SqliteLogStorage(sys.argv[1])
"""


def start(tmp_path: Path, body: str, *arguments: str) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(PRELUDE + textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "n1.db"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HOLD = """
async def main():
    await storage.open(context())
    print(os.getpid(), flush=True)
    sys.stdin.read()
    await storage.close()

asyncio.run(main())
"""


def test_a_second_process_is_refused_at_once_and_told_node_process_and_host(tmp_path: Path) -> None:
    with start(tmp_path, HOLD) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        pid = holder.stdout.readline().strip()
        storage = SqliteLogStorage(tmp_path / "n1.db")
        started = time.monotonic()

        async def refused() -> StorageLocked:
            with pytest.raises(StorageLocked) as error:
                await storage.open(context())
            return error.value

        error = asyncio.run(refused())
        assert time.monotonic() - started < 4, "SQLite itself would have waited for five seconds"
        assert f"node n1, process {pid} on {os.uname().nodename}" in error.message
        assert pid in (error.hint or "")
        holder.stdin.close()
        assert holder.wait(60) == 0


async def test_the_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with start(tmp_path, HOLD) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
        holder.wait(60)
    async with opened(lambda: SqliteLogStorage(tmp_path / "n1.db")):
        pass


async def kill_a_writer(tmp_path: Path) -> None:
    """Leave a store whose last confirmed entries are in its write-ahead log."""
    body = """
        async def main():
            await storage.open(context())
            await storage.save_identity(identity())
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 5)))
            print("written", flush=True)
            sys.stdin.read()

        asyncio.run(main())
        """
    with start(tmp_path, body) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "written\n"
        holder.kill()
        holder.wait(60)
    assert (tmp_path / "n1.db-wal").stat().st_size


async def test_a_write_ahead_log_that_was_removed_is_missed(tmp_path: Path) -> None:
    """SQLite opens the rest without a word; what was confirmed is gone, so the store must not (D15)."""
    await kill_a_writer(tmp_path)
    wal = tmp_path / "n1.db-wal"
    kept = wal.read_bytes()
    wal.unlink()
    for _ in range(2):  # and it is not forgotten by having been said once
        with pytest.raises(StorageCorrupt, match=r"n1\.db-wal is gone"):
            await SqliteLogStorage(tmp_path / "n1.db").open(context())
    wal.write_bytes(kept)
    async with opened(lambda: SqliteLogStorage(tmp_path / "n1.db")) as storage:
        assert await read_all(storage, 0, 5) == entries(1, 0, 5)
    assert not wal.exists()
    async with opened(lambda: SqliteLogStorage(tmp_path / "n1.db")):
        pass  # closed in good order, nothing is missed


async def test_a_write_ahead_log_that_another_program_emptied_is_told_apart_by_who_knows_it(tmp_path: Path) -> None:
    """A look with the sqlite3 shell after a crash moves the content over and removes the file. Nobody can see that from
    the files, so the refusal says what to do about it: it must not make a whole store look lost."""
    await kill_a_writer(tmp_path)
    shell = sqlite3.connect(tmp_path / "n1.db")
    shell.execute("SELECT count(*) FROM log").fetchall()
    shell.close()
    with pytest.raises(StorageCorrupt, match="unless another program has opened") as raised:
        await SqliteLogStorage(tmp_path / "n1.db").open(context())
    assert "delete n1.db.lock" in raised.value.hint
    (tmp_path / "n1.db.lock").unlink()
    async with opened(lambda: SqliteLogStorage(tmp_path / "n1.db")) as storage:
        assert await read_all(storage, 0, 5) == entries(1, 0, 5)


async def test_the_write_ahead_log_of_another_store_is_not_believed(tmp_path: Path) -> None:
    """D15: it fits SQLite; the checksums of rows and records know whose they are."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        await kill_a_writer(folder)
    async with opened(lambda: SqliteLogStorage(here / "n1.db")):
        pass
    body = (there / "n1.db-wal").read_bytes()
    other = tmp_path / "n2.db"
    async with opened(lambda: SqliteLogStorage(other), context("n2")) as storage:
        await write(storage, LogBatch(vote=vote(9, "n2"), entries=entries(9, 0, 2)))
    other.with_name("n2.db-wal").write_bytes(body)
    with pytest.raises((StorageCorrupt, IdentityError)):
        await SqliteLogStorage(other).open(context("n2"))


@pytest.mark.parametrize(
    "end",
    [
        "raise RuntimeError('the application failed')",
        "sys.exit(3)",
        "return",
        "asyncio.create_task(write(storage, LogBatch(entries=entries(1, 1, 5000)))); await asyncio.sleep(0); 1 / 0",
    ],
)
def test_a_program_that_ends_with_a_store_open_is_gone(tmp_path: Path, end: str) -> None:
    body = """
        async def main():
            await storage.open(context())
            await write(storage, LogBatch(entries=entries(1, 0, 1)))
            print("open", flush=True)
            END

        asyncio.run(main())
        """
    with start(tmp_path, body.replace("END", end)) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        assert (program.wait(60) == 0) == (end == "return")  # no thread of the store keeps it


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_file_size_limit_kills_the_handle_and_loses_nothing_confirmed(tmp_path: Path) -> None:
    body = """
        import resource

        async def main():
            await storage.open(context())
            await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 10)))
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            last = 9
            try:
                while True:
                    await write(storage, LogBatch(entries=entries(1, last + 1, last + 11, b"x" * 1000)))
                    last += 10
            except StorageError as error:
                assert error.subject == "log", error
            try:
                await write(storage, LogBatch(vote=vote(2)))
            except StorageError:
                print(last, flush=True)
            await storage.close()

        asyncio.run(main())
        """
    with start(tmp_path, body) as program:
        output, errors = program.communicate(timeout=120)
    assert program.returncode == 0, errors
    last = int(output)

    async def check() -> None:
        async with opened(lambda: SqliteLogStorage(tmp_path / "n1.db")) as storage:
            state = await storage.read_state()
            assert state.vote is not None
            assert state.vote.term == 1
            assert state.last_log_id is not None
            assert state.last_log_id.index >= last

    asyncio.run(check())


def test_finding_the_plugin_loads_no_driver() -> None:
    code = (
        "import sys, raftkit_sqlite.plugin, raftkit_sqlite; "
        "print(sorted({'sqlite3', 'aiosqlite', 'asyncio', 'msgspec'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert output.strip() == "[]"


WRITER = """
async def main():
    rng = __import__("random").Random(int(sys.argv[2]))
    await storage.open(context())
    state = await storage.read_state()
    last, term = index_of(state.last_log_id), 1 + (state.vote.term if state.vote else 0)
    while True:
        count = rng.choice((1, 7, 64))
        made = [entry(term, i, b"%d" % i * rng.randrange(40)) for i in range(last + 1, last + 1 + count)]
        purge = log_id(term, max(last - 200, 0)) if rng.random() < 0.05 and last > 400 else None
        last += count
        await write(storage, LogBatch(vote(term), purge_upto=purge, entries=made, committed=log_id(term, last)))
        print(term, last, flush=True)
        term += 1

asyncio.run(main())
"""


@pytest.mark.process
@pytest.mark.timeout(180)
def test_twenty_kills_lose_no_confirmed_batch(tmp_path: Path) -> None:
    rng = random.Random(7)
    total = 0
    for kill in range(20):
        with start(tmp_path, WRITER, str(kill)) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            assert first or writer.stderr is None, writer.stderr.read()
            time.sleep(rng.uniform(0, 0.15))
            writer.kill()
            confirmed = writer.stdout.read().splitlines()
            writer.wait(10)
        lines = [line.split() for line in confirmed if len(line.split()) == 2]
        if not lines:
            continue
        total += len(lines)
        term, last = int(lines[-1][0]), int(lines[-1][1])
        asyncio.run(_check(tmp_path / "n1.db", term, last))
    assert total > 100


async def _check(path: Path, term: int, last: int) -> None:
    async with opened(lambda: SqliteLogStorage(path)) as storage:
        state = await storage.read_state()
        assert state.vote is not None
        assert state.last_log_id is not None
        assert state.vote.term >= term
        assert state.last_log_id.index >= last
        # One more batch may have become durable without being confirmed; vote and entries of it, or neither.
        assert state.last_log_id.term == state.vote.term
        assert state.committed == state.last_log_id
        first = 0 if state.last_purged is None else state.last_purged.index + 1
        found = await read_all(storage, first, state.last_log_id.index + 1)
        assert [item.index for item in found] == list(range(first, state.last_log_id.index + 1))
