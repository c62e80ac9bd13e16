"""``raftkit bench`` and ``raftkit check perf``: measure a cluster behind the client hook, and say what was found."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_cli.load import Load
from raftkit_core.errors import QuorumNotEnough


def test_bench_measures_writes_and_removes_its_keys(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkit_cli.verbs.bench.PROGRESS_S", 0.02)
    raftkit("kv", "put", "mine", "stays")
    data = raftkit.json("bench", "--duration", "60ms", "--callers", "3")["data"]
    assert (data["operation"], data["callers"], data["errors"]) == ("put", 3, {})
    assert data["operations"] > 3
    assert data["operations_per_second"] > 0
    assert data["latency_ms"]["p50"] <= data["latency_ms"]["p99"] <= data["latency_ms"]["max"]
    assert set(raftkit.cluster.keys) == {"mine"}


def test_a_bench_that_is_interrupted_shows_what_it_measured_and_removes_its_keys(
    raftkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(self: Load, call: Any, told: Any, every_s: float) -> None:
        await call(0)
        self.latencies_ms, self.took_s = [2.0, 4.0], 0.5
        raise KeyboardInterrupt

    monkeypatch.setattr(Load, "run", run)
    result = raftkit("bench", "--duration", "1m")
    assert result.exit_code == 130
    assert "2 writes, 84 B each and each a request, in 0.5 s" in result.stdout
    assert not raftkit.cluster.keys
    assert raftkit.json("bench", code=130)["error"]["code"] == "INTERRUPTED"


@pytest.mark.parametrize("words", [("status", "--watch"), ("kv", "watch"), ("cluster", "events", "--follow")])
def test_a_verb_that_only_looks_ends_without_words(raftkit: Any, words: tuple[str, ...]) -> None:
    raftkit.cluster.failure = KeyboardInterrupt()
    result = raftkit(*words)
    assert (result.exit_code, result.stderr.strip()) == (130, "")


@pytest.mark.parametrize("operation", ["get", "lease", "stale"])
def test_bench_measures_reads(raftkit: Any, operation: str) -> None:
    result = raftkit("bench", "--operation", operation, "--duration", "30ms")
    assert result.exit_code == 0, result.stderr
    assert "a second" in result.stdout
    assert "p99.9" in result.stdout
    assert not raftkit.cluster.keys


def test_a_rate_is_kept(raftkit: Any) -> None:
    data = raftkit.json("bench", "--duration", "200ms", "--callers", "4", "--rate", "100")["data"]
    assert 4 <= data["operations"] <= 40


def test_perf_says_pass_and_what_was_looked_at(raftkit: Any) -> None:
    data = raftkit.json("check", "perf", "--duration", "300ms")["data"]
    assert [check["ok"] for check in data["checks"]] == [True, True, True]
    assert data["rate"] == 150


def test_perf_says_fail_when_the_load_is_not_carried(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkit_cli.verbs.check.PERF_LOADS", {"s": (2, 10_000_000.0)})
    document = raftkit.json("check", "perf", "--duration", "50ms", code=5)
    assert document["error"]["code"] == "CHECK_FAILED"
    assert document["data"]["checks"][0]["ok"] is False


def test_failed_calls_are_counted_by_code(raftkit: Any) -> None:
    raftkit.cluster.put_failures += [(None, True), (None, True), (QuorumNotEnough("no quorum"), False)]
    data = raftkit.json("bench", "--duration", "60ms", "--callers", "2")["data"]
    assert data["errors"] == {"NO_QUORUM": 1}
