"""What ``sqlite:`` does with files that are not what they should be: it refuses, says why, and changes nothing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StorageFull, StorageLocked
from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing.conformance.log_storage import (
    context,
    entries,
    identity,
    log_id,
    opened,
    read_all,
    vote,
)
from raftkit_core.types.adapter import AdapterContext
from raftkit_sqlite import SqliteLogStorage, SqliteOptions


async def fill(path: Path, count: int = 20) -> None:
    async with opened(lambda: SqliteLogStorage(path)) as storage:
        pending = storage.write(LogBatch(vote=vote(3, "n2"), entries=entries(1, 0, count), committed=log_id(1, 5)))
        assert pending is not None
        await pending


async def refusal(path: Path, at: AdapterContext | None = None) -> Exception:
    """The error an opener (and, if it opens, a reader of everything) gets."""
    storage = SqliteLogStorage(path)
    try:
        await storage.open(at or context())
        state = await storage.read_state()
        if state.last_log_id is not None:
            await read_all(storage, 0, state.last_log_id.index + 1)
    except Exception as error:
        return error
    finally:
        await storage.close()
    raise AssertionError("it was accepted")


def raw(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


# --- Damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log SET payload = x'79' WHERE idx = 7",
        "UPDATE log SET payload = x'' WHERE idx = 19",
        "UPDATE log SET term = 2 WHERE idx = 0",
        "UPDATE log SET leader = 'n9' WHERE idx = 7",
        "UPDATE log SET time_ms = time_ms + 1 WHERE idx = 7",
        "UPDATE log SET kind = 2 WHERE idx = 7",
        "UPDATE log SET crc = crc + 1 WHERE idx = 7",
        "UPDATE log SET crc = -1 WHERE idx = 7",
        "DELETE FROM log WHERE idx = 7",
        "DELETE FROM log WHERE idx = 0",
        "DELETE FROM log WHERE idx = 19",
        "DELETE FROM log",
        "UPDATE log SET idx = 20 WHERE idx = 19",
        "DROP TABLE log",
    ],
)
async def test_a_damaged_log_is_corrupt_and_never_a_shorter_one(tmp_path: Path, statement: str) -> None:
    await fill(tmp_path / "n1.db")
    raw(tmp_path / "n1.db", statement)
    error = await refusal(tmp_path / "n1.db")
    assert isinstance(error, StorageCorrupt)
    assert error.hint


async def test_a_row_written_in_the_wrong_place_is_corrupt(tmp_path: Path) -> None:
    """Two rows with intact content and checksum, each under the other's index (a misdirected write)."""
    await fill(tmp_path / "n1.db")
    raw(
        tmp_path / "n1.db",
        "UPDATE log SET idx = 100 WHERE idx = 7",
        "UPDATE log SET idx = 7 WHERE idx = 8",
        "UPDATE log SET idx = 8 WHERE idx = 100",
    )
    assert isinstance(await refusal(tmp_path / "n1.db"), StorageCorrupt)


async def test_rows_of_another_node_are_corrupt(tmp_path: Path) -> None:
    await fill(tmp_path / "n1.db")
    theirs = SqliteLogStorage(tmp_path / "n2.db")
    async with opened(lambda: theirs, context("n2")) as storage:
        pending = storage.write(LogBatch(entries=entries(1, 0, 20)))
        assert pending is not None
        await pending
    raw(tmp_path / "n1.db", f"ATTACH '{tmp_path / 'n2.db'}' AS other", "REPLACE INTO log SELECT * FROM other.log")
    assert isinstance(await refusal(tmp_path / "n1.db"), StorageCorrupt)


@pytest.mark.parametrize("key", ["vote", "bounds", "store"])
@pytest.mark.parametrize("damage", ["UPDATE meta SET v = x'c0' WHERE k = '{}'", "DELETE FROM meta WHERE k = '{}'"])
async def test_a_damaged_or_missing_record_is_corrupt_and_never_a_default(
    tmp_path: Path, key: str, damage: str
) -> None:
    await fill(tmp_path / "n1.db")
    raw(tmp_path / "n1.db", damage.format(key))
    error = await refusal(tmp_path / "n1.db")
    assert isinstance(error, StorageCorrupt)
    assert error.subject == {"vote": "vote", "bounds": "log", "store": "identity"}[key]


