"""A node moves from SQLite to Redis and back, by the command line, and runs on what it finds there."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raftkit_cli.main import cli
from raftkit_core import Node, open_raft
from raftkit_core.types.kv import Get, Put


def raftkit(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert done.exit_code == 0, (done.stdout, done.stderr, done.exception)
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


async def write(storage: str, folder: Path, hub: str, *keys: str) -> str:
    """Run the node: it has the keys before ``keys``, and gets the last of them. Gives its store id."""
    async with open_raft("n1", storage=storage, network=hub, data_dir=folder) as raft:
        if raft.is_pristine:
            await raft.initialize({"n1": Node(f"{hub}/n1")})
        await raft.wait(20).current_leader("n1")
        for key in keys[:-1]:
            assert (await raft.read(Get(key))).value == key.encode()
        await raft.write(Put(keys[-1], keys[-1].encode()))
        return raft.store_id


@pytest.mark.parametrize("snapshot", [False, True], ids=["log", "log and snapshot"])
def test_a_node_moves_to_redis_and_back(redis_server: Any, tmp_path: Path, snapshot: bool) -> None:
    import asyncio

    prefix = f"t-{uuid.uuid4().hex[:12]}"
    url = f"redis://127.0.0.1:{redis_server.port}/0?prefix={prefix}"
    hub = f"memory:{prefix}"
    folder = tmp_path / "n1"
    place = ["--id", "n1", "--data-dir", str(folder)]
    store_id = asyncio.run(write("sqlite:raft.db", folder, hub, "a"))
    before = raftkit("storage", "verify", *place)
    moved = ["storage", "migrate", *place, "--yes"]
    if snapshot:  # another folder: the snapshot has to move along
        folder = tmp_path / "there"
        moved += ["--to-data-dir", str(folder)]
        place = ["--id", "n1", "--data-dir", str(folder)]
    raftkit(*moved, "--from", "sqlite:raft.db", "--to", url)
    after = raftkit("storage", "verify", *place, "--storage", url)
    assert (after["log_sha256"], after["log"], after["findings"]) == (before["log_sha256"], before["log"], [])
    assert asyncio.run(write(url, folder, hub, "a", "b")) == store_id
    raftkit("storage", "migrate", *place, "--yes", "--from", url, "--to", "sqlite:back.db")
    assert asyncio.run(write("sqlite:back.db", folder, hub, "a", "b", "c")) == store_id
