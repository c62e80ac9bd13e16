"""Keys over HTTP: every form of reading and writing one."""

from __future__ import annotations

import base64
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from raftkit_core.config import ReadPolicy
from raftkit_core.types.kv import CompareAndSet, Delete, Get, ListKeys, Put
from raftkit_http.api import kv
from raftkit_http.api.schema import MAX_LIST_BYTES
from raftkit_http.client import HttpClusterClient

JSON = {"Content-Type": "application/json"}


async def test_a_value_put_by_curl_is_read_back_as_text_with_its_revision(api_node: Any) -> None:
    async with api_node() as node:
        status, put = await node.ask("PUT", "/v1/kv/hello", data=b"world")
        assert status == 200
        assert put["schema"] == "raftkit.write/1"
        assert put["data"]["result"] == {"revision": 1, "previous_revision": 0, "changed": True}
        status, got = await node.ask("GET", "/v1/kv/hello")
    assert (status, got["ok"]) == (200, True)
    assert got["data"] == {"key": "hello", "value": "world", "revision": 1}


async def test_bytes_that_are_no_text_travel_as_base64(api_node: Any) -> None:
    async with api_node() as node:
        await node.ask("PUT", "/v1/kv/k", json={"value_b64": base64.b64encode(b"\xff\x00").decode()})
        _, got = await node.ask("GET", "/v1/kv/k")
    assert got["data"] == {"key": "k", "value_b64": "/wA=", "revision": 1}


async def test_a_key_may_hold_slashes_and_any_percent_encoded_character(api_node: Any) -> None:
    async with api_node() as node:
        for path in ("/v1/kv/a/b", "/v1/kv/%2F%3F%20%C3%A9", "/v1/kv/cas", "/v1/kv/x%2Fcas"):
            status, _ = await node.ask("PUT", path, data=b"1")
            assert status == 200
    assert [command.key for command in node.raft.written] == ["a/b", "/? é", "cas", "x/cas"]


async def test_an_absent_key_is_not_found(api_node: Any) -> None:
    async with api_node() as node:
        status, got = await node.ask("GET", "/v1/kv/none")
        _, item = await node.ask("POST", "/v1/read", json={"get": {"key": "none"}})
    assert (status, got["ok"], got["error"]["code"]) == (404, False, "NOT_FOUND")
    assert item["data"] == {"item": None}


@pytest.mark.parametrize(
    ("query", "policy"),
    [
        ("", ReadPolicy.READ_INDEX),
        ("?consistency=linearizable", ReadPolicy.READ_INDEX),
        ("?consistency=lease", ReadPolicy.LEASE),
        ("?consistency=stale", ReadPolicy.STALE),
    ],
)
async def test_the_asked_consistency_reaches_the_raft(api_node: Any, query: str, policy: ReadPolicy) -> None:
    async with api_node() as node:
        await node.ask("GET", f"/v1/kv/k{query}")
        await node.ask("GET", f"/v1/kv{query}")
    assert node.raft.reads == [(Get("k"), policy), (ListKeys(max_bytes=MAX_LIST_BYTES), policy)]


async def test_preconditions_are_checked_and_a_failed_one_is_a_conflict(api_node: Any) -> None:
    async with api_node() as node:
        assert (await node.ask("PUT", "/v1/kv/k?if_revision=0", data=b"1"))[0] == 200
        status, refused = await node.ask("PUT", "/v1/kv/k?if_revision=0", data=b"2")
        assert (status, refused["error"]["code"]) == (409, "PRECONDITION_FAILED")
        assert refused["error"]["outcome"] == "applied"
        assert (await node.ask("DELETE", "/v1/kv/k?if_revision=7"))[0] == 409
        assert (await node.ask("DELETE", "/v1/kv/k?if_revision=1"))[0] == 200
    assert node.raft.data == {}


