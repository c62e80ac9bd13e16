"""What a node tells: one line per change, nothing twice."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest

from raftkit_cli.node_log import NodeLog
from raftkit_cli.output import Output
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.metrics import RaftMetrics, ServerState
from raftkit_core.types.vote import LeaderId

MEMBERS = StoredMembership(None, Membership.of([["n1", "n2"]], {"n1": Node("a"), "n2": Node("b"), "n3": Node("c")}))

STORY = [
    RaftMetrics(id="n1", state=ServerState.LEARNER),
    RaftMetrics(id="n1", state=ServerState.FOLLOWER, membership=MEMBERS),
    RaftMetrics(id="n1", state=ServerState.FOLLOWER, membership=MEMBERS),
    RaftMetrics(id="n1", state=ServerState.CANDIDATE, current_term=1, membership=MEMBERS),
    RaftMetrics(id="n1", state=ServerState.LEADER, current_term=1, current_leader="n1", membership=MEMBERS),
    RaftMetrics(id="n1", state=ServerState.FOLLOWER, current_term=2, membership=MEMBERS),
]


def test_every_change_is_one_line_and_repetition_none(capsys: pytest.CaptureFixture[str]) -> None:
    log = NodeLog("n1", Output())
    for metrics in STORY:
        log.changed(metrics)
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "n1 learner, term 0",
        "n1 learner → follower, term 0",
        "n1 members: {n1 n2} learners n3",
        "n1 follower → candidate, term 1",
        "n1 candidate → LEADER, term 1",
        "n1 leader is n1, term 1",
        "n1 leader → follower, term 2",
        "n1 no leader, term 2",
    ]


def test_a_node_that_is_no_member_is_told_so_and_a_parked_one_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    log = NodeLog("n9", Output())
    log.changed(RaftMetrics(id="n9", state=ServerState.LEARNER, membership=MEMBERS, needs_rejoin="another store"))
    told = capsys.readouterr().err
    assert "n9 members: {n1 n2} learners n3; n9 is not one of them\n" in told
    assert "n9 parked, needs to rejoin: another store; from any node: raftkit member rejoin n9\n" in told


def test_a_node_that_moved_says_once_how_the_members_learn_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = {"n1": Node("http://127.0.0.1:7401"), "n2": Node("http://127.0.0.1:7402")}
    seen = RaftMetrics(
        id="n1", state=ServerState.FOLLOWER, membership=StoredMembership(None, Membership.of([["n1", "n2"]], nodes))
    )
    for address, told in (("http://127.0.0.1:7401", 0), ("http://127.0.0.1:7409", 1)):
        log = NodeLog("n1", Output())
        log.address = address
        log.changed(seen)
        log.changed(seen)
        moved = "the members call this node at http://127.0.0.1:7401, but it is at http://127.0.0.1:7409; from any"
        text = capsys.readouterr().err
        assert text.count(f"n1 {moved} node: raftkit member rejoin n1 --url http://127.0.0.1:7409\n") == told


def test_entries_that_are_written_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = NodeLog("n1", Output())
    log.changed(STORY[-1])
    capsys.readouterr()
    log.changed(
        RaftMetrics(
            id="n1",
            state=ServerState.FOLLOWER,
            current_term=2,
            membership=MEMBERS,
            last_log_id=LogId(LeaderId(2, "n2"), 9),
        )
    )
    assert capsys.readouterr().err == ""


def test_with_json_each_event_is_a_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    log = NodeLog("n1", Output(as_json=True))
    log.ready("http://127.0.0.1:7401", "demo")
    log.changed(STORY[3])
    captured = capsys.readouterr()
    documents = [json.loads(line) for line in captured.out.splitlines()]
    assert [document["data"]["event"] for document in documents] == ["ready", "role", "membership"]
    assert {document["schema"] for document in documents} == {"raftkit.node.event/1"}
    assert captured.err == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_a_log_that_cannot_be_written_is_no_reason_to_stop(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    monkeypatch.setattr("sys.stderr", Full())
    log = NodeLog("n1", Output(as_json=as_json))
    log.changed(STORY[1])
    log.say("nobody hears this")


def test_no_password_of_a_url_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    log = NodeLog("n1", Output())
    log.starting(Path("d"), "redis://me:c4nary@db:6379/0?password=c4nary", "http://127.0.0.1:7401?secret=c4nary")
    log.ready("http://127.0.0.1:7401?secret=c4nary", "default")
    told = capsys.readouterr()
    assert "c4nary" not in told.out + told.err
    assert "db:6379" in told.err
