"""Copies of nodes whose log is purged behind a durable machine: log and snapshot together hold the whole state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftkit_core import Config, Node, SnapshotPolicy, open_raft
from raftkit_core.errors import StorageError
from raftkit_core.offline.archive import BackupFile
from raftkit_core.offline.machine import cover_purged, standing_of
from raftkit_core.offline.move import back_up, restore
from raftkit_core.offline.recover import apply_recovery, look, plan_recovery
from raftkit_core.offline.store import open_store
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.types.kv import Get, ListKeys, Put
from raftkit_core.types.log_id import index_of

CONFIG = Config(
    cluster="demo",
    snapshot_policy=SnapshotPolicy.LogsSinceLast(20),
    max_in_snapshot_log_to_keep=5,
    purge_batch_size=1,
)


def node(folder: Path) -> Any:
    return open_raft(
        "n1",
        storage="sqlite:raft.db",
        state_machine="sqlite-kv:kv.db",
        network=f"memory:{folder.parent.name}",
        data_dir=folder,
        config=CONFIG,
    )


async def purged_node(folder: Path) -> None:
    """A node whose first entries, the membership's too, are only in its machine's data."""
    async with node(folder) as raft:
        await raft.initialize({"n1": Node(f"memory:{folder.parent.name}/n1")})
        await raft.wait(20).current_leader("n1")
        for _ in range(3):
            await raft.client_write_many([Put(f"k{number:02}", b"v") for number in range(20)])
        await raft.wait(20).metrics(
            lambda m: index_of(m.purged) > 20 and m.snapshot is None, "a purge without a snapshot"
        )


def machine(stores: Any) -> Any:
    return stores.plugins.state_machine("sqlite-kv:kv.db", stores.context())


async def test_a_backup_holds_what_only_the_machine_has_and_a_recovered_copy_serves_it(
    stores: Any, tmp_path: Path
) -> None:
    await purged_node(tmp_path / "n1")
    async with open_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context()) as store:
        purged = (await store.log.read_state()).last_purged
        made = await cover_purged(store, machine(stores), stores.context(), snapshot_id="a1")
        assert made is not None
        assert index_of(made.last_log_id) >= index_of(purged)
        assert made == await cover_purged(store, machine(stores), stores.context(), snapshot_id="a2"), "once is enough"
        await back_up(store, tmp_path / "n1.backup", created_ms=1, version="0")
    backup = BackupFile(tmp_path / "n1.backup")
    backup.check()

    there = type(stores)(tmp_path / "there")
    (tmp_path / "there").mkdir()
    await restore(backup, there.log("sqlite:raft.db"), there.snapshots(), there.context(), new_store_id="e" * 32)
    async with open_store(there.log("sqlite:raft.db"), there.snapshots(), there.context()) as store:
        found = await look(store, await standing_of(store, machine(there), there.context()))
        assert found.membership.membership.voter_ids == ("n1",)
        await apply_recovery(store, plan_recovery([found], random_hex="ab" * 16))
    async with node(tmp_path / "there" / "n1") as raft:
        await raft.wait(20).current_leader("n1")
        assert len(await raft.read(ListKeys("k"))) == 20
        await raft.write(Put("k00", b"w"))
        assert (await raft.read(Get("k00"))).value == b"w"


async def test_the_members_are_known_from_the_machine_where_log_and_snapshot_are_silent(
    stores: Any, tmp_path: Path
) -> None:
    await purged_node(tmp_path / "n1")
    async with open_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context()) as store:
        found = await look(store, await standing_of(store, machine(stores), stores.context()))
    assert found.membership.membership.voter_ids == ("n1",)


async def test_a_volatile_machine_s_log_without_its_snapshot_is_not_whole(stores: Any, tmp_path: Path) -> None:
    await stores.make(purged=3)
    (tmp_path / "n1" / "snapshots" / "current.snapshot").unlink()
    async with open_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context()) as store:
        with pytest.raises(StorageError, match="no snapshot covers"):
            await cover_purged(store, KvStateMachine(), stores.context(), snapshot_id="a1")
