"""The tokens file under several hands: what one adds or takes away is not undone by another."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raftkit_core.errors import ConfigError
from raftkit_core.network import tokens as tokens_module
from raftkit_core.network.tokens import changing, new_token, read_tokens, revoke_token

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")


def test_tokens_made_and_revoked_at_the_same_time_are_all_there_or_all_gone(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    for number in range(8):
        new_token(path, f"old{number}", "read")

    def work(number: int) -> list[str]:
        made = [new_token(path, f"new{number}-{step}", "write") for step in range(4)]
        revoke_token(path, f"old{number}")
        return made

    with ThreadPoolExecutor(8) as pool:
        secrets = [secret for made in pool.map(work, range(8)) for secret in made]
    table = read_tokens(path)
    assert {token.name for token in table.tokens} == {f"new{a}-{b}" for a in range(8) for b in range(4)}
    assert all(table.find(secret) is not None for secret in secrets)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"], "nothing is left behind"


def test_who_cannot_change_the_file_in_time_is_told_and_readers_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "LOCK_SECONDS", 0.05)
    path = tmp_path / "tokens"
    new_token(path, "ops", "admin")
    with changing(path):
        with pytest.raises(ConfigError, match="another process"):
            new_token(path, "app", "read")
        with pytest.raises(ConfigError, match="another process"):
            revoke_token(path, "ops")
        assert [token.name for token in read_tokens(path).tokens] == ["ops"]
    new_token(path, "app", "read")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "none")):
        new_token(tmp_path / "none" / "tokens", "ops", "admin")
    assert os.listdir(tmp_path) == []
