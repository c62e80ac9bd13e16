"""``raftkit check``: records against a cluster behind the client hook, judges, keeps what is wrong, and says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raftkit_core import errors
from raftkit_core.testing.linearizability import History, Operation
from raftkit_core.types.kv import KeyValue

CHECK = ("check", "linearizable", "--operations", "60", "--seed", "7")


def test_a_correct_cluster_passes_and_its_keys_are_removed(raftkit: Any) -> None:
    raftkit("kv", "put", "mine", "stays")
    result = raftkit(*CHECK)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("LINEARIZABLE  6")
    assert "seed 7" in result.stderr
    assert set(raftkit.cluster.keys) == {"mine"}
    assert not list(Path.cwd().iterdir())


def test_the_document_says_what_was_done(raftkit: Any) -> None:
    data = raftkit.json(*CHECK)["data"]
    assert data["verdict"] == "linearizable"
    assert data["operations"] >= 60
    assert data["outcomes"]["ok"] > 30
    assert (data["findings"], data["undecided"], data["seed"], data["history"]) == ([], [], 7, None)
    assert data["operations_per_second"] > 0


def test_clients_enter_by_every_member(raftkit: Any) -> None:
    raftkit.json(*CHECK, "--clients", "3")
    firsts = {endpoints[0] for endpoints in raftkit.cluster.endpoints}
    assert {"fake://n1", "fake://n2", "fake://n3"} <= firsts


def test_a_saved_history_is_judged_again(raftkit: Any) -> None:
    raftkit.json(*CHECK, "--save", "h.jsonl")
    history = History.load(Path("h.jsonl"))
    assert history.header.seed == 7
    assert {operation.client for operation in history.operations} >= {"c0", "c5", "final"}
    data = raftkit.json("check", "history", "h.jsonl", endpoint=None)["data"]
    assert (data["verdict"], data["operations"]) == ("linearizable", len(history))


@pytest.fixture
def forgetful(raftkit: Any, fake_client: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster answers every third read with what its key held at first."""
    first: dict[str, KeyValue | None] = {}
    asked: list[str] = []

    async def kv_get(self: Any, key: str, *, consistency: str = "linearizable") -> KeyValue | None:
        found = self._called("kv_get", key).keys.get(key)
        first.setdefault(key, found)
        asked.append(key)
        return first[key] if len(asked) % 3 == 0 else found

    monkeypatch.setattr(type(fake_client), "kv_get", kv_get)
    return raftkit


def test_a_cluster_that_forgets_is_exit_5_and_the_proof_is_kept(forgetful: Any) -> None:
    document = forgetful.json(*CHECK, code=5)
    assert document["error"]["code"] == "NOT_LINEARIZABLE"
    assert document["data"]["verdict"] == "violation"
    assert any("a stale read" in found["message"] for found in document["data"]["findings"])
    kept = document["data"]["history"]
    assert kept in document["error"]["hint"]
    again = forgetful("check", "history", kept, endpoint=None)
    assert again.exit_code == 5
    assert "NOT LINEARIZABLE" in again.stderr
    assert "a stale read" in again.stderr


def test_unknown_outcomes_are_not_violations(raftkit: Any) -> None:
    lost = errors.OutcomeUnknown("who knows")
    raftkit.cluster.put_failures = [(lost, True), (lost, False), (errors.QuorumNotEnough("no"), False)] * 4
    data = raftkit.json(*CHECK)["data"]
    assert data["outcomes"]["unknown"] == 8
    assert data["outcomes"]["failed"] == 4
    assert data["verdict"] == "linearizable"


def test_a_write_that_comes_back_to_life_is_found(raftkit: Any) -> None:
    raftkit.cluster.put_failures = [(errors.QuorumNotEnough("surely not"), True)] * 3
    document = raftkit.json(*CHECK, code=5)
    assert any("failed for certain" in found["message"] for found in document["data"]["findings"])


def test_a_search_out_of_budget_is_exit_5_and_says_nobody_knows(raftkit: Any) -> None:
    def operation(client: str, kind: Any, called: float, returned: float, **more: Any) -> Operation:
        return Operation(client=client, kind=kind, key="k", called=called, returned=returned, outcome="ok", **more)

    writes = [operation(f"c{n}", "put", 0, 10, value=f"{n}") for n in range(10)]
    reads = [operation("a", "cas", 11 + 2 * n, 12 + 2 * n, expected=f"{n}", value="x") for n in range(2)]
    History([*writes, *reads]).save(Path("hard.jsonl"))
    document = raftkit.json("check", "history", "hard.jsonl", "--budget", "1000", code=5)
    assert document["error"]["code"] == "UNDECIDED"
    assert document["data"]["undecided"] == ["k"]
    assert raftkit.json("check", "history", "hard.jsonl", code=5)["error"]["code"] == "NOT_LINEARIZABLE"


def test_a_check_in_which_nothing_was_answered_is_no_pass(
    raftkit: Any, fake_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_args: Any, **_keywords: Any) -> Any:
        raise errors.QuorumNotEnough("1 of 3 voters reachable")

    for name in ("kv_get", "kv_put", "kv_delete", "kv_cas"):
        monkeypatch.setattr(type(fake_client), name, refuse)
    monkeypatch.setattr("raftkit_cli.verbs.check.FINAL_S_MIN", 0.1)
    document = raftkit.json("check", "linearizable", "--operations", "6", "--timeout", "10ms", code=5)
    assert document["error"]["code"] == "CHECK_FAILED"
    assert "nothing was checked" in document["error"]["message"]


def test_an_unreachable_cluster_and_a_refused_token_are_what_they_are_elsewhere(raftkit: Any) -> None:
    raftkit.cluster.failure = errors.Unreachable("connection refused")
    assert raftkit.json(*CHECK, code=4)["error"]["code"] == "UNREACHABLE"
    raftkit.cluster.failure = errors.AccessDenied("who are you")
    assert raftkit.json(*CHECK, code=7)["error"]["code"] == "ACCESS_DENIED"


def test_what_is_no_history_is_a_usage_error_that_names_the_line(raftkit: Any) -> None:
    Path("h.jsonl").write_text("nonsense\n")
    document = raftkit.json("check", "history", "h.jsonl", code=2)
    assert "line 1" in document["error"]["message"]
    assert "--save" in document["error"]["hint"]


def test_progress_is_told_on_stderr(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkit_cli.verbs.check.PROGRESS_S", 0.02)
    result = raftkit("check", "linearizable", "--duration", "100ms", "--json")
    assert "operations (" in result.stderr
    assert json.loads(result.stdout)["ok"] is True
