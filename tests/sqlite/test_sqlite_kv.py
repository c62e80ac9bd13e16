"""``sqlite-kv:`` beyond the shared clauses: its file, its settings, and what of it may block the event loop."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import BadAdapterUrl, IdentityError, StorageCorrupt, StorageError, UnknownOption
from raftkit_core.plugins import load_plugins
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.testing.conformance.log_case import opened as opened_log
from raftkit_core.testing.conformance.machine_case import apply, batch_of, chunks_of, meta_at, stream
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.kv import Get, KeyValue, ListKeys, Put
from raftkit_sqlite import SqliteKvStateMachine, SqliteLogStorage, kv_views


def context(data_dir: Path | None = None) -> AdapterContext:
    return AdapterContext("n1", clock=SystemClock(), data_dir=data_dir)


async def made(path: Path, count: int = 3) -> SqliteKvStateMachine:
    machine = SqliteKvStateMachine(path)
    await machine.open(context())
    await apply(machine, batch_of(1, [Put(f"k{number}", b"v") for number in range(count)]))
    return machine


def test_the_name_alone_is_a_file_in_the_data_dir_and_options_are_checked(tmp_path: Path) -> None:
    plugins = load_plugins()
    machine = plugins.state_machine("sqlite-kv", context(tmp_path))
    assert isinstance(machine, SqliteKvStateMachine)
    assert machine.path == Path("kv.db")
    named = plugins.state_machine("sqlite-kv:///var/kv.db?quick_check=true", context())
    assert isinstance(named, SqliteKvStateMachine)
    assert (named.path, named.options.quick_check) == (Path("/var/kv.db"), True)
    with pytest.raises(BadAdapterUrl):
        plugins.state_machine("sqlite-kv", context())
    with pytest.raises(UnknownOption):
        plugins.state_machine("sqlite-kv:kv.db?durability=relaxed", context())


async def test_settings_are_in_force(tmp_path: Path) -> None:
    machine = await made(tmp_path / "kv.db")
    _, database = machine._opened()
    found = await database.run(
        lambda connection: [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "locking_mode", "wal_autocheckpoint")
        ]
    )
    assert found == ["wal", 2, "normal", 8000]
    await machine.restore(meta_at(9), stream([]))
    assert await database.run(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (2,)
    with pytest.raises(StorageCorrupt):
        await machine.restore(meta_at(9), stream([b"\xff" * 100]))
    await apply(machine, batch_of(10, [Put("k", b"v")]))
    assert await database.run(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (2,)
    await machine.close()


async def test_the_file_of_a_log_is_refused_by_name_and_the_other_way_round(tmp_path: Path) -> None:
    async with opened_log(lambda: SqliteLogStorage(tmp_path / "log.db"), context()):
        pass
    await (await made(tmp_path / "kv.db")).close()
    with pytest.raises(IdentityError, match="holds a raftkit log"):
        await SqliteKvStateMachine(tmp_path / "log.db").open(context())
    with pytest.raises(IdentityError, match="sqlite-kv"):
        await SqliteLogStorage(tmp_path / "kv.db").open(context())


async def test_a_file_that_was_made_and_never_used_is_anybodys(tmp_path: Path) -> None:
    for node_id in ("n2", "n1"):
        machine = SqliteKvStateMachine(tmp_path / "kv.db")
        await machine.open(AdapterContext(node_id, clock=SystemClock()))
        await machine.close()


async def test_a_damaged_row_or_record_is_never_believed(tmp_path: Path) -> None:
    machine = await made(tmp_path / "kv.db")
    await apply(machine, batch_of(9, [], records=[(b"r", b"1")]))
    await machine.close()
    with sqlite3.connect(tmp_path / "kv.db") as connection:
        connection.execute("UPDATE data_0 SET value = x'00' WHERE key = x'6b31'")
        connection.execute("UPDATE records SET v = x'00'")
    connection.close()
    await machine.open(context())
    try:
        with pytest.raises(StorageCorrupt, match="k1"):
            machine.query(Get("k1"))
        with pytest.raises(StorageCorrupt):
            await machine.query(ListKeys())
        with pytest.raises(StorageCorrupt):
            await machine.digest()
        with pytest.raises(StorageCorrupt):
            await machine.applied_state()
        assert machine.query(Get("k0")) == KeyValue(key="k0", value=b"v", revision=1)
    finally:
        await machine.close()


async def test_a_restore_that_was_cut_off_leaves_nothing_behind(tmp_path: Path) -> None:
    machine = await made(tmp_path / "kv.db")
    session, database = machine._opened()
    await database.run(session.begin_load)
    await machine.close()
    await machine.open(context())
    await machine.close()
    with sqlite3.connect(tmp_path / "kv.db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
    connection.close()
    assert tables == [("data_0",), ("meta",), ("records",)]
    assert sorted(os.listdir(tmp_path)) == ["kv.db", "kv.db.lock"]


async def test_reads_during_restores_find_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    source = KvStateMachine()
    await apply(source, batch_of(1, [Put(f"k{number}", b"new") for number in range(50)]))
    taken = await chunks_of(source)
    machine = await made(tmp_path / "kv.db", 50)

    async def restore_often() -> None:
        for number in range(20):
            await machine.restore(meta_at(1000 + number), stream(taken))

    restores = asyncio.ensure_future(restore_often())
    while not restores.done():
        found = machine.query(Get("k7"))
        assert isinstance(found, KeyValue)
        assert found.value in (b"v", b"new")
        assert len(await machine.query(ListKeys())) == 50
    await restores
    await machine.close()


async def test_the_rows_of_a_view_that_outlives_the_machine_are_refused(tmp_path: Path) -> None:
    machine = await made(tmp_path / "kv.db")
    view = machine.snapshot()
    await machine.close()
    with pytest.raises((StorageError, RuntimeError)):
        await anext(view)


async def test_a_list_that_is_cut_reads_no_row_beyond_and_holds_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand values may be a gigabyte, and whoever asks takes eight megabytes."""
    machine = await made(tmp_path / "kv.db", 0)
    await apply(machine, batch_of(2, [Put(f"k{number:02}", b"x" * 100) for number in range(50)]))
    checked: list[bytes] = []
    original = kv_views.check_row
    monkeypatch.setattr(kv_views, "check_row", lambda path, key, *row: (checked.append(key), original(path, key, *row)))
    assert len(await machine.query(ListKeys(max_bytes=250))) == 3
    assert len(checked) == 3
    await apply(machine, batch_of(52, [Put("k00", b"new")]))
    assert (await machine.query(ListKeys(limit=1)))[0].value == b"new"
    await machine.close()


async def test_lists_and_keys_are_those_of_the_memory_machine(tmp_path: Path) -> None:
    machine, memory = await made(tmp_path / "kv.db", 0), KvStateMachine()
    keys = ["a", "a\x00", "ab", "b", "é", "éa", "z", "\uffff", "\U0001f600", "\U0001f600x"]
    batch = batch_of(2, [Put(key, key.encode()) for key in keys])
    await apply(machine, batch)
    await apply(memory, batch)
    for prefix in ("", "a", "é", "\U0001f600", "none"):
        for after in (None, "", "a", "ab", "é", "\U0001f600", "~"):
            for limit in (1, 3, 1 << 70):
                for max_bytes in (None, 1, 5, 1 << 70):
                    query = ListKeys(prefix, limit=limit, after=after, max_bytes=max_bytes)
                    assert await machine.query(query) == memory.query(query), query
    assert machine.query(Get("\ud800")) is None
    await machine.close()