async def test_compare_and_set_works_from_its_route(api_node: Any) -> None:
    async with api_node() as node:
        assert (await node.ask("POST", "/v1/kv/a/b/cas", json={"expected": None, "value": "1"}))[0] == 200
        assert (await node.ask("POST", "/v1/kv/a/b/cas", json={"expected": "1", "value": "2"}))[0] == 200
        assert (await node.ask("POST", "/v1/kv/a/b/cas", json={"expected": "1", "value": "3"}))[0] == 409
        body = {"expected_b64": base64.b64encode(b"2").decode(), "value_b64": ""}
        assert (await node.ask("POST", "/v1/kv/a/b/cas", json=body))[0] == 200
    assert node.raft.data["a/b"].value == b""


@pytest.mark.parametrize(
    ("body", "command"),
    [
        ({"put": {"key": "k", "value": "v"}}, Put("k", b"v")),
        ({"put": {"key": "k", "value_b64": "/w==", "if_revision": 0}}, Put("k", b"\xff", 0)),
        ({"delete": {"key": "k"}}, Delete("k")),
        ({"cas": {"key": "k", "expected": None, "value": ""}}, CompareAndSet("k", None, b"")),
        ({"command": {"put": {"key": "k", "value": "v"}}}, Put("k", b"v")),
        ({"command_b64": base64.b64encode(msgspec.msgpack.encode(Put("k", b"v"))).decode()}, Put("k", b"v")),
    ],
)
async def test_a_command_can_be_written_in_every_form(api_node: Any, body: Any, command: Any) -> None:
    async with api_node() as node:
        status, answer = await node.ask("POST", "/v1/write", json=body)
    assert (status, answer["data"]["log_index"], answer["data"]["term"]) == (200, 1, 1)
    assert node.raft.written == [command]


async def test_an_encoded_command_is_taken_and_answered_in_messagepack(api_node: Any) -> None:
    async with api_node() as node:
        headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
        body = msgspec.msgpack.encode(Put("k", b"v"))
        async with node.http.post(f"{node.url}/v1/write", data=body, headers=headers) as response:
            answer = msgspec.msgpack.decode(await response.read())
            assert response.content_type == "application/msgpack"
    assert answer["data"]["result"]["revision"] == 1
    assert node.raft.written == [Put("k", b"v")]


async def test_another_machine_takes_its_commands_as_json_and_has_no_keys(api_node: Any, fake_raft: Any) -> None:
    async with api_node(fake_raft(machine="counter/1")) as node:
        status, answer = await node.ask("POST", "/v1/write", json={"command": {"add": 3}})
        assert (status, answer["data"]["result"]) == (200, {"echo": {"add": 3}})
        for method, path, kwargs in [
            ("GET", "/v1/kv/k", {}),
            ("PUT", "/v1/kv/k", {"data": b"v"}),
            ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v"}}}),
        ]:
            status, answer = await node.ask(method, path, **kwargs)
            assert (status, answer["error"]["code"]) == (404, "NOT_FOUND")
            assert "counter/1" in answer["error"]["message"]


async def test_a_list_is_paged_by_limit_and_after(api_node: Any) -> None:
    async with api_node() as node:
        for number in range(5):
            await node.ask("PUT", f"/v1/kv/p/{number}", data=b"v")
        await node.ask("PUT", "/v1/kv/q", data=b"v")
        _, first = await node.ask("GET", "/v1/kv?prefix=p/&limit=3")
        _, second = await node.ask("GET", "/v1/kv?prefix=p/&limit=3&after=p/2")
        _, same = await node.ask("POST", "/v1/read", json={"list": {"prefix": "p/", "limit": 3, "after": "p/2"}})
    assert [item["key"] for item in first["data"]["items"]] == ["p/0", "p/1", "p/2"]
    assert first["data"]["more"] is True
    assert [item["key"] for item in second["data"]["items"]] == ["p/3", "p/4"]
    assert second["data"]["more"] is False
    assert same == second


