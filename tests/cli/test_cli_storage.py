"""``raftkit storage``, ``snapshot`` and ``recover`` on stores that ran once."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from raftkit_core.errors import StorageError
from raftkit_core.types.membership import Node


def sql(node_id: str, statement: str) -> None:
    connection = sqlite3.connect(Path("raftkit-data") / node_id / "raft.db")
    with connection:
        connection.execute(statement)
    connection.close()


def identity(raftkit: Any, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = raftkit.json("storage", "info", *arguments)["data"]["identity"]
    return found


def test_a_store_is_described_and_checked(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1")
    data = raftkit.json("storage", "verify", "--id", "n1")["data"]
    assert data["findings"] == []
    assert data["entries"] == data["log"]["last"]["index"] + 1
    assert len(data["log_sha256"]) == 64
    assert identity(raftkit, "--id", "n1")["node"] == "n1"
    assert "is sound" in raftkit("storage", "verify", "--id", "n1").stdout


def test_every_damage_is_named_and_is_exit_10(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1")
    sql("n1", "UPDATE log SET payload = x'00' WHERE idx IN (2, 3)")
    document = raftkit.json("storage", "verify", "--id", "n1", code=10)
    assert [finding["where"] for finding in document["data"]["findings"]] == ["entry 2", "entry 3"]
    assert document["error"]["code"] == "STORAGE_CORRUPT"
    assert "member rejoin n1" in document["error"]["hint"]
    result = raftkit("storage", "verify", "--id", "n1")
    assert result.stderr.count("damaged: log, entry ") == 2
    assert raftkit("storage", "backup", "bad.backup", "--id", "n1").exit_code == 10, "nothing damaged is copied"
    assert not Path("bad.backup").exists()


def test_the_data_of_a_durable_machine_belongs_to_a_sound_store(raftkit: Any, keeper: Any) -> None:
    """What the log has purged is only there; and who does not name the machine is not told to wipe the node."""
    keeper.make_durable("n1")
    words = ["--id", "n1", "--state-machine", "sqlite-kv:kv.db"]
    assert raftkit.json("storage", "verify", *words)["data"]["findings"] == []
    unnamed = raftkit.json("storage", "verify", "--id", "n1", code=10)["error"]
    assert "--state-machine sqlite-kv:kv.db" in unnamed["hint"]
    assert "rejoin" not in unnamed["hint"]
    assert "--state-machine" in raftkit.json("storage", "backup", "x.backup", "--id", "n1", code=10)["error"]["hint"]
    raftkit.json("storage", "backup", "n1.backup", *words)
    for path in Path("raftkit-data/n1").glob("kv.db*"):
        path.unlink()
    for path in Path("raftkit-data/n1/snapshots").glob("*"):
        path.unlink()
    lost = raftkit.json("storage", "verify", *words, code=10)
    assert [finding["part"] for finding in lost["data"]["findings"]] == ["state machine"]
    assert not Path("raftkit-data/n1/kv.db").exists(), "a look makes nothing"


def test_a_restored_store_of_a_durable_machine_is_recovered_before_the_machine_has_data(
    raftkit: Any, keeper: Any
) -> None:
    keeper.make_durable("n1")
    machine = ["--state-machine", "sqlite-kv:kv.db"]
    raftkit.json("storage", "backup", "n1.backup", "--id", "n1", *machine)
    raftkit.json("storage", "restore", "n1.backup", "--data-dir", "there", *machine, "--yes")
    assert raftkit.json("storage", "verify", "--id", "n1", "--data-dir", "there", *machine)["data"]["findings"] == []
    assert raftkit.json("recover", "n1=there", *machine, "--yes")["data"]["applied"] is True


def test_what_is_not_there_is_not_made(raftkit: Any) -> None:
    document = raftkit.json("storage", "verify", "--id", "n9", code=10)
    assert "there is no folder" in document["error"]["message"]
    assert not Path("raftkit-data").exists()


def test_a_backup_is_restored_elsewhere_as_another_store(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1")
    before = raftkit.json("storage", "verify", "--id", "n1")["data"]
    assert raftkit.json("storage", "backup", "n1.backup", "--id", "n1", "--dry-run")["data"]["written"] is False
    assert not Path("n1.backup").exists()
    raftkit.json("storage", "backup", "n1.backup", "--id", "n1")
    assert raftkit.json("storage", "backup", "n1.backup", "--id", "n1", code=8)["error"]["code"] == "FILE_EXISTS"
    dry = raftkit.json("storage", "restore", "n1.backup", "--data-dir", "there", "--dry-run")
    assert dry["data"]["entries"] == before["entries"]
    assert not Path("there").exists()
    assert raftkit("storage", "restore", "n1.backup", "--data-dir", "there").exit_code == 2, "it asks first"
    raftkit.json("storage", "restore", "n1.backup", "--data-dir", "there", "--yes")
    after = raftkit.json("storage", "verify", "--id", "n1", "--data-dir", "there")["data"]
    assert (after["log_sha256"], after["log"]) == (before["log_sha256"], before["log"])
    assert after["identity"]["store_id"] != before["identity"]["store_id"]
    again = raftkit.json("storage", "restore", "n1.backup", "--data-dir", "there", "--yes", code=10)
    assert "nothing is overwritten" in again["error"]["message"]


def test_a_folder_that_cannot_be_made_is_told_as_that(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1")
    raftkit.json("storage", "backup", "n1.backup", "--id", "n1")
    for folder in ("n1.backup/there", "/proc/there"):
        error = raftkit.json("storage", "restore", "n1.backup", "--data-dir", folder, "--yes", code=10)["error"]
        assert error["code"] == "STORAGE"
        assert f"cannot make {folder}" in error["message"]
        assert "permissions" in error["hint"]


def test_whoever_interrupts_a_copy_is_told_to_run_it_again(raftkit: Any, keeper: Any, monkeypatch: Any) -> None:
    """Nothing was sent to any cluster, so there is nothing to look for in one."""
    keeper.make("n1")
    from raftkit_core.offline import move

    def ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(move, "walk_log", ctrl_c)
    error = raftkit.json("storage", "backup", "n1.backup", "--id", "n1", code=130)["error"]
    assert error["code"] == "INTERRUPTED"
    assert "same command again" in error["hint"]
    assert not Path("n1.backup").exists()


def test_a_migrated_store_keeps_its_id_and_the_old_one_is_retired(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1")
    before = raftkit.json("storage", "verify", "--id", "n1")["data"]
    words = ["storage", "migrate", "--id", "n1", "--from", "sqlite:raft.db", "--to", "sqlite:new.db"]
    assert raftkit.json(*words, "--dry-run")["data"]["written"] is False
    assert not Path("raftkit-data/n1/new.db").exists()
    assert "both sqlite:raft.db" in raftkit.json(*words[:-1], "sqlite:raft.db", "--yes", code=2)["error"]["message"]
    raftkit.json(*words, "--yes")
    again = raftkit.json(*words, "--yes", code=10)["error"]
    assert "is finished" in again["message"]
    after = raftkit.json("storage", "verify", "--id", "n1", "--storage", "sqlite:new.db")["data"]
    assert after == before | {"location": after["location"]}
    assert identity(raftkit, "--id", "n1")["retired"].startswith("migrated to sqlite:new.db at /")


def test_a_recovery_says_what_it_would_do_and_then_does_it(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1", "n2", "n3")
    plan = raftkit("recover", "raftkit-data/n1")
    assert plan.exit_code == 0
    assert "nothing was changed" in plan.stdout
    assert "n2, n3: not looked at with the store the cluster knows" in plan.stderr
    old = identity(raftkit, "--id", "n1")["cluster_id"]
    data = raftkit.json("recover", "n1=raftkit-data/n1", "--yes")["data"]
    assert (data["survivor"], data["applied"], data["voters_not_looked_at"]) == ("n1", True, ["n2", "n3"])
    assert Path(data["backup"]).exists()
    now = identity(raftkit, "--id", "n1")
    assert now["cluster_id"] == data["new_cluster_id"] != old == data["old_cluster_id"]
    assert now["retired"] is None


def test_a_recovery_that_broke_off_is_run_again_to_its_end(raftkit: Any, keeper: Any, monkeypatch: Any) -> None:
    keeper.make("n1", "n2", "n3")
    from raftkit_core.offline import recover

    async def out_of_space(*_: Any) -> None:
        raise StorageError("no space left", subject="log", verb="write")

    with monkeypatch.context() as patch:
        patch.setattr(recover, "write_log", out_of_space)
        raftkit.json("recover", "raftkit-data/n1", "--yes", code=10)
    begun = identity(raftkit, "--id", "n1")
    assert begun["retired"].startswith("not finished")
    data = raftkit.json("recover", "raftkit-data/n1", "--yes")["data"]
    assert (data["applied"], data["survivor"]) == (True, "n1")
    assert data["backup"] is None, "it was written when the recovery began"
    assert len(list(Path("raftkit-data").glob("*.raftkit-backup"))) == 1
    now = identity(raftkit, "--id", "n1")
    assert (now["retired"], now["cluster_id"]) == (None, data["new_cluster_id"])


def test_a_folder_without_a_store_stays_as_it_is(raftkit: Any) -> None:
    """A mistyped --data-dir is not told as damage, and nothing is made there."""
    Path("wrong").mkdir()
    for verb in ("info", "verify"):
        error = raftkit.json("storage", verb, "--id", "n1", "--data-dir", "wrong", code=10)["error"]
        assert error["code"] == "STORAGE"
        assert "there is no store of n1" in error["message"]
        assert "--data-dir" in error["hint"]
    for words in (["storage", "backup", "x.backup", "--id", "n1", "--data-dir", "wrong"], ["recover", "n1=wrong"]):
        assert "there is no store of n1" in raftkit.json(*words, code=10)["error"]["message"]
    assert list(Path("wrong").iterdir()) == []


def test_of_several_stores_the_newest_survives_and_the_others_are_retired(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1", "n2", "n3")
    last = raftkit.json("storage", "info", "--id", "n2")["data"]["log"]["last"]["index"]
    sql("n1", f"DELETE FROM log WHERE idx = {last}")
    sql("n1", "SELECT 1")
    data = raftkit.json("recover", "raftkit-data/n2", "raftkit-data/n3", "--yes")["data"]
    other = "n3" if data["survivor"] == "n2" else "n2"
    assert "recovered from" in identity(raftkit, "--id", other)["retired"]
    assert data["had_quorum"] is True


def test_a_snapshot_is_saved_looked_into_and_restored(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1", snapshot=Path("state.snapshot"))
    raftkit.cluster.snapshot_bytes = Path("state.snapshot").read_bytes()
    saved = raftkit.json("snapshot", "save", "mine.snapshot")["data"]
    assert Path("mine.snapshot").read_bytes() == raftkit.cluster.snapshot_bytes
    seen = raftkit.json("snapshot", "inspect", "mine.snapshot")["data"]
    assert seen["snapshot"] == saved["snapshot"]
    assert seen["state_machine"] == "kv/1"
    words = ["snapshot", "restore", "mine.snapshot", "--id", "n7", "--cluster", "copy"]
    assert raftkit.json(*words)["data"]["applied"] is False
    assert not Path("raftkit-data/n7").exists()
    done = raftkit.json(*words, "--yes")["data"]
    assert done["cluster_id"] not in (None, seen["cluster_id"])
    assert identity(raftkit, "--id", "n7", "--cluster", "copy")["cluster_id"] == done["cluster_id"]


def test_what_does_not_arrive_whole_is_not_saved(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1", snapshot=Path("state.snapshot"))
    raftkit.cluster.snapshot_bytes = Path("state.snapshot").read_bytes()[:-3]
    assert raftkit.json("snapshot", "save", "mine.snapshot", code=10)["error"]["code"] == "STORAGE_CORRUPT"
    assert not Path("mine.snapshot").exists()


# --- rejoin ---------------------------------------------------------------------------------------------------------


def changes(raftkit: Any) -> list[str]:
    wanted = ("change_membership", "add_learner", "remove_nodes")
    return [f"{name} {argument}" for name, argument in raftkit.cluster.calls if name in wanted]


def test_a_wiped_voter_is_removed_added_and_promoted(raftkit: Any) -> None:
    raftkit.cluster.bind()
    raftkit.cluster.store_ids["n3"] = "9" * 32
    assert raftkit.json("member", "rejoin", "n3", "--dry-run")["data"]["steps"] == ["remove", "add", "promote"]
    assert changes(raftkit) == []
    assert raftkit("member", "rejoin", "n3").exit_code == 2, "it asks first"
    assert raftkit.json("member", "rejoin", "n3", "--yes")["data"]["done"] is True
    assert changes(raftkit) == [
        "change_membership (['n1', 'n2'], False, False)",
        "add_learner n3",
        "change_membership (['n1', 'n2', 'n3'], True, False)",
    ]


def test_an_interrupted_rejoin_goes_on_with_what_is_left(raftkit: Any) -> None:
    raftkit.cluster.bind()
    del raftkit.cluster.members["n3"]
    document = raftkit.json("member", "rejoin", "n3", code=3)
    assert "--url" in document["error"]["hint"]
    assert raftkit.json("member", "rejoin", "n3", "--url", "fake://n3")["data"]["steps"] == ["add", "promote"]
    raftkit.cluster.members["n3"] = (raftkit.cluster.members["n3"][0], False)
    raftkit.cluster.bind()
    assert raftkit.json("member", "rejoin", "n3")["data"]["steps"] == ["promote"]


def test_a_member_that_moved_rejoins_at_its_new_address(raftkit: Any) -> None:
    raftkit.cluster.bind()
    raftkit.cluster.members["n3"] = (Node("fake://n3-was-here", store_id="5" * 32), True)
    data = raftkit.json("member", "rejoin", "n3", "--url", "fake://n3", "--yes")["data"]
    assert data["steps"] == ["remove", "add", "promote"]
    assert raftkit.cluster.members["n3"][0].peer == "fake://n3"
    assert raftkit.json("member", "rejoin", "n3", "--url", "fake://n3")["data"]["steps"] == []


def test_a_member_with_its_own_store_needs_no_rejoin(raftkit: Any) -> None:
    raftkit.cluster.bind()
    result = raftkit("member", "rejoin", "n3")
    assert "nothing to do" in result.stdout
    assert changes(raftkit) == []


def test_a_node_that_is_down_or_another_one_is_not_rejoined(raftkit: Any) -> None:
    raftkit.cluster.bind()
    raftkit.cluster.down.add("n3")
    assert raftkit.json("member", "rejoin", "n3", code=4)["error"]["code"] == "UNREACHABLE"
    document = raftkit.json("member", "rejoin", "n3", "--url", "fake://n1", code=10)
    assert "there is n1, not n3" in document["error"]["message"]


@pytest.mark.parametrize("verb", ["recover", "storage info"])
def test_a_source_without_a_store_is_refused(raftkit: Any, verb: str) -> None:
    words = ["recover", "absent"] if verb == "recover" else ["storage", "info", "--id", "absent"]
    assert raftkit.json(*words, code=10)["error"]["hint"]


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_without_an_id_the_hint_names_the_verb_that_was_typed(raftkit: Any, verb: str) -> None:
    hint = raftkit.json("storage", verb, code=9)["error"]["hint"]
    assert hint.startswith(f"name it: raftkit storage {verb} --id n1")
