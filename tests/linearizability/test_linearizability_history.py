"""Recording, and the file: what was written is what is read, and what is no history is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from histories import get, put
from msgspec import UNSET

from raftkit_core.errors import ForwardToLeader, OutcomeUnknown, PreconditionFailed
from raftkit_core.testing.linearizability import DurableWrite, Header, History, judge
from raftkit_core.types.kv import KeyValue, WriteResult


def recorded() -> History:
    history = History(header=Header(seed=7, commit="abc", config={"nodes": 3}))
    call = history.call("a", "put", "k", now=1.0, value=b"\x00\xff")
    call.ok(2.0, WriteResult(revision=5, previous_revision=0))
    history.call("a", "get", "k", now=3.0).ok(4.0, KeyValue(key="k", value=b"\x00\xff", revision=5))
    history.call("a", "get", "other", now=4.0).ok(5.0, None)
    history.call("b", "cas", "k", now=5.0, expected=None, value=b"x").raised(6.0, PreconditionFailed("no"))
    history.call("b", "put", "k", now=6.0, value="y").raised(7.0, ForwardToLeader("not here"))
    history.call("b", "delete", "k", now=7.0, if_revision=5).raised(8.0, OutcomeUnknown("who knows"))
    history.call("c", "put", "k", now=8.0, value="z")
    return history


def test_a_recorded_history_says_what_became_of_every_call() -> None:
    outcomes = [(operation.kind, operation.outcome) for operation in recorded().operations]
    assert outcomes == [
        ("put", "ok"),
        ("get", "ok"),
        ("get", "ok"),
        ("cas", "refused"),
        ("put", "failed"),
        ("delete", "unknown"),
        ("put", "unknown"),  # never ended
    ]
    absent = recorded().operations[2]
    assert (absent.found, absent.revision) == (None, 0)
    assert judge(recorded()).is_pass


def test_a_call_ends_once() -> None:
    history = History()
    call = history.call("a", "put", "k", now=0, value="1")
    call.ok(1)
    with pytest.raises(AssertionError, match="ends once"):
        call.unknown(2)


@pytest.mark.parametrize("durable", [None, [], [DurableWrite(index=5, kind="put", key="k", value="\x00\xff")]])
def test_a_file_gives_back_what_was_saved(durable: list[DurableWrite] | None, tmp_path: Path) -> None:
    history = recorded()
    history.durable = durable
    history.save(tmp_path / "history.jsonl")
    loaded = History.load(tmp_path / "history.jsonl")
    assert loaded.operations == history.operations
    assert loaded.durable == durable
    assert (loaded.header.seed, loaded.header.commit, loaded.header.config) == (7, "abc", {"nodes": 3})


def test_absent_and_not_known_stay_two_things_in_a_file(tmp_path: Path) -> None:
    lost = put("a", "1", 0, 1, outcome="unknown")
    History([get("a", None, 2, 3), lost]).save(tmp_path / "h.jsonl")
    absent, unknown = History.load(tmp_path / "h.jsonl").operations
    assert absent.found is None
    assert unknown.found is UNSET


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("nonsense\n", "line 1"),
        ('{"line":"op"}\n', "line 1"),
        ('{"line":"header","format":"raftkit-history/9"}\n', "this reads raftkit-history/1"),
        ('{"line":"header"}\n{"line":"header"}\n', "line 2"),
        (
            '{"line":"op","client":"a","kind":"get","key":"k","called":1,"returned":2,"outcome":"ok"}\n',
            "the header is the first line",
        ),
        ('{"line":"header"}\n{"line":"op","client":"a","kind":"fly"}\n', "line 2"),
    ],
)
def test_what_is_no_history_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        History.load(path)


def test_the_format_is_pinned_by_a_file(tmp_path: Path) -> None:
    golden = Path(__file__).resolve().parents[1] / "golden" / "raftkit-history-1.jsonl"
    history = History.load(golden)
    assert judge(history).is_pass
    history.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == golden.read_bytes()