async def test_a_list_is_cut_by_its_bytes_but_never_before_its_first_item(
    api_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftkit_http.api.kv.MAX_LIST_BYTES", 250)
    async with api_node() as node:
        for number in range(3):
            await node.ask("PUT", f"/v1/kv/{number}", data=b"x" * 100)
        await node.ask("PUT", "/v1/kv/big", data=b"x" * 1000)
        _, first = await node.ask("GET", "/v1/kv")
        _, big = await node.ask("GET", "/v1/kv?prefix=big")
    assert [item["key"] for item in first["data"]["items"]] == ["0", "1"]
    assert first["data"]["more"] is True
    assert len(big["data"]["items"]) == 1


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (b"plain \xc3\xa4 \x7f", "value"),
        (b'\t\n\r\x08\x0c"\\', "value"),
        (b"", "value"),
        (b"\x00", "value_b64"),
        (b"a\x1fb", "value_b64"),
        (b"\xff", "value_b64"),
    ],
)
async def test_bytes_that_json_would_make_six_times_as_long_are_no_text(
    value: bytes, field: str, api_node: Any
) -> None:
    async with api_node() as node:
        await node.raft.write(Put("k", value))
        _, answer = await node.ask("GET", "/v1/kv/k")
        assert set(answer["data"]) == {"key", "revision", field}
        async with HttpClusterClient([node.url]) as client, aclosing(client.watch(from_revision=1)) as changes:
            found = await client.kv_get("k")
            assert found is not None
            assert found.value == (await anext(changes)).value == value


@pytest.mark.parametrize("byte", [b"\x00", b'"'], ids=["zeros", "quotes"])
async def test_a_list_of_large_values_is_no_larger_than_a_client_takes(byte: bytes, api_node: Any) -> None:
    """Zeros are UTF-8; as text in JSON each is six bytes."""
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        for number in range(9):
            await node.raft.write(Put(f"k{number}", byte * 1024 * 1024))
        assert len(await client.kv_list("k")) == 9


async def test_what_is_too_much_for_one_answer_is_not_read_to_its_end(
    api_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand values may be a gigabyte that a durable machine fetches from its disk."""
    monkeypatch.setattr(kv, "MAX_LIST_BYTES", 1000)
    async with api_node() as node:
        for number in range(100):
            await node.raft.write(Put(f"k{number:02}", b"x" * 300))
        machine, asked = node.raft.machine, []
        original = machine.query
        node.raft.machine.query = lambda query: (asked.append(query), original(query))[1]
        _, answer = await node.ask("GET", "/v1/kv?prefix=k")
        assert (len(answer["data"]["items"]), answer["data"]["more"], len(asked)) == (3, True, 1)
        assert asked[0].max_bytes == 1000
        asked.clear()
        async with node.http.ws_connect(node.url + "/v1/ws") as socket:
            await socket.send_bytes(msgspec.msgpack.encode([1, "reads", ["stale", [f"k{n:02}" for n in range(100)]]]))
            _, ok, error = msgspec.msgpack.decode((await socket.receive(5)).data)
        assert (ok, error["code"], len(asked)) == (False, "REQUEST_TOO_LARGE", 4)


async def test_a_list_that_ends_where_its_bytes_do_may_have_more(
    api_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "MAX_LIST_BYTES", 1000)
    async with api_node() as node:
        for key in "abc":
            await node.raft.write(Put(key, b"x" * (500 - kv.KEY_CHARACTER_BYTES)))
        _, answer = await node.ask("GET", "/v1/kv")
        assert ([item["key"] for item in answer["data"]["items"]], answer["data"]["more"]) == (["a", "b"], True)
        _, answer = await node.ask("GET", "/v1/kv?after=b")
        assert ([item["key"] for item in answer["data"]["items"]], answer["data"]["more"]) == (["c"], False)


async def test_keys_of_control_characters_count_as_what_they_are_in_json(api_node: Any) -> None:
    async with api_node() as node:
        for number in range(1000):
            await node.raft.write(Put(f"{number:03}" + "\x01" * 4000, b""))
        async with node.http.get(f"{node.url}/v1/kv") as response:
            assert len(await response.read()) < 1.1 * MAX_LIST_BYTES
            assert (await response.json())["data"]["more"]
