"""What the verbs ask of a cluster and what they print, against the fake one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import click
import pytest

from raftkit_cli.main import cli
from raftkit_core import errors, hookimpl


def test_status_shows_every_node_and_one_verdict(raftkit: Any) -> None:
    assert raftkit("status").stdout == (
        "demo  healthy  leader n2  term 7\n"
        "3 of 3 voters answer, tolerates 1 more failure\n"
        "NODE  ROLE      UP  TERM  LAST  COMMIT  APPLIED  BEHIND     SEEN   SNAP  SIZE\n"
        "n1    follower  ok  7     20    20      20       0          12 ms  -     96 KiB\n"
        "n2    LEADER    ok  7     20    20      20       -          -      -     96 KiB\n"
        "n3    follower  ok  7     18    18      18       2 / 1.4 s  12 ms  -     96 KiB\n"
    )


def test_status_fits_a_terminal_of_80_columns(raftkit: Any) -> None:
    assert max(len(line) for line in raftkit("status").stdout.splitlines()) <= 80


def test_status_keeps_an_unreachable_node_in_the_list(raftkit: Any) -> None:
    raftkit.cluster.down = {"n1"}
    data = raftkit.json("status")["data"]
    assert [(node["id"], node["reachable"]) for node in data["nodes"]] == [("n1", False), ("n2", True), ("n3", True)]
    assert data["nodes"][0]["role"] == "unknown"
    assert data["nodes"][0]["last_log_index"] is None
    assert data["nodes"][0]["error"] == "fake://n1: connection refused"
    assert data["state"] == "degraded"
    assert data["verdict"] == "2 of 3 voters answer, tolerates 0 more failures; n1 does not answer"
    assert "n1    ?         NO  -" in raftkit("status").stdout


def test_how_far_behind_a_node_is_that_its_leader_never_heard_is_not_known(raftkit: Any) -> None:
    raftkit.cluster.down = raftkit.cluster.unheard = {"n1"}
    assert raftkit.json("status")["data"]["nodes"][0]["lag_entries"] is None
    assert "n1    ?         NO  -     -     -       -        -          -" in raftkit("status").stdout


def test_status_names_fixed_for_scripts(raftkit: Any) -> None:
    data = raftkit.json("status")["data"]
    assert data["leader"] == "n2"
    assert data["term"] == 7
    assert {"id", "role", "reachable", "last_log_index", "committed", "applied"} <= set(data["nodes"][0])


def test_status_without_a_quorum_says_who_is_missing(raftkit: Any) -> None:
    raftkit.cluster.down = {"n2", "n3"}
    data = raftkit.json("status")["data"]
    assert data["state"] == "no quorum"
    assert data["verdict"] == "1 of 3 voters answer, 2 needed; missing: n2, n3"
    # The one that is left may still believe in the leader it cannot hear.
    assert "no quorum" in raftkit("status").stdout


def test_a_voter_with_another_store_than_the_membership_names_does_not_count(raftkit: Any) -> None:
    """It answers, and yet it can elect nobody: an operator must not be told to wait for an election."""
    raftkit.cluster.bind()
    raftkit.cluster.store_ids["n3"] = "9" * 32
    data = raftkit.json("status")["data"]
    assert data["state"] == "degraded"
    assert "2 of 3 voters answer, tolerates 0 more" in data["verdict"]
    assert "raftkit member rejoin n3" in data["verdict"]
    raftkit.cluster.store_ids["n2"] = "8" * 32
    raftkit.cluster.leader = None
    data = raftkit.json("status")["data"]
    assert data["state"] == "no quorum"
    assert data["verdict"].endswith("missing: n2, n3; n2 lost its store; n3 lost its store")
    assert "raftkit recover" in raftkit("status").stderr


def test_status_of_a_cluster_without_a_leader(raftkit: Any) -> None:
    raftkit.cluster.leader = None
    data = raftkit.json("status")["data"]
    assert data["leader"] is None
    assert data["state"] == "no leader"


def test_status_of_a_node_in_no_cluster_says_how_to_begin_one(raftkit: Any) -> None:
    raftkit.cluster.leader, raftkit.cluster.members = None, {}
    result = raftkit("status")
    assert "not initialized" in result.stdout
    assert "raftkit cluster init" in result.stderr
    assert [node["id"] for node in raftkit.json("status")["data"]["nodes"]] == ["n1"]


def test_colours_appear_only_when_asked_for(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in raftkit("status").stdout
    assert "\x1b[" in raftkit("status", "--color", "always").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in raftkit("status").stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in raftkit("status").stdout


def test_put_get_and_delete(raftkit: Any) -> None:
    assert raftkit("kv", "put", "greeting", "hello world").stdout == "ok  revision 21\n"
    assert raftkit("kv", "get", "greeting").stdout == "hello world"
    assert raftkit.json("kv", "get", "greeting")["data"] == {"key": "greeting", "value": "hello world", "revision": 21}
    assert raftkit("kv", "delete", "greeting").exit_code == 0
    assert raftkit("kv", "get", "greeting").exit_code == 3
    assert raftkit("kv", "delete", "greeting").exit_code == 3


def test_any_bytes_go_in_and_come_out(raftkit: Any) -> None:
    content = bytes(range(256))
    assert raftkit("kv", "put", "binary", "-", stdin=content).exit_code == 0
    assert raftkit("kv", "get", "binary").stdout_bytes == content
    data = raftkit.json("kv", "get", "binary")["data"]
    assert base64.b64decode(data["value_b64"]) == content
    assert "value" not in data


def test_if_revision_and_cas_exit_3_when_they_do_not_hold(raftkit: Any) -> None:
    assert raftkit("kv", "put", "k", "a", "--if-revision", "0").exit_code == 0
    assert raftkit("kv", "put", "k", "b", "--if-revision", "0").exit_code == 3
    assert raftkit("kv", "cas", "k", "wrong", "b").exit_code == 3
    assert raftkit("kv", "cas", "k", "a", "b").exit_code == 0
    assert raftkit("kv", "cas", "new", "x", "--absent").exit_code == 0
    assert raftkit("kv", "cas", "k", "x", "y", "--absent").exit_code == 2


def test_list_goes_on_through_all_pages(raftkit: Any) -> None:
    for number in range(2050):
        raftkit.cluster.keys[f"k{number:04}"] = _item(f"k{number:04}")
    data = raftkit.json("kv", "list", "k", "--keys-only")["data"]
    assert data["count"] == 2050
    assert [name for name, _ in raftkit.cluster.calls].count("kv_list") == 3
    assert raftkit.json("kv", "list", "k", "--limit", "5", "--after", "k0003")["data"]["items"][0]["key"] == "k0004"


def _item(key: str) -> Any:
    from raftkit_core.types.kv import KeyValue

    return KeyValue(key=key, value=b"v", revision=1)


def test_consistency_is_passed_on(raftkit: Any) -> None:
    raftkit("kv", "get", "k", "--consistency", "stale")
    assert raftkit.cluster.calls[-1] == ("kv_get", ("k", "stale"))


def test_member_add_waits_until_the_learner_has_caught_up(raftkit: Any) -> None:
    result = raftkit("member", "add", "n4", "fake://n4")
    assert "n4: 30 entries behind n2" in result.stderr
    assert "n4: 4 entries behind n2" in result.stderr
    assert result.stdout == "n4 is a learner and has caught up. Make it a voter: raftkit member promote n4\n"


def test_member_add_makes_a_voter_once_it_has_caught_up(raftkit: Any) -> None:
    result = raftkit("member", "add", "n4", "fake://n4", "--voter")
    assert "after : 4 voters (n1, n2, n3, n4), quorum 3, tolerates 1 failed" in result.stderr
    assert result.stdout == "n4 has caught up and is a voter\n"
    assert ("change_membership", (["n1", "n2", "n3", "n4"], True, False)) in raftkit.cluster.calls
    both = raftkit.json("member", "add", "n5", "fake://n5", "--voter", "--no-wait", code=2)["error"]
    assert "leave out --no-wait" in both["message"]
    raftkit.cluster.learner_behind = [5000]
    raftkit.json("member", "add", "n5", "fake://n5", "--voter", "--wait", "200ms", code=124)
    assert raftkit.cluster.members["n5"][1] is False, "what does not catch up gets no vote"


def test_member_add_that_does_not_catch_up_is_a_timeout_that_says_what_next(raftkit: Any) -> None:
    raftkit.cluster.learner_behind = [5000]
    document = raftkit.json("member", "add", "n4", "fake://n4", "--wait", "300ms", code=124)
    assert "5000 entries behind" in document["error"]["message"]
    assert "raftkit member promote n4" in document["error"]["hint"]


def test_members_are_changed_through_a_node_that_was_removed_or_cut_off(raftkit: Any) -> None:
    raftkit.cluster.cut_off = {"n1"}  # it answers first, and knows no leader
    assert raftkit("member", "list").stdout.splitlines()[2].split() == ["n2", "voter", "leader", "fake://n2"]
    assert raftkit.json("member", "remove", "n3", "--yes")["data"]["voters_after"] == ["n1", "n2"]
    assert raftkit.json("leader", "show")["data"] == {
        "leader": "n2",
        "term": 7,
        "address": "fake://n2",
        "asked": "n1",
    }


def test_a_new_member_that_does_not_run_is_named_and_not_taken_for_the_cluster(raftkit: Any) -> None:
    raftkit.cluster.refusals["add_learner"] = errors.Unreachable(
        "n4 at fake://n4 does not answer: connection refused", hint="start it first: raftkit node run --id n4 …"
    )
    error = raftkit.json("member", "add", "n4", "fake://n4", code=4)["error"]
    assert error["message"] == "n4 at fake://n4 does not answer: connection refused"
    assert error["hint"] == "start it first: raftkit node run --id n4 …"


def test_promote_keeps_learners_and_prints_the_quorum(raftkit: Any) -> None:
    raftkit("member", "add", "n4", "fake://n4")
    result = raftkit("member", "promote", "n4")
    assert "before: 3 voters (n1, n2, n3), quorum 2, tolerates 1 failed" in result.stderr
    assert "after : 4 voters (n1, n2, n3, n4), quorum 3, tolerates 1 failed" in result.stderr
    assert ("change_membership", (["n1", "n2", "n3", "n4"], True, False)) in raftkit.cluster.calls


def test_promote_of_a_stranger_says_to_add_it_first(raftkit: Any) -> None:
    document = raftkit.json("member", "promote", "n9", code=3)
    assert "raftkit member add n9" in document["error"]["hint"]


def test_dry_run_changes_nothing(raftkit: Any) -> None:
    for words in (["promote", "n3"], ["remove", "n3"], ["add", "n4", "fake://n4"]):
        assert raftkit.json("member", *words, "--dry-run")["data"]["changed"] is False
    changes = {"add_learner", "change_membership", "remove_nodes"}
    assert not changes.intersection(name for name, _ in raftkit.cluster.calls)


def test_remove_needs_a_yes_where_nobody_can_be_asked(raftkit: Any) -> None:
    document = raftkit.json("member", "remove", "n3", code=2)
    assert document["error"]["code"] == "CONFIRMATION_REQUIRED"
    assert "--yes" in document["error"]["hint"]
    assert "n3" in raftkit.cluster.members
    assert raftkit.json("member", "remove", "n3", "--yes")["data"]["voters_after"] == ["n1", "n2"]
    assert "n3" not in raftkit.cluster.members


def test_the_last_voter_cannot_be_removed(raftkit: Any) -> None:
    raftkit.cluster.members = {"n2": raftkit.cluster.members["n2"]}
    assert raftkit.json("member", "remove", "n2", "--yes", code=8)["error"]["code"] == "EMPTY_MEMBERSHIP"


def test_a_learner_is_removed_without_a_vote(raftkit: Any) -> None:
    raftkit("member", "add", "n4", "fake://n4")
    raftkit.json("member", "remove", "n4", "--yes")
    assert ("remove_nodes", ["n4"]) in raftkit.cluster.calls


def test_cluster_init_asks_the_listed_nodes(raftkit: Any) -> None:
    raftkit.json("cluster", "init", "n1=fake://a", "n2=fake://b", "n3=fake://c", endpoint=None)
    assert raftkit.cluster.endpoints == [["fake://a", "fake://b", "fake://c"]]
    assert {name: node.peer for name, node in raftkit.cluster.initialized.items()} == {
        "n1": "fake://a",
        "n2": "fake://b",
        "n3": "fake://c",
    }


@pytest.mark.parametrize("members", [["n1"], ["n1="], ["=x"], ["n 1=fake://a"], ["n1=fake://a", "n1=fake://b"]])
def test_cluster_init_refuses_a_malformed_list(members: list[str], raftkit: Any) -> None:
    assert raftkit("cluster", "init", *members).exit_code == 2
    assert raftkit.cluster.initialized is None


def test_leader_show_and_transfer(raftkit: Any) -> None:
    assert raftkit("leader", "show").stdout == "n2  term 7  fake://n2\n"
    assert raftkit.json("leader", "transfer", "n3")["data"] == {"from": "n2", "to": "n3"}
    raftkit.cluster.leader = None
    assert raftkit("leader", "show").exit_code == 4


def test_plugins_list_names_what_each_provides_and_what_is_broken(raftkit: Any) -> None:
    plugins = {plugin["name"]: plugin for plugin in raftkit.json("plugins", "list")["data"]["plugins"]}
    assert plugins["core"]["state"] == "active"
    assert "memory" in plugins["core"]["provides"]["storage"]
    assert plugins["FakePlugin"]["provides"]["clients"] == ["fake"]


class CommandPlugin:
    """Brings ``raftkit shout``, and tries to take the place of ``raftkit kv``."""

    @hookimpl(optionalhook=True)
    def raftkit_register_commands(self, cli: click.Group) -> None:
        @click.command("shout")
        @click.argument("text")
        @click.pass_obj
        def shout(invocation: Any, text: str) -> None:
            """Say it louder."""
            invocation.out.result("shout", {"text": text.upper()}, lambda: invocation.out.line(text.upper()))

        cli.add_command(shout)
        cli.add_command(click.Command("kv"))


def test_a_plugin_brings_a_verb_with_the_shared_options_and_cannot_take_a_builtin(raftkit: Any) -> None:
    raftkit.plugins = (*raftkit.plugins, CommandPlugin())
    assert raftkit("shout", "hello").stdout == "HELLO\n"
    assert raftkit.json("shout", "hello")["data"] == {"text": "HELLO"}
    assert raftkit("kv", "put", "a", "b").stdout == "ok  revision 21\n"
    assert "shout" not in cli.list_commands(click.Context(cli)), "it came with that command line and went with it"
    raftkit.plugins = raftkit.plugins[:-1]
    assert raftkit("shout", "hello").exit_code == 2


def test_a_token_is_read_from_its_file(raftkit: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    raftkit("kv", "get", "k", "--token-file", str(token))
    assert raftkit.cluster.options[-1] == {"timeout": 5.0, "token": "secret"}
    token.write_text("")
    assert raftkit("kv", "get", "k", "--token-file", str(token)).exit_code == 7
    assert raftkit("kv", "get", "k", "--token-file", str(tmp_path / "absent")).exit_code == 9


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("5s", 5.0), ("2m", 120.0), ("3", 3.0)])
def test_durations(text: str, seconds: float, raftkit: Any) -> None:
    raftkit("kv", "get", "k", "--timeout", text)
    assert raftkit.cluster.options[-1]["timeout"] == seconds
    assert raftkit("kv", "get", "k", "--timeout", "soon").exit_code == 2


def test_kv_watch_prints_changes_as_they_come_and_ends_with_what_ended_it(raftkit: Any) -> None:
    raftkit("kv", "put", "a/1", "one")
    raftkit("kv", "put", "b/1", "two")
    result = raftkit("kv", "watch", "a/", "--from", "5")
    assert result.stdout == "      21  put     a/1  one\n      23  delete  a/gone\n"
    assert result.exit_code == 8
    assert "COMPACTED" in result.stderr


def test_kv_watch_with_json_is_a_document_per_line(raftkit: Any) -> None:
    raftkit("kv", "put", "k", stdin=b"")
    raftkit("kv", "put", "k", "-", stdin=b"\xff")
    result = raftkit("kv", "watch", "--limit", "2", "--json")
    first, second = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert first["schema"] == second["schema"] == "raftkit.kv.watch/1"
    assert first["data"] == {"type": "put", "key": "k", "value_b64": "/w==", "revision": 21, "previous_revision": 0}
    assert second["data"] == {"type": "delete", "key": "gone", "revision": 22, "previous_revision": 21}


def test_cluster_events_are_those_of_all_nodes_in_the_order_of_their_clocks(raftkit: Any) -> None:
    events = raftkit.json("cluster", "events", "--limit", "2")["data"]["events"]
    assert [event["node"] for event in events] == ["n2", "n1"]
    assert events[1]["at"] == "2023-11-14T22:13:20.000Z"
    assert "n3 is a follower" in raftkit("cluster", "events", "--node", "n3").stdout
    assert raftkit("cluster", "events", "--node", "n9").stdout == ""


def test_ui_prints_the_address_of_a_node_that_answers(raftkit: Any) -> None:
    assert raftkit("ui").stdout == "fake://n1/ui\n"
    raftkit.cluster.members = {}
    assert raftkit("ui").exit_code != 0
