"""Every call of the client against a served node."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import raftkit_http
from raftkit_core.config import ReadPolicy
from raftkit_core.errors import (
    BadCommand,
    BadRequest,
    ConfigError,
    PreconditionFailed,
    UnknownOption,
)
from raftkit_core.network.client import ClusterClient
from raftkit_core.types.kv import Get, KeyValue, Put, WriteResult
from raftkit_core.types.membership import Node
from raftkit_http.client import HttpClusterClient, make_client


async def test_the_client_has_the_names_the_package_promises() -> None:
    assert raftkit_http.HttpClusterClient is HttpClusterClient
    assert issubclass(raftkit_http.Client, HttpClusterClient)
    assert issubclass(HttpClusterClient, ClusterClient)
    assert {name for name in raftkit_http.__all__ if getattr(raftkit_http, name).__name__ == name} == {
        "Client",
        "HttpClusterClient",
        "HttpSession",
        "SyncClient",
        "SyncSession",
    }


async def test_keys_are_written_read_and_deleted(api_node: Any) -> None:
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        assert await client.kv_put("a", b"\xff") == WriteResult(revision=1)
        assert await client.kv_get("a") == KeyValue(key="a", value=b"\xff", revision=1)
        assert await client.kv_get("b") is None
        assert await client.kv_cas("a", b"\xff", b"2") == WriteResult(revision=2, previous_revision=1)
        assert await client.kv_cas("b", None, b"") == WriteResult(revision=3)
        assert (await client.kv_delete("b", if_revision=3)).previous_revision == 3
        with pytest.raises(PreconditionFailed) as refused:
            await client.kv_put("a", b"3", if_revision=0)
        assert refused.value.outcome == "applied"
    assert node.raft.data == {"a": KeyValue(key="a", value=b"2", revision=2)}


@pytest.mark.parametrize("key", [".", "..", "a/../b", "a?b#c", "%2F", "é\n\x00", "/", "a/cas", "𝄞" * 100])
async def test_any_key_can_be_used(api_node: Any, key: str) -> None:
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        await client.kv_put(key, b"v")
        found = await client.kv_get(key)
        assert found is not None
        assert found.key == key


async def test_a_key_the_machine_refuses_is_a_bad_command_and_enters_no_log(api_node: Any) -> None:
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        for key in ("", "k" * 5000):
            with pytest.raises(BadCommand) as refused:
                await client.kv_put(key, b"v")
            assert refused.value.hint is not None
    assert node.raft.written == []


async def test_the_consistency_asked_for_arrives(api_node: Any) -> None:
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        await client.kv_get("k", consistency="stale")
        await client.kv_list(consistency="lease")
    assert node.raft.reads[0] == (Get("k"), ReadPolicy.STALE)
    assert node.raft.reads[1][1] is ReadPolicy.LEASE


async def test_a_list_is_collected_from_pages(api_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkit_http.client.MAX_LIST_KEYS", 2)
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        for number in range(7):
            await client.kv_put(f"p{number}", b"v")
        everything = await client.kv_list("p")
        some = await client.kv_list("p", limit=3, after="p1")
        assert [item.key for item in everything] == [f"p{number}" for number in range(7)]
        assert [item.key for item in some] == ["p2", "p3", "p4"]
        assert await client.kv_list("q") == []


async def test_a_command_goes_as_data_as_a_command_or_encoded(api_node: Any, fake_raft: Any) -> None:
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        assert (await client.write({"put": {"key": "k", "value": "v"}}))["revision"] == 1
        assert (await client.write(Put("k", b"w")))["revision"] == 2
        assert (await client.write(msgspec.msgpack.encode(Put("k", b"x"))))["revision"] == 3
        with pytest.raises(BadRequest):
            await client.write({"frob": 1})
        with pytest.raises(BadCommand):
            await client.write({"put": object()})
    async with api_node(fake_raft(machine="counter/1")) as node, HttpClusterClient([node.url]) as client:
        assert await client.write({"add": [1, None, "x"]}) == {"echo": {"add": [1, None, "x"]}}


async def test_a_node_says_who_it_is(api_node: Any, fake_raft: Any) -> None:
    async with api_node() as one, api_node(fake_raft("n2")) as two, HttpClusterClient([one.url]) as client:
        assert (await client.status()).id == "n1"
        assert (await client.status(digest=True)).digest == "d1"
        assert (await client.status_of(two.url)).id == "n2"
        assert (await client.status()).id == "n1", "status_of is no change of heart"


async def test_members_are_administered(api_node: Any) -> None:
    members = {"n1": Node("http://127.0.0.1:1", tags={"zone": "a"}), "n2": Node("http://127.0.0.1:2")}
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        await client.initialize(members)
        assert node.raft.membership.nodes == members
        added = await client.add_learner("n3", Node("http://127.0.0.1:3", client="http://127.0.0.1:4"), blocking=False)
        assert [(member.id, member.voter) for member in added.members] == [("n1", True), ("n2", True), ("n3", False)]
        changed = await client.change_membership(["n1", "n3"], retain=True, force=True)
        assert [member.id for member in changed.members if member.voter] == ["n1", "n3"]
        assert (changed.log_index, node.raft.operations[-1].retain, node.raft.operations[-1].force) == (2, True, True)
        removed = await client.remove_nodes(["n2"])
        assert [member.id for member in removed.members] == ["n1", "n3"]
        assert await client.transfer_leader("n3") == "n3"
        await client.trigger_snapshot()
        await client.trigger_snapshot(node.url)
    assert node.raft.snapshots == 2


async def test_an_endpoint_is_what_people_type(api_node: Any) -> None:
    async with api_node() as node:
        short = node.url.removeprefix("http://")
        async with HttpClusterClient([short + "/"]) as client:
            assert (await client.status()).id == "n1"


@pytest.mark.parametrize(
    "endpoint",
    ["", "ftp://h:1", "http://h", "http://u:p@h:1", "http://h:1/path", "file:///etc/passwd", "http://h:1\r\n"],
)
async def test_what_is_no_endpoint_is_refused_before_anything_is_sent(endpoint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        HttpClusterClient([endpoint])
    assert refused.value.hint is not None


async def test_bad_settings_are_refused() -> None:
    for options in ({"timeout": 0}, {"timeout": "5"}, {"timeout": float("nan")}, {"token": "a\nb"}, {"token": ""}):
        with pytest.raises(ConfigError):
            make_client(["http://h:1"], options)
    with pytest.raises(ConfigError):
        HttpClusterClient([])
    with pytest.raises(UnknownOption, match="colour"):
        make_client(["http://h:1"], {"colour": "red"})


async def test_the_token_is_sent_and_not_shown() -> None:
    client = make_client(["https://h:1"], {"token": "canary", "timeout": 1})
    assert "canary" not in repr(client)
    async with client:
        assert client._session is not None
        assert client._session.headers["Authorization"] == "Bearer canary"


async def test_a_client_is_used_between_enter_and_exit(api_node: Any) -> None:
    async with api_node() as node:
        client = HttpClusterClient([node.url])
        with pytest.raises(ConfigError, match="not open"):
            await client.status()
        async with client:
            await client.status()
            with pytest.raises(ConfigError, match="open already"):
                await client.__aenter__()
        with pytest.raises(ConfigError, match="not open"):
            await client.status()
