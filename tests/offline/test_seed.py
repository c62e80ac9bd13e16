"""A saved snapshot begins a new cluster: its state, a new id, and the node alone in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftkit_core import open_raft
from raftkit_core.errors import IdentityError, StorageCorrupt
from raftkit_core.offline.seed import inspect, seed_cluster
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Node
from raftkit_core.types.vote import LeaderId

SECRETS = {"new_store_id": "e" * 32, "random_hex": "ab" * 16}


async def saved_snapshot(path: Path, machine: str = "kv") -> str:
    """A snapshot file of a cluster that held a key; gives its cluster id."""
    hub = f"memory:seed-{path.parent.name}"
    folder = path.parent / "old"
    async with open_raft("n1", storage="sqlite:log.db", network=hub, state_machine=machine, data_dir=folder) as raft:
        await raft.initialize({"n1": Node(f"{hub}/n1")})
        await raft.wait(20).current_leader("n1")
        index = (await raft.write(Put("k", b"v"))).log_id.index
        raft.trigger().snapshot()
        await raft.wait(20).metrics(lambda m: index_of(m.snapshot) >= index, "a snapshot")
        source = await raft.get_snapshot()
        assert source is not None
        path.write_bytes(b"".join([chunk async for chunk in source.open(0)]))  # noqa: ASYNC240
        await source.close()
        assert raft.cluster_id is not None
        return raft.cluster_id


async def seed(stores: Any, path: Path, **keywords: Any) -> Any:
    settings = {"node": Node("memory:new/n1"), "machine": "kv/1", "single_term_leader": False, **SECRETS, **keywords}
    log, snapshots, context = stores.log("sqlite:raft.db"), stores.snapshots(), stores.context(cluster="copy")
    return await seed_cluster(path, inspect(path), log, snapshots, context, **settings)


@pytest.mark.parametrize("machine", ["kv", "sqlite-kv:kv.db"])
async def test_a_node_started_on_it_leads_a_new_cluster_with_the_old_state(
    stores: Any, tmp_path: Path, machine: str
) -> None:
    path = tmp_path / "state.snapshot"
    old = await saved_snapshot(path)
    identity = await seed(stores, path)
    assert identity.cluster_id not in (None, old)
    from raftkit_core import Config

    async with open_raft(
        "n1",
        storage="sqlite:raft.db",
        network="memory:new",
        state_machine=machine,
        data_dir=tmp_path / "n1",
        config=Config(cluster="copy"),
    ) as raft:
        await raft.wait(20).current_leader("n1")
        assert (await raft.read(Get("k"))).value == b"v"
        assert raft.cluster_id == identity.cluster_id
        assert raft.metrics().value.membership.membership.voter_ids == ("n1",)
        await raft.write(Put("k", b"w"))


async def test_a_file_says_what_it_is_of_and_any_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.snapshot"
    old = await saved_snapshot(path)
    saved = inspect(path)
    assert (saved.header.cluster_id, saved.header.machine) == (old, "kv/1")
    data = path.read_bytes()
    assert saved.meta.size_bytes == len(data)
    path.write_bytes(data[:-1])
    with pytest.raises(StorageCorrupt, match=r"state\.snapshot"):
        inspect(path)


async def test_another_machine_s_snapshot_and_a_place_that_is_taken_are_refused(stores: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.snapshot"
    await saved_snapshot(path)
    with pytest.raises(IdentityError, match="kv/1"):
        await seed(stores, path, machine="bank/1")
    await stores.make()
    with pytest.raises(IdentityError, match="nothing is overwritten"):
        await seed(stores, path)


async def test_a_snapshot_that_was_left_in_the_folder_does_not_become_the_new_cluster_s_state(
    stores: Any, tmp_path: Path
) -> None:
    """Somebody removed the log and not the snapshots: those are newer, of another cluster, and would win."""
    path = tmp_path / "state.snapshot"
    await saved_snapshot(path)
    await stores.publish(LogId(LeaderId(9, "n3"), 90))
    with pytest.raises(IdentityError, match="snapshot"):
        await seed(stores, path)
