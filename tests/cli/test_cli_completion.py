"""What a shell completes: verbs, options, and names that there are now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import BashComplete

from raftkit_cli import completion
from raftkit_cli.main import cli
from raftkit_cli.options import Invocation
from raftkit_core.errors import Unreachable

from .test_cli_local_state import make_folder


def completed(raftkit: Any, *words: str) -> list[str]:
    """What stands behind ``words``, of which the last is incomplete."""
    invocation = Invocation()
    invocation.plugins, invocation.endpoints = raftkit.plugins, ("fake://n1",)
    shell = BashComplete(cli, {"obj": invocation}, "raftkit", "_RAFTKIT_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


def test_verbs_and_options_are_completed(raftkit: Any) -> None:
    assert completed(raftkit, "lo") == ["local"]
    assert completed(raftkit, "kv", "c") == ["cas"]
    assert completed(raftkit, "kv", "get", "--cons") == ["--consistency"]
    assert completed(raftkit, "kv", "get", "k", "--consistency", "l") == ["linearizable", "lease"]


def test_members_and_keys_of_the_cluster_are_completed(raftkit: Any) -> None:
    raftkit("kv", "put", "jobs/1", "x")
    raftkit("kv", "put", "other", "x")
    assert completed(raftkit, "kv", "get", "jo") == ["jobs/1"]
    assert completed(raftkit, "leader", "transfer", "") == ["n1", "n2", "n3"]
    assert completed(raftkit, "member", "remove", "n3") == ["n3"]
    assert completed(raftkit, "snapshot", "create", "--node", "n") == ["n1", "n2", "n3"]


def test_a_cluster_that_does_not_answer_completes_nothing_and_says_nothing(raftkit: Any) -> None:
    raftkit.cluster.failure = Unreachable("no node answers")
    assert completed(raftkit, "member", "remove", "") == []


def test_local_nodes_and_contexts_are_completed(raftkit: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "local").save()
    raftkit("context", "set", "prod")
    raftkit("context", "set", "play")
    assert completed(raftkit, "local", "kill", "") == ["n1", "n2", "n3"]
    assert completed(raftkit, "context", "use", "pr") == ["prod"]
    assert completed(raftkit, "--context", "p") == ["play", "prod"]


def test_damaged_files_complete_nothing(raftkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "cluster.json").write_text("{")
    monkeypatch.setenv("RAFTKIT_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config" / "contexts.json").write_text("{")
    assert completed(raftkit, "local", "kill", "") == []
    assert completed(raftkit, "context", "use", "") == []
    assert completion.TIMEOUT_S <= 1


def test_a_url_that_bash_took_apart_is_one_word_again() -> None:
    typed = {"COMP_WORDS": "raftkit\n-e\nhttp\n:\n//127.0.0.1\n:\n7402\nmember\nrem", "COMP_CWORD": "8"}
    completion.rejoin_urls(typed)
    assert typed == {"COMP_WORDS": "raftkit\n-e\nhttp://127.0.0.1:7402\nmember\nrem", "COMP_CWORD": "4"}


def test_a_line_that_is_wrong_is_completed_with_nothing_and_without_words(raftkit: Any, monkeypatch: Any) -> None:
    typed = {"_RAFTKIT_COMPLETE": "bash_complete", "COMP_WORDS": "raftkit\nnonsense\n-", "COMP_CWORD": "2"}
    for name, value in typed.items():
        monkeypatch.setenv(name, value)
    result = raftkit(endpoint=None)
    assert (result.stdout, result.stderr) == ("", "")


def test_the_line_of_the_manual_gives_the_script_for_bash() -> None:
    command = [sys.executable, "-m", "raftkit_cli"]
    found = subprocess.run(
        command, env={"_RAFTKIT_COMPLETE": "bash_source", "PATH": ""}, capture_output=True, text=True, check=True
    )
    assert "complete -o nosort -F _raftkit_completion raftkit" in found.stdout
