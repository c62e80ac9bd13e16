"""Mistakes that are made at a terminal: what is said names what is wrong, and what to type instead."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.endpoints import all_contexts
from raftkit_cli.node_log import NodeLog
from raftkit_cli.output import Output
from raftkit_core.errors import AccessDenied, StorageFull, UnknownScheme, Unreachable
from raftkit_core.plugins import LoadedPlugins


@pytest.mark.parametrize(
    "words", ["certs dev n1 --out a-file/certs", "node run --id n1 --data-dir a-file/n1 --network memory:mistakes"]
)
def test_a_place_that_cannot_be_written_is_no_unexpected_error(raftkit: Any, words: str) -> None:
    Path("a-file").touch()
    error = raftkit.json(*words.split(), code=9)["error"]
    assert "a-file" in error["message"]
    assert "Not a directory" in error["message"]
    assert "check that its folder exists and that this user may write there" in error["hint"]


def test_a_certificate_that_is_none_is_not_answered_with_the_flags_of_a_node(raftkit: Any) -> None:
    Path("n1.pem").write_text("nothing")
    for name in ("n1.pem", "n2.pem"):
        assert "raftkit certs dev" in raftkit.json("certs", "show", name, code=9)["error"]["hint"]


def test_a_backup_and_a_snapshot_are_told_apart(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1", snapshot=Path("state.snapshot"))
    raftkit.json("storage", "backup", "n1.backup", "--id", "n1")
    wrong = raftkit.json("snapshot", "inspect", "n1.backup", code=10)["error"]
    assert "a backup of a store, no snapshot" in wrong["message"]
    assert wrong["hint"] == "raftkit storage restore FILE"
    wrong = raftkit.json("storage", "restore", "state.snapshot", "--id", "n2", code=10)["error"]
    assert "a snapshot, no backup of a store" in wrong["message"]
    assert wrong["hint"] == "raftkit snapshot restore FILE"


def test_a_new_cluster_from_a_snapshot_says_the_whole_command_that_starts_it(raftkit: Any, keeper: Any) -> None:
    keeper.make("n1", snapshot=Path("state.snapshot"))
    words = ["--id", "n1", "--cluster", "copy", "--data-dir", "my copy", "--network", "http://127.0.0.1:7411"]
    result = raftkit("snapshot", "restore", "state.snapshot", *words, "--yes")
    assert (
        "start it: raftkit node run --id n1 --cluster copy --data-dir 'my copy' --network http://127.0.0.1:7411\n"
        in result.stderr
    )


def test_recover_says_how_its_folders_are_named(raftkit: Any) -> None:
    error = raftkit.json("recover", "n1=nowhere", code=10)["error"]
    assert error["message"] == "there is no folder nowhere"
    assert "ID=FOLDER" in error["hint"]


def test_a_key_that_is_no_text_is_a_mistake_of_the_command_line(raftkit: Any) -> None:
    error = raftkit.json("kv", "get", "a\udcff", code=2)["error"]
    assert "a key is text" in error["message"]
    assert not raftkit.cluster.calls


def test_whoever_named_a_token_is_told_that_it_is_not_known(raftkit: Any) -> None:
    raftkit.cluster.failure = AccessDenied("a valid token is needed", hint="name its file: --token-file FILE")
    assert raftkit.json("status", code=7)["error"]["hint"] == "name its file: --token-file FILE"
    Path("ops.token").write_text("raftkit_x\n")
    error = raftkit.json("--token-file", "ops.token", "status", code=7)["error"]
    assert error["message"] == "the node does not know the token in ops.token"
    assert "raftkit token new NAME" in error["hint"]


def test_a_cluster_elsewhere_is_not_started_by_local_up(raftkit: Any) -> None:
    raftkit.json("context", "set", "prod", endpoint="fake://n1,fake://n2")
    raftkit.cluster.failure = Unreachable("no node answers", hint="start a cluster: raftkit local up")
    hint = raftkit.json("status", endpoint=None, code=4)["error"]["hint"]
    assert "raftkit local" not in hint
    assert "raftkit context list" in hint


def test_without_a_context_the_list_says_how_to_make_one(raftkit: Any) -> None:
    assert all_contexts()[1] == {}
    assert raftkit("context", "list").stdout == ""
    assert "raftkit context set NAME -e URL" in raftkit("context", "list").stderr


def test_a_full_disk_is_told_in_words_and_with_v_where_it_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        for verbose, is_traced in ((0, False), (1, True)):
            NodeLog("n1", Output(verbose=verbose)).capture_warnings()
            full = StorageFull("n1/raft.db: no space is left")
            logging.getLogger("raftkit.runtime").critical("node n1 stopped: %s", full, exc_info=full)
            told = capsys.readouterr().err
            assert "CRITICAL raftkit.runtime: node n1 stopped: n1/raft.db: no space is left" in told
            assert ("StorageFull" in told) is is_traced
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])


def test_everything_that_is_missing_is_installed_by_one_command(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_plugins: object, kind: str, scheme: str) -> None:
        raise UnknownScheme(f"no {kind} is called {scheme}", hint=f"pip install raftkit-{scheme}")

    monkeypatch.setattr(LoadedPlugins, "find", find)
    error = raftkit.json("demo", code=9)["error"]
    assert error["message"] == "no storage is called sqlite; no network is called http"
    assert error["hint"] == "pip install raftkit-sqlite raftkit-http"
