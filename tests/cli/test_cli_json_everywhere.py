"""``--json`` on every verb, on success and on failure: one document on stdout, and the right exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from raftkit_cli.main import cli
from raftkit_core import errors


def verbs() -> Iterator[str]:
    """Every command of the tree that is no group, as it is typed."""

    def walk(group: click.Group, path: tuple[str, ...]) -> Iterator[str]:
        context = click.Context(group, **group.context_settings)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from walk(command, (*path, name))
            else:
                yield " ".join((*path, name))

    return walk(cli, ())


SUCCESS = {
    "status": [],
    "cluster init": ["n1=fake://n1", "n2=fake://n2", "n3=fake://n3"],
    "cluster events": [],
    "ui": [],
    "member list": [],
    "member add": ["n4", "fake://n4"],
    "member promote": ["n3"],
    "member remove": ["n3", "--yes"],
    "member rejoin": ["n3", "--yes"],
    "leader show": [],
    "leader transfer": ["n3"],
    "kv put": ["k", "v"],
    "kv get": ["known"],
    "kv delete": ["known"],
    "kv cas": ["known", "value", "other"],
    "kv list": [],
    "kv watch": ["--limit", "1"],
    "bench": ["--duration", "30ms"],
    "check linearizable": ["--operations", "20"],
    "check perf": ["--duration", "200ms"],
    "check history": [str(Path(__file__).parents[1] / "golden" / "raftkit-history-1.jsonl")],
    "snapshot create": [],
    "snapshot save": ["saved.snapshot"],
    "snapshot inspect": ["state.snapshot"],
    "snapshot restore": ["state.snapshot", "--id", "n7", "--yes"],
    "storage info": ["--id", "n1"],
    "storage verify": ["--id", "n1"],
    "storage backup": ["n1.backup", "--id", "n1"],
    "storage restore": ["made.backup", "--data-dir", "elsewhere", "--yes"],
    "storage migrate": ["--id", "n1", "--from", "sqlite:raft.db", "--to", "sqlite:new.db", "--yes"],
    "recover": ["raftkit-data/n1", "--yes"],
    "plugins list": [],
    "plugins show": ["core"],
    "plugins trace": [],
    "plugins new": ["storage", "lmdb"],
    "plugins check": ["sqlite:n1.db", "-k", "test_l4"],
    "doctor": [],
    "version": [],
    "sim": ["--ring", "engine", "--seeds", "1", "--seconds", "2"],
    "certs dev": ["n1", "--host", "n1.example"],
    "certs show": ["certs/known.pem"],
    "token new": ["ops", "--role", "admin"],
    "token list": [],
    "token revoke": ["known"],
    "context list": [],
    "context set": ["prod"],
    "context use": ["known"],
    "context delete": ["known"],
    "local ps": [],
    "local down": [],
    "local logs": [],
}
"""Arguments that succeed against the fake cluster. The verbs of NEED_PROCESSES succeed in test_cli_processes."""

BEFORE = {
    "certs": ["certs", "dev", "known"],
    "token": ["token", "new", "known", "--role", "read"],
    "context": ["context", "set", "known"],
    "kv": ["kv", "put", "known", "value"],
}
"""What must be there for the verbs of a noun to succeed."""

NEED_PROCESSES = {
    "demo": ["--storage", "nope:"],
    "local up": ["--nodes", "99"],
    "local kill": ["n1"],
    "local pause": ["n1"],
    "local resume": ["n1"],
    "local restart": ["n9"],
    "node run": ["-c", "absent.toml"],
}
"""Arguments that fail without a process being started."""


def test_every_verb_has_a_case() -> None:
    assert sorted(verbs()) == sorted([*SUCCESS, *NEED_PROCESSES])


def _local_cluster(tmp_path: Path) -> None:
    from raftkit_cli.cluster.layout import ClusterFolder, LocalCluster

    plan = LocalCluster.plan(
        cluster="local", count=3, ports=[1, 2, 3], storage="sqlite:raft.db", network="http", state_machine="kv"
    )
    ClusterFolder(tmp_path / "local", plan).save()


@pytest.mark.parametrize("verb", SUCCESS)
def test_success_is_one_document(verb: str, raftkit: Any, tmp_path: Path, keeper: Any) -> None:
    _local_cluster(tmp_path)
    if before := BEFORE.get(verb.split()[0]):
        raftkit(*before)
    if verb.split()[0] in ("storage", "snapshot", "recover"):
        keeper.make("n1", snapshot=Path("state.snapshot"))
        raftkit.cluster.snapshot_bytes = Path("state.snapshot").read_bytes()
    if verb == "storage restore":
        raftkit("storage", "backup", "made.backup", "--id", "n1")
    raftkit("kv", "put", "known", "value")
    document = raftkit.json(*verb.split(), *SUCCESS[verb])
    assert document["schema"] == f"raftkit.{verb.replace(' ', '.')}/1"
    assert set(document) == {"schema", "ok", "data"}


@pytest.mark.parametrize(
    "verb",
    [
        verb
        for verb in SUCCESS
        if verb.split()[0] in ("status", "member", "leader", "kv") or verb in ("snapshot create", "snapshot save")
    ],
)
@pytest.mark.parametrize("position", ["before", "after"])
def test_failure_of_the_cluster_is_one_document(verb: str, position: str, raftkit: Any) -> None:
    raftkit.cluster.failure = errors.QuorumNotEnough("1 of 3 voters reachable, 2 needed")
    words = [*verb.split(), *SUCCESS[verb]]
    result = raftkit(*(["--json", *words] if position == "before" else [*words, "--json"]))
    document = json.loads(result.stdout)
    assert result.exit_code == 4
    assert document["schema"] == f"raftkit.{verb.replace(' ', '.')}/1"
    assert document["ok"] is False
    assert document["error"]["code"] == "NO_QUORUM"
    assert document["error"]["message"] == "1 of 3 voters reachable, 2 needed"
    assert document["error"]["hint"]
    assert document["error"]["retryable"] is True
    assert document["error"]["outcome"] == "not_applied"


@pytest.mark.parametrize("verb", NEED_PROCESSES)
def test_failure_before_a_process_starts_is_one_document(verb: str, raftkit: Any, tmp_path: Path) -> None:
    _local_cluster(tmp_path)
    result = raftkit(*verb.split(), *NEED_PROCESSES[verb], "--json", endpoint=None)
    document = json.loads(result.stdout)
    assert result.exit_code not in (0, 1)
    assert document["ok"] is False
    assert document["error"]["hint"]


@pytest.mark.parametrize("verb", [*SUCCESS, *NEED_PROCESSES])
def test_a_usage_error_is_one_document_and_exit_2(verb: str, raftkit: Any) -> None:
    result = raftkit(*verb.split(), "--no-such-option", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert document["schema"] == f"raftkit.{verb.replace(' ', '.')}/1"
    assert document["error"]["code"] == "USAGE"
    assert "--help" in document["error"]["hint"]


@pytest.mark.parametrize("words", [["nosuchverb"], ["kv", "nosuchverb"], ["kv"], []])
def test_an_incomplete_or_unknown_verb_is_one_document_and_exit_2(words: list[str], raftkit: Any) -> None:
    document = raftkit.json(*words, code=2)
    assert document["error"]["code"] == "USAGE"


def test_a_mistyped_verb_names_the_nearest(raftkit: Any) -> None:
    assert "Did you mean 'status'?" in raftkit("statsu").stderr
    assert "Did you mean 'transfer'?" in raftkit("leader", "tranfser").stderr


@pytest.mark.parametrize("verb", [*SUCCESS, *NEED_PROCESSES])
def test_every_verb_accepts_every_shared_option(verb: str, raftkit: Any) -> None:
    shared = ["-e", "fake://x", "--context", "c", "-c", "f.toml", "--token-file", "t", "--timeout", "3s", "-q", "-v"]
    shared += ["--color", "never", "--no-input", "--yes", "-h"]
    result = raftkit(*verb.split(), *shared)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Usage:")


def test_json_after_a_double_dash_is_an_argument(raftkit: Any) -> None:
    result = raftkit("kv", "put", "--", "k", "--json")
    assert result.stdout == "ok  revision 21\n"


def test_notes_and_progress_never_touch_stdout(raftkit: Any) -> None:
    result = raftkit("member", "add", "n4", "fake://n4", "--json")
    assert "entries behind" in result.stderr
    assert json.loads(result.stdout)["ok"] is True


def test_quiet_silences_progress(raftkit: Any) -> None:
    assert raftkit("member", "add", "n4", "fake://n4", "-q").stderr == ""
