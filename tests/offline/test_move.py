"""Backup, restore and migration: nothing is lost or overwritten, and a crash leaves one usable store at most."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from raftkit_core.config import Config
from raftkit_core.errors import IdentityError, NeedsRejoin, StorageError
from raftkit_core.offline.archive import BackupFile
from raftkit_core.offline.move import Place, back_up, migrate, restore
from raftkit_core.offline.store import open_store, write_log
from raftkit_core.offline.verify import verify_store
from raftkit_core.runtime.opening import open_identity
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch
from raftkit_core.types.entry import BLANK, Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId, Vote

NEW_STORE = "e" * 32
WHEN = {"created_ms": 1, "version": "0"}


async def identity_a_node_gets(stores: Any, url: str, node_id: str = "n1") -> StoreIdentity:
    """What a node finds that starts there. Raises what stops it."""
    log = stores.log(url, node_id)
    try:
        return await open_identity(log, stores.context(node_id), Config(cluster="demo"), KvStateMachine(), Random(1))
    finally:
        await log.close()


async def backup_of(stores: Any, url: str, path: Path) -> BackupFile:
    async with open_store(stores.log(url), stores.snapshots(), stores.context()) as store:
        await back_up(store, path, **WHEN)
    backup = BackupFile(path)
    backup.check()
    return backup


class Elsewhere:
    """The same stores in another folder."""

    def __init__(self, stores: Any, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.stores = type(stores)(folder)


@pytest.fixture
def other(stores: Any, tmp_path: Path) -> Any:
    return Elsewhere(stores, tmp_path / "other").stores


@pytest.mark.parametrize("source", ["sqlite:raft.db", "memory:", "onefile:log"])
@pytest.mark.parametrize("target", ["sqlite:raft.db", "onefile:log"])
async def test_a_restored_store_holds_everything_under_a_store_id_of_its_own(
    stores: Any, other: Any, tmp_path: Path, source: str, target: str
) -> None:
    await stores.make(source, purged=2, committed=5)
    before = await verify_store(stores.log(source), stores.snapshots(), stores.context())
    backup = await backup_of(stores, source, tmp_path / "n1.backup")
    done = await restore(backup, other.log(target), other.snapshots(), other.context(), new_store_id=NEW_STORE)
    after = await verify_store(other.log(target), other.snapshots(), other.context())
    assert after.findings == []
    assert (after.state, after.log_sha256, after.snapshot) == (before.state, before.log_sha256, before.snapshot)
    assert after.identity == done.identity
    assert (await identity_a_node_gets(other, target)).store_id == NEW_STORE
    assert done.identity.cluster_id == "c" * 32
    assert done.identity.largest_lease_ms == 500, "a hold is never forgotten"


async def test_a_restore_overwrites_nothing(stores: Any, other: Any, tmp_path: Path) -> None:
    await stores.make()
    await other.make()
    backup = await backup_of(stores, "sqlite:raft.db", tmp_path / "n1.backup")
    with pytest.raises(IdentityError, match="nothing is overwritten"):
        await restore(backup, other.log("sqlite:raft.db"), other.snapshots(), other.context(), new_store_id=NEW_STORE)
    assert (await identity_a_node_gets(other, "sqlite:raft.db")).store_id == "1" * 32


async def test_a_restore_that_dies_anywhere_leaves_no_store_to_start_on_and_goes_on(
    stores: Any, tmp_path: Path, mortal: Callable[..., Any], killed: type[Exception]
) -> None:
    await stores.make(purged=2)
    backup = await backup_of(stores, "sqlite:raft.db", tmp_path / "n1.backup")
    finished = False
    for writes in range(12):
        folder = tmp_path / f"r{writes}"
        there = Elsewhere(stores, folder).stores
        dying = mortal(there.log("sqlite:raft.db"), writes)
        try:
            await restore(backup, dying, there.snapshots(), there.context(), new_store_id=NEW_STORE)
            finished = True
            break
        except killed:
            if writes > 0:  # before that there is nothing yet
                with pytest.raises(NeedsRejoin, match="not finished"):
                    await identity_a_node_gets(there, "sqlite:raft.db")
        await restore(backup, there.log("sqlite:raft.db"), there.snapshots(), there.context(), new_store_id=NEW_STORE)
        report = await verify_store(there.log("sqlite:raft.db"), there.snapshots(), there.context())
        assert (report.findings, report.state) == ([], backup.header.state)
        assert (await identity_a_node_gets(there, "sqlite:raft.db")).store_id == NEW_STORE
    assert finished


@pytest.mark.parametrize(
    ("source", "target"),
    [("sqlite:raft.db", "onefile:log"), ("onefile:log", "sqlite:raft.db"), ("sqlite:raft.db", "sqlite:new.db")],
)
async def test_a_migrated_store_is_the_same_store_and_the_old_one_is_retired(
    stores: Any, source: str, target: str
) -> None:
    await stores.make(source, purged=2)
    before = await verify_store(stores.log(source), stores.snapshots(), stores.context())
    await migrate(place(stores, source), place(stores, target), copy_snapshots=False)
    after = await verify_store(stores.log(target), stores.snapshots(), stores.context())
    assert (after.findings, after.state, after.log_sha256) == ([], before.state, before.log_sha256)
    assert await identity_a_node_gets(stores, target) == before.identity
    with pytest.raises(NeedsRejoin, match="migrated to") as raised:
        await identity_a_node_gets(stores, source)
    assert raised.value.hint == f"start the node on the store it was moved to: --storage {target}"


def place(stores: Any, url: str, log: Any = None) -> Place:
    return Place(stores.log(url) if log is None else log, stores.snapshots(), stores.context(), url)


async def test_snapshots_move_along_where_they_have_a_place_of_their_own(stores: Any, other: Any) -> None:
    await stores.make(purged=3)
    before = await verify_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context())
    await migrate(place(stores, "sqlite:raft.db"), place(other, "onefile:log"), copy_snapshots=True)
    after = await verify_store(other.log("onefile:log"), other.snapshots(), other.context())
    assert (after.findings, after.snapshot) == ([], before.snapshot)


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_migration_that_dies_anywhere_leaves_one_store_at_most_to_start_on_and_goes_on(
    stores: Any, tmp_path: Path, mortal: Callable[..., Any], killed: type[Exception], side: str
) -> None:
    finished = False
    for writes in range(12):
        here = Elsewhere(stores, tmp_path / f"m{writes}").stores
        await here.make(purged=2)
        urls = {"source": "sqlite:raft.db", "target": "onefile:log"}
        logs = {name: here.log(url) for name, url in urls.items()}
        logs[side] = mortal(logs[side], writes)
        sides = {name: place(here, url, logs[name]) for name, url in urls.items()}
        try:
            await migrate(sides["source"], sides["target"], copy_snapshots=False)
            finished = True
        except killed:
            pass
        usable = []
        for url in urls.values():
            try:
                if (await identity_a_node_gets(here, url)).store_id == "1" * 32:
                    usable.append(url)
            except NeedsRejoin:
                continue
        assert len(usable) <= 1, "never two of them"
        if finished:
            assert usable == ["onefile:log"]
            break
        if writes > 0 or side == "source":  # else nothing was written, and the look above made a store of its own
            await migrate(place(here, urls["source"]), place(here, urls["target"]), copy_snapshots=False)
            assert (await identity_a_node_gets(here, "onefile:log")).store_id == "1" * 32
    assert finished


async def test_a_store_that_went_elsewhere_is_not_migrated_again(stores: Any) -> None:
    await stores.make()
    await migrate(place(stores, "sqlite:raft.db"), place(stores, "onefile:log"), copy_snapshots=False)
    with pytest.raises(IdentityError, match="retired"):
        await migrate(place(stores, "sqlite:raft.db"), place(stores, "sqlite:third.db"), copy_snapshots=False)


async def test_there_must_be_a_store_to_copy(stores: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no store of n1"):
        await backup_of(stores, "memory:", tmp_path / "n1.backup")
    assert "n1.backup" not in os.listdir(tmp_path)


async def test_a_store_that_is_not_finished_is_not_backed_up(
    stores: Any, tmp_path: Path, mortal: Callable[..., Any], killed: type[Exception]
) -> None:
    await stores.make()
    backup = await backup_of(stores, "sqlite:raft.db", tmp_path / "n1.backup")
    there = Elsewhere(stores, tmp_path / "half").stores
    with pytest.raises(killed):
        await restore(
            backup,
            mortal(there.log("sqlite:raft.db"), 2),
            there.snapshots(),
            there.context(),
            new_store_id=NEW_STORE,
        )
    with pytest.raises(IdentityError, match="not finished"):
        await backup_of(there, "sqlite:raft.db", tmp_path / "half.backup")
    assert "half.backup" not in os.listdir(tmp_path)


async def test_a_finished_migration_is_not_repeated_from_the_old_store_when_the_new_one_is_gone(
    stores: Any, other: Any
) -> None:
    """The old store is what the node was before it voted and wrote elsewhere: it never comes back to life."""
    await stores.make()
    await migrate(place(stores, "sqlite:raft.db"), place(stores, "sqlite:new.db"), copy_snapshots=False)
    (stores.context().data_dir / "new.db").unlink()
    with pytest.raises(IdentityError, match="not used again") as raised:
        await migrate(place(stores, "sqlite:raft.db"), place(stores, "sqlite:new.db"), copy_snapshots=False)
    assert "member rejoin n1" in raised.value.hint
    with pytest.raises(IdentityError, match="not used again"):
        await migrate(place(stores, "sqlite:raft.db"), place(other, "sqlite:new.db"), copy_snapshots=True)
    for where in (stores, other):
        assert (await identity_a_node_gets(where, "sqlite:new.db")).store_id != "1" * 32


async def test_a_migration_that_broke_off_is_not_finished_after_another_one_was(
    stores: Any, other: Any, mortal: Callable[..., Any], killed: type[Exception]
) -> None:
    """Two folders, one URL: only the folder the source was retired for is the store."""
    await stores.make()
    with pytest.raises(killed):
        await migrate(
            place(stores, "sqlite:raft.db"),
            place(other, "onefile:log", mortal(other.log("onefile:log"), 2)),
            copy_snapshots=True,
        )
    await migrate(place(stores, "sqlite:raft.db"), place(stores, "onefile:log"), copy_snapshots=False)
    with pytest.raises(IdentityError, match="retired"):
        await migrate(place(stores, "sqlite:raft.db"), place(other, "onefile:log"), copy_snapshots=True)
    with pytest.raises(NeedsRejoin):
        await identity_a_node_gets(other, "onefile:log")
    assert (await identity_a_node_gets(stores, "onefile:log")).store_id == "1" * 32


async def test_a_migration_goes_on_after_the_source_ran_again_in_between(
    stores: Any, mortal: Callable[..., Any], killed: type[Exception]
) -> None:
    """Until the source is retired it may be started: it votes, and its tail may be overwritten."""
    made = await stores.make(committed=3)
    target = mortal(stores.log("onefile:log"), 3)
    with pytest.raises(killed):
        await migrate(place(stores, "sqlite:raft.db"), place(stores, "onefile:log", target), copy_snapshots=False)
    later = LeaderId(7, "n3")
    async with open_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context()) as store:
        new = Entry(LogId(later, 5), made[-1].time_ms, BLANK, b"")
        await write_log(store.log, LogBatch(vote=Vote(later, True), truncate_since=5, entries=[new]))
    await migrate(place(stores, "sqlite:raft.db"), place(stores, "onefile:log"), copy_snapshots=False)
    report = await verify_store(stores.log("onefile:log"), stores.snapshots(), stores.context())
    assert report.findings == []
    assert report.state is not None
    assert report.state.last_log_id == LogId(later, 5)


async def test_a_restore_does_not_take_a_snapshot_for_its_own_that_was_left_there(
    stores: Any, other: Any, tmp_path: Path
) -> None:
    await stores.make(purged=2)
    backup = await backup_of(stores, "sqlite:raft.db", tmp_path / "n1.backup")
    await other.publish(LogId(LeaderId(9, "n3"), 90), cluster_id="d" * 32)
    with pytest.raises(IdentityError, match="snapshot"):
        await restore(backup, other.log("sqlite:raft.db"), other.snapshots(), other.context(), new_store_id=NEW_STORE)