async def test_flipping_any_bit_of_the_file_never_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    await fill(path, 6)
    pristine = path.read_bytes()
    async with opened(lambda: SqliteLogStorage(path)) as storage:
        truth = await storage.read_state(), await read_all(storage, 0, 6)
    found = 0
    for offset in range(100, len(pristine), 97):
        path.write_bytes(pristine[:offset] + bytes([pristine[offset] ^ 0x10]) + pristine[offset + 1 :])
        for side in ("-wal", "-journal"):
            path.with_name(path.name + side).unlink(missing_ok=True)
        storage = SqliteLogStorage(path)
        try:
            assert await storage.open(context()) == identity(), offset
            assert (await storage.read_state(), await read_all(storage, 0, 6)) == truth, offset
        except StorageError:
            found += 1
        finally:
            await storage.close()
    assert found > 5


async def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    await fill(path, 2000)
    with path.open("r+b") as file:
        file.truncate(8192)
    assert isinstance(await refusal(path), StorageCorrupt)


async def test_a_wal_without_its_database_is_refused(tmp_path: Path) -> None:
    """A new database would replay it: entries of a store that somebody has deleted."""
    path = tmp_path / "n1.db"
    path.with_name("n1.db-wal").write_bytes(b"\x37\x7f\x06\x82" + bytes(100))
    assert isinstance(await refusal(path), StorageCorrupt)
    assert not path.exists()


async def test_quick_check_reads_the_whole_file_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    await fill(path, 2000)
    page = bytearray(path.read_bytes())
    page[5 * 4096 : 5 * 4096 + 64] = b"\xff" * 64
    path.write_bytes(page)
    storage = SqliteLogStorage(path, SqliteOptions(quick_check=True))
    with pytest.raises(StorageCorrupt):
        await storage.open(context())
    await storage.close()


# --- Files of others ------------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk\n" * 20)
    assert isinstance(await refusal(path), StorageCorrupt)
    assert path.read_text() == "remember the milk\n" * 20
    assert os.listdir(tmp_path) == ["notes.txt"]


async def test_a_database_of_another_program_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "browser.db"
    raw(path, "CREATE TABLE bookmarks(url TEXT)")
    before = path.read_bytes()
    error = await refusal(path)
    assert isinstance(error, IdentityError)
    assert error.hint
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["browser.db"]


async def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    await fill(path)
    raw(path, "PRAGMA user_version = 2")
    before = path.read_bytes()
    error = await refusal(path)
    assert isinstance(error, IdentityError)
    assert "format 2" in str(error)
    assert path.read_bytes() == before


async def test_a_store_that_was_made_but_never_used_fits_another_node(tmp_path: Path) -> None:
    first = SqliteLogStorage(tmp_path / "n1.db")
    assert await first.open(context("n1")) is None
    await first.close()
    async with opened(lambda: SqliteLogStorage(tmp_path / "n1.db"), context("n2")):
        pass
    assert isinstance(await refusal(tmp_path / "n1.db", context("n1")), IdentityError)


async def test_a_store_with_a_vote_but_no_identity_fits_nobody_else(tmp_path: Path) -> None:
    first = SqliteLogStorage(tmp_path / "n1.db")
    assert await first.open(context("n1")) is None
    await first.write(LogBatch(vote=vote(1)))
    await first.close()
    assert isinstance(await refusal(tmp_path / "n1.db", context("n2")), IdentityError)


async def test_an_identity_of_another_node_is_not_saved(tmp_path: Path) -> None:
    async with opened(lambda: SqliteLogStorage(tmp_path / "n1.db")) as storage:
        with pytest.raises(IdentityError):
            await storage.save_identity(identity("n2"))


async def test_another_sqlite_program_holding_the_file_is_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    await fill(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        assert isinstance(await refusal(path), StorageLocked)
    finally:
        connection.close()
    await fill_more(path)


async def fill_more(path: Path) -> None:
    async with opened(lambda: SqliteLogStorage(path)) as storage:
        assert (await storage.read_state()).last_log_id == log_id(1, 19)


async def test_while_a_node_holds_the_file_another_sqlite_program_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    async with opened(lambda: SqliteLogStorage(path)):
        connection = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            connection.execute("DELETE FROM log")
        connection.close()


# --- Places ---------------------------------------------------------------------------------------------------------


async def test_a_relative_path_is_under_the_data_folder_and_only_the_owner_may_read(tmp_path: Path) -> None:
    at = AdapterContext("n1", clock=SystemClock(), data_dir=tmp_path / "node")
    storage = SqliteLogStorage("deep/n1.db")
    await storage.open(at)
    try:
        await storage.write(LogBatch(vote=vote(1)))
        path = tmp_path / "node" / "deep" / "n1.db"
        assert storage.path == path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        for name in os.listdir(path.parent):
            assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600, name
    finally:
        await storage.close()


async def test_a_closed_store_is_one_file_and_its_lock(tmp_path: Path) -> None:
    await fill(tmp_path / "n1.db")
    assert sorted(os.listdir(tmp_path)) == ["n1.db", "n1.db.lock"]


async def test_leftovers_of_a_creation_that_broke_off_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "n1.db.new").write_bytes(b"half a header")
    (tmp_path / "n1.db.new-journal").write_bytes(b"half a journal")
    await fill(tmp_path / "n1.db")
    assert sorted(os.listdir(tmp_path)) == ["n1.db", "n1.db.lock"]


