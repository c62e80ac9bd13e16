"""Reading a whole store: what is sound is described, what is damaged is named, and the rest is read all the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from raftkit_core.errors import StorageError
from raftkit_core.offline.store import Progress
from raftkit_core.offline.verify import StoreReport, verify_store
from raftkit_core.types.vote import LeaderId, Vote


async def verify(stores: Any, url: str = "sqlite:raft.db", **keywords: Any) -> StoreReport:
    return await verify_store(stores.log(url), stores.snapshots(), stores.context(), **keywords)


def sql(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("url", ["sqlite:raft.db", "memory:", "onefile:log"])
async def test_a_sound_store_is_described_and_its_log_digest_is_the_same_on_every_adapter(
    stores: Any, url: str
) -> None:
    made = await stores.make(url)
    steps: list[Progress] = []
    report = await verify(stores, url, progress=steps.append)
    assert report.findings == []
    assert report.identity == stores.identity("n1")
    assert report.state is not None
    assert (report.entries, report.state.last_log_id) == (7, made[-1].log_id)
    assert report.entry_bytes == sum(len(entry.payload) for entry in made)
    assert steps[-1] == Progress("entries", 7, 7)


async def test_equal_logs_have_equal_digests_on_different_adapters(stores: Any) -> None:
    await stores.make("sqlite:raft.db")
    await stores.make("onefile:log")
    first = await verify(stores)
    second = await verify(stores, "onefile:log")
    assert first.log_sha256 == second.log_sha256 != ""


async def test_damaged_entries_are_named_one_by_one_and_the_others_are_read(stores: Any, tmp_path: Path) -> None:
    await stores.make()
    sql(tmp_path / "n1" / "raft.db", "UPDATE log SET payload = x'00' WHERE idx IN (2, 5)")
    report = await verify(stores)
    assert [(finding.part, finding.where) for finding in report.findings] == [("log", "entry 2"), ("log", "entry 5")]
    assert report.entries == 5


async def test_a_missing_entry_is_named(stores: Any, tmp_path: Path) -> None:
    await stores.make()
    sql(tmp_path / "n1" / "raft.db", "DELETE FROM log WHERE idx = 3")
    report = await verify(stores)
    assert any("3" in finding.where + finding.problem for finding in report.findings)


async def test_a_damaged_vote_is_named_and_never_taken_for_none(stores: Any, tmp_path: Path) -> None:
    await stores.make()
    sql(tmp_path / "n1" / "raft.db", "UPDATE meta SET v = x'c0' WHERE k = 'vote'")
    report = await verify(stores)
    assert report.findings
    assert report.state is None or report.state.vote is None


async def test_a_damaged_snapshot_is_named(stores: Any, tmp_path: Path) -> None:
    await stores.make(purged=3)
    assert (await verify(stores)).findings == []
    path = tmp_path / "n1" / "snapshots" / "current.snapshot"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = await verify(stores)
    assert [finding.part for finding in report.findings] == ["snapshot"]
    assert report.entries == 3, "the log is read all the same"


async def test_what_is_no_store_is_said_to_be_none(stores: Any) -> None:
    with pytest.raises(StorageError, match="there is no store of n1"):
        await verify(stores, "memory:")


async def test_a_log_ahead_of_its_vote_is_a_lost_vote(stores: Any) -> None:
    await stores.make("memory:", vote=Vote(LeaderId(1, "n1")))
    report = await verify(stores, "memory:")
    assert [finding.part for finding in report.findings] == ["vote"]
