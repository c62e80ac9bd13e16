"""Certificates and tokens from the command line: what is written, where to, and what is never shown."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from raftkit_core.network.tokens import read_tokens
from raftkit_core.plugins.url import holds_secret


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_certs_dev_makes_a_ca_once_and_files_only_the_owner_can_read(raftkit: Any, here: Path) -> None:
    first = raftkit.json("certs", "dev", "n1", "n2", "--host", "node.example")["data"]
    assert first["ca_made"]
    ca = (here / "certs/ca.pem").read_bytes()
    again = raftkit.json("certs", "dev", "n3")["data"]
    assert not again["ca_made"]
    assert (here / "certs/ca.pem").read_bytes() == ca
    assert {path.name for path in (here / "certs").iterdir()} == {
        *("ca.pem", "ca.key", "n1.pem", "n1.key", "n2.pem", "n2.key", "n3.pem", "n3.key")
    }
    for path in (here / "certs").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    context = ssl.create_default_context(cafile=here / "certs/ca.pem")
    context.load_cert_chain(here / "certs/n3.pem", here / "certs/n3.key")
    shown = raftkit.json("certs", "show", "certs/n1.pem")["data"]["certificates"][0]
    assert shown["names"] == ["raftkit:node:n1", "n1", "node.example", "localhost", "127.0.0.1", "::1"]
    assert 800 < shown["days_left"] < 826


def test_half_a_ca_is_not_replaced(raftkit: Any, here: Path) -> None:
    raftkit("certs", "dev", "n1")
    (here / "certs/ca.key").unlink()
    assert "ca.key is missing" in raftkit.json("certs", "dev", "n2", code=9)["error"]["message"]
    assert not (here / "certs/n2.pem").exists()
    assert (
        "neither a host name"
        in raftkit.json("certs", "dev", "n1", "--host", "a b", "--out", "b", code=9)["error"]["message"]
    )
    assert raftkit("certs", "dev", "../n1").exit_code == 2


def test_a_token_goes_to_a_file_of_the_owner_or_is_shown_once(raftkit: Any, here: Path) -> None:
    made = raftkit("token", "new", "ops", "--role", "admin")
    secret = (here / "ops.token").read_text().strip()
    assert secret not in made.stdout + made.stderr
    assert (here / "ops.token").stat().st_mode & 0o777 == 0o600
    found = read_tokens(here / "tokens").find(secret)
    assert found is not None
    assert (found.name, found.role) == ("ops", "admin")
    shown = raftkit.json("token", "new", "app", "--role", "read", "--show")["data"]
    assert read_tokens(here / "tokens").find(shown["token"]) is not None
    assert not (here / "app.token").exists()
    assert "already" in raftkit.json("token", "new", "app", "--role", "read", code=9)["error"]["message"]
    listed = raftkit("token", "list")
    assert secret not in listed.stdout
    assert raftkit.json("token", "list")["data"]["entries"] == [
        {"name": "ops", "role": "admin"},
        {"name": "app", "role": "read"},
    ]
    raftkit("token", "revoke", "ops")
    assert read_tokens(here / "tokens").find(secret) is None


def test_an_existing_file_is_never_overwritten_by_a_token(raftkit: Any, here: Path) -> None:
    (here / "ops.token").write_text("mine")
    assert "there already" in raftkit.json("token", "new", "ops", "--role", "read", code=9)["error"]["message"]
    assert (here / "ops.token").read_text() == "mine"
    assert not (here / "tokens").exists()


def test_the_tokens_file_of_the_configuration_is_the_default(raftkit: Any, here: Path) -> None:
    (here / "raftkit.toml").write_text('[security]\ntokens = "etc-tokens"\n')
    raftkit("token", "new", "ops", "--role", "read")
    assert (here / "etc-tokens").exists()


def test_a_context_brings_its_ca_and_its_token(raftkit: Any, here: Path) -> None:
    (here / "t").write_text("raftkit_canary\n")
    raftkit("context", "set", "prod", "--cacert", "ca.pem", "--token-file", "t")
    (here / "elsewhere").mkdir()
    status = raftkit("status", "--context", "prod", "-vv", endpoint=None)
    assert status.exit_code == 0
    assert raftkit.cluster.options[-1]["token"] == "raftkit_canary"
    assert raftkit.cluster.options[-1]["ca"] == here / "ca.pem"
    assert "canary" not in status.stdout + status.stderr
    contexts = raftkit("context", "list", "--json").stdout
    assert str(here / "ca.pem") in contexts
    assert "canary" not in contexts


@pytest.mark.parametrize("option", ["--token", "--password"])
def test_no_secret_is_taken_from_the_command_line(raftkit: Any, option: str) -> None:
    """Everybody on a machine can read the arguments of a process."""
    assert raftkit("status", option, "x").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("node", "run", "--id", "n1", "--storage", "redis://me:c4nary@db:6379/0?prefix=n1"),
        ("node", "run", "--id", "n1", "--state-machine", "rediss-kv://:c4nary@db/0"),
        ("node", "run", "--id", "n1", "--initial-cluster", "n1=http://127.0.0.1:1,n2=tcp://h:1?token=c4nary"),
        ("local", "up", "--storage", "redis://me:c4nary@db/0?prefix={id}"),
        ("storage", "info", "--id", "n1", "--storage", "redis://db/0?password=c4nary"),
        ("storage", "migrate", "--id", "n1", "--from", "sqlite:a.db", "--to", "redis://u:c4nary@db/0", "--yes"),
        ("plugins", "check", "redis://u:c4nary@db/0"),
        ("member", "add", "n4", "tcp://h:1?api_key=c4nary"),
    ],
    ids=" ".join,
)
def test_a_password_in_a_url_on_the_command_line_is_refused_unseen(raftkit: Any, arguments: tuple[str, ...]) -> None:
    for extra in ((), ("--json",)):
        refused = raftkit(*arguments, *extra)
        assert refused.exit_code == 2
        told = refused.stdout + refused.stderr
        assert "c4nary" not in told
        assert "password_env" in told or "raftkit.toml" in told


def test_where_a_password_is_may_be_said_and_data_may_look_like_one(raftkit: Any) -> None:
    assert holds_secret("redis://u:p@h/0")
    assert holds_secret("redis://h/0?a=b&Password=p")
    for text in ("redis://u@h/0?password_env=PW", "redis://h/0?password_file=/run/pw&password=", "sqlite:a=b@c.db"):
        assert not holds_secret(text), text
    raftkit("kv", "put", "site", "https://user:pass@example/?token=x")
    assert raftkit.json("kv", "get", "site")["ok"]