async def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "n1.db").touch()
    await fill(tmp_path / "n1.db")


@pytest.mark.parametrize("path", ["/proc/raftkit/n1.db", "{tmp}/file/n1.db", "{tmp}/folder"])
async def test_a_place_that_cannot_be_written_says_so(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    error = await refusal(Path(path.format(tmp=tmp_path)))
    assert isinstance(error, StorageError)
    assert error.hint


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom permissions bind")
async def test_a_read_only_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir(mode=0o500)
    error = await refusal(tmp_path / "fixed" / "n1.db")
    assert isinstance(error, StorageError)
    assert "write there" in (error.hint or "")


async def test_a_full_disk_is_storage_full_and_what_was_confirmed_stays(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    async with opened(lambda: SqliteLogStorage(path)) as storage:
        assert isinstance(storage, SqliteLogStorage)
        await storage.write(LogBatch(vote=vote(1), entries=entries(1, 0, 5)))
        await storage._opened()[1].run(lambda connection: connection.execute("PRAGMA max_page_count=20").fetchall())
        with pytest.raises(StorageFull) as full:
            await storage.write(LogBatch(vote=vote(2), entries=entries(1, 5, 50, b"x" * 4096)))
        assert full.value.hint
        with pytest.raises(StorageError, match="earlier write failed"):
            await storage.write(LogBatch(vote=vote(3)))
    async with opened(lambda: SqliteLogStorage(path)) as storage:
        state = await storage.read_state()
        assert (state.vote, state.last_log_id) == (vote(1), log_id(1, 4))


async def test_idle_time_shrinks_the_write_ahead_log_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raftkit_sqlite.log_storage as module

    monkeypatch.setattr(module, "IDLE_S", 0.0)
    path = tmp_path / "n1.db"
    async with opened(lambda: SqliteLogStorage(path)) as storage:
        assert isinstance(storage, SqliteLogStorage)
        await storage.write(LogBatch(entries=entries(1, 0, 4000, b"x" * 4000)))
        await storage.write(LogBatch(purge_upto=log_id(1, 3990)))
        async with asyncio.timeout(30):
            while True:  # the adapter offers no event for its own tidying
                if storage._tidying is None and storage._idle_timer is None:
                    break
                await asyncio.sleep(0)
        assert path.stat().st_size < 8 * 1024 * 1024
        assert await read_all(storage, 3991, 4000) == entries(1, 3991, 4000, b"x" * 4000)


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("relaxed", 1)])
async def test_the_settings_that_matter_are_in_force(tmp_path: Path, durability: str, level: int) -> None:
    options = SqliteOptions(durability="full" if durability == "full" else "relaxed")
    storage = SqliteLogStorage(tmp_path / "n1.db", options)
    await storage.open(context())
    try:
        for pragma, expected in (
            ("journal_mode", "wal"),
            ("synchronous", level),
            ("locking_mode", "exclusive"),
            ("auto_vacuum", 2),
            ("wal_autocheckpoint", 8000),
        ):
            (found,) = await storage._opened()[1].run(
                lambda connection, pragma=pragma: connection.execute(f"PRAGMA {pragma}").fetchone()  # type: ignore[misc]
            )
            assert found == expected, pragma
        assert ("RELAXED" in (await storage.info()).durability) == (durability == "relaxed")
    finally:
        await storage.close()


async def test_a_cancelled_opening_leaves_no_claim(tmp_path: Path) -> None:
    path = tmp_path / "n1.db"
    for turns in range(4):
        storage = SqliteLogStorage(path)
        task = asyncio.create_task(storage.open(context()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await storage.close()
        async with opened(lambda: SqliteLogStorage(path)):
            pass
