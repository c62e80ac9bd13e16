"""Sessions over HTTP: opening, keeping, closing; writes that have one effect however often they are sent."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from yarl import URL

from raftkit_core import Node, Raft, open_raft
from raftkit_core.testing.ports import free_urls
from raftkit_core.types.kv import KV_MACHINE, Put
from raftkit_http.api import kv as kv_api

pack = msgspec.msgpack.encode


class Served:
    def __init__(self, raft: Raft, url: str, http: aiohttp.ClientSession) -> None:
        self.raft = raft
        self.url = url
        self.http = http

    async def ask(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        async with self.http.request(method, URL(self.url + path, encoded=True), **kwargs) as response:
            document = await response.json()
            return response.status, document.get("data") if document["ok"] else document["error"]

    async def opened(self, ttl_ms: int = 60_000) -> str:
        status, data = await self.ask("POST", "/v1/sessions", json={"ttl_ms": ttl_ms})
        assert status == 200
        assert data["valid_ms"] == int(ttl_ms * 0.9)
        token: str = data["session"]
        return token


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    url = free_urls(1)[0]
    async with open_raft("n1", storage="memory:", network=url) as raft:
        await raft.initialize({"n1": Node(url)})
        await raft.wait(10).current_leader("n1")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
            yield Served(raft, url, http)


def headers(session: str, serial: int | str, floor: int | None = None) -> dict[str, str]:
    given = {"Raftkit-Session": session, "Raftkit-Serial": str(serial)}
    return given if floor is None else given | {"Raftkit-Acknowledged-Floor": str(floor)}


async def test_a_session_is_opened_kept_alive_and_closed() -> None:
    async with served() as node:
        session = await node.opened()
        cluster, _, number = session.partition("-")
        assert (cluster, int(number) >= 1) == (node.raft.cluster_id, True)
        status, kept = await node.ask("POST", "/v1/sessions/keep-alive", json={"session": session})
        assert (status, kept) == (200, {"session": session, "ttl_ms": 60_000, "valid_ms": 54_000})
        assert await node.ask("POST", "/v1/sessions/close", json={"session": session}) == (200, {"existed": True})
        assert await node.ask("POST", "/v1/sessions/close", json={"session": session}) == (200, {"existed": False})
        status, error = await node.ask("POST", "/v1/sessions/keep-alive", json={"session": session})
        assert (status, error["code"], error["outcome"]) == (409, "SESSION_EXPIRED", "not_applied")


async def test_every_way_to_write_takes_a_session_and_repeats_nothing() -> None:
    async with served() as node:
        session = await node.opened()
        encoded = pack(Put("f", b"v"))
        ways: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/v1/write", {"json": {"put": {"key": "a", "value": "v"}, "session": session, "serial": 1}}),
            ("POST", "/v1/write", {"json": {"put": {"key": "b", "value": "v"}}, "headers": headers(session, 2)}),
            ("PUT", "/v1/kv/c", {"data": b"v", "headers": headers(session, 3, 1)}),
            ("POST", "/v1/kv/d/cas", {"json": {"expected": None, "value": "v"}, "headers": headers(session, 4)}),
            ("DELETE", "/v1/kv/d", {"headers": headers(session, 5, 3)}),
            (
                "POST",
                "/v1/write",
                {"data": encoded, "headers": headers(session, 6) | {"Content-Type": "application/msgpack"}},
            ),
        ]
        for method, path, request in ways:
            status, first = await node.ask(method, path, **request)
            assert status == 200, first
            before = node.raft.metrics().value.last_log_index
            assert await node.ask(method, path, **request) == (200, first)
            assert node.raft.metrics().value.last_log_index == before + 1, "the duplicate is an entry with no effect"
        keys = (await node.ask("GET", "/v1/kv"))[1]["items"]
        assert [item["key"] for item in keys] == ["a", "b", "c", "f"]


async def test_refusals_say_what_became_of_the_write() -> None:
    async with served() as node:
        session = await node.opened()

        async def put(value: str, serial: int, floor: int = 0, of: str = session) -> tuple[int, str, str]:
            request = {
                "put": {"key": "k", "value": value},
                "session": of,
                "serial": serial,
                "acknowledged_floor": floor,
            }
            status, data = await node.ask("POST", "/v1/write", json=request)
            return (status, "", "") if status == 200 else (status, data["code"], data["outcome"])

        assert await put("1", 1) == (200, "", "")
        assert await put("2", 1) == (409, "SERIAL_REUSED", "not_applied")
        assert await put("2", 2, 1) == (200, "", "")
        assert await put("1", 1) == (409, "RESULT_FORGOTTEN", "unknown")
        assert await put("1", 1, of=f"{'0' * 32}-1") == (409, "SESSION_EXPIRED", "not_applied")
        other = session.partition("-")[0] + "-999"
        assert await put("1", 1, of=other) == (409, "SESSION_EXPIRED", "not_applied")


@pytest.mark.parametrize(
    "given",
    [
        {"Raftkit-Session": "x", "Raftkit-Serial": "1"},
        {"Raftkit-Session": "S"},
        {"Raftkit-Serial": "1"},
        {"Raftkit-Acknowledged-Floor": "1"},
        {"Raftkit-Session": "S", "Raftkit-Serial": "0"},
        {"Raftkit-Session": "S", "Raftkit-Serial": "-1"},
        {"Raftkit-Session": "S", "Raftkit-Serial": "1.0"},
        {"Raftkit-Session": "S", "Raftkit-Serial": "١"},
        {"Raftkit-Session": "S", "Raftkit-Serial": "1" * 17},
        {"Raftkit-Session": "S", "Raftkit-Serial": "2", "Raftkit-Acknowledged-Floor": "2"},
    ],
)
async def test_headers_that_are_no_session_are_refused_before_the_log(given: dict[str, str]) -> None:
    async with served() as node:
        session = await node.opened()
        before = node.raft.metrics().value.last_log_index
        given = {name: session if text == "S" else text for name, text in given.items()}
        status, error = await node.ask("PUT", "/v1/kv/k", data=b"v", headers=given)
        assert (status, error["code"], error["outcome"]) == (400, "BAD_REQUEST", "not_applied")
        assert node.raft.metrics().value.last_log_index == before


@pytest.mark.parametrize(
    "fields",
    [
        {"session": "S"},
        {"serial": 1},
        {"acknowledged_floor": 1},
        {"session": "S", "serial": 0},
        {"session": "S", "serial": "1"},
        {"session": "S", "serial": 2**53},
        {"session": "S", "serial": 1, "acknowledged_floor": 1},
        {"session": "nonsense", "serial": 1},
        {"session": None, "serial": 1},
    ],
)
async def test_bodies_that_are_no_session_are_refused_before_the_log(fields: dict[str, Any]) -> None:
    async with served() as node:
        session = await node.opened()
        body = {name: session if value == "S" else value for name, value in fields.items()}
        status, error = await node.ask("POST", "/v1/write", json={"put": {"key": "k", "value": "v"}, **body})
        assert (status, error["code"], error["outcome"]) == (400, "BAD_REQUEST", "not_applied")


@pytest.mark.parametrize("body", [{"ttl_ms": 1}, {"ttl_ms": 10**9}, {"ttl_ms": "5s"}, {"ttl": 5}])
async def test_a_time_to_live_has_limits(body: dict[str, Any]) -> None:
    async with served() as node:
        assert (await node.ask("POST", "/v1/sessions", json=body))[0] == 400


# --- over the WebSocket ----------------------------------------------------------------------------------------------


async def receive(socket: aiohttp.ClientWebSocketResponse) -> Any:
    return msgspec.msgpack.decode(await socket.receive_bytes(timeout=5))


async def test_a_frame_carries_many_writes_each_with_its_own_outcome() -> None:
    async with served() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        session = await node.opened()
        puts = [[serial, 0, pack(Put(f"k{serial}", b"v"))] for serial in range(1, 101)]
        puts[50][2] = b"\xc1"
        puts[60][2] = pack(Put("k1", b"no", if_revision=0))
        for _ in range(2):
            await socket.send_bytes(pack([7, "writes", [session, puts], 5000]))
        first, second = await receive(socket), await receive(socket)
        assert first == second
        number, ok, outcomes = first
        assert (number, ok, len(outcomes)) == (7, True, 100)
        refused = {number: data["code"] for number, (done, data) in enumerate(outcomes) if not done}
        assert refused == {50: "BAD_COMMAND", 60: "PRECONDITION_FAILED"}
        indexes = [data["log_index"] for done, data in outcomes if done]
        assert indexes == sorted(set(indexes))
        await socket.send_bytes(pack([8, "writes", [None, [[0, 0, pack(Put("plain", b"v"))]]]]))
        assert (await receive(socket))[2][0][0] is True


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        [None, []],
        ["x", [[1, 0, b""]]],
        [None, [[1, 0, b""]]],
        [None, [[0, 0, "text"]]],
        [None, [[0, 0, b"", 1]]],
        [None, [[-1, 0, b""]]],
        [None, [[0, 0, b""]] * 1025],
    ],
)
async def test_a_body_that_is_no_list_of_writes_is_refused_and_the_connection_goes_on(body: Any) -> None:
    async with served() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        await socket.send_bytes(pack([1, "writes", body]))
        number, ok, error = await receive(socket)
        assert (number, ok, error["code"]) == (1, False, "BAD_REQUEST")
        await socket.send_bytes(pack([2, "writes", [None, [[0, 0, pack(Put("k", b"v"))]]]]))
        assert (await receive(socket))[:2] == [2, True]


@pytest.mark.parametrize("consistency", ["linearizable", "lease", "stale"])
async def test_a_frame_carries_many_reads_for_one_round(consistency: str) -> None:
    async with served() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        for key in ("a", "b"):
            await node.raft.write(Put(key, key.encode()))
        await socket.send_bytes(pack([3, "reads", [consistency, ["b", "missing", "a", "a"]]]))
        number, ok, items = await receive(socket)
        assert (number, ok) == (3, True)
        assert [None if item is None else item["value"] for item in items] == ["b", None, "a", "a"]


async def test_reads_of_one_frame_have_a_bound_on_their_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_api, "MAX_LIST_BYTES", 100)
    async with served() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        await node.raft.write(Put("a", b"x" * 60))
        await socket.send_bytes(pack([1, "reads", ["stale", ["a", "a"]]]))
        number, ok, error = await receive(socket)
        assert (number, ok, error["code"]) == (1, False, "REQUEST_TOO_LARGE")
        await socket.send_bytes(pack([2, "reads", ["stale", ["a"]]]))
        assert (await receive(socket))[:2] == [2, True]


@pytest.mark.parametrize(
    "body", [None, [], ["stale", []], ["stale", "ab"], ["soon", ["a"]], ["stale", ["a"] * 1025], ["stale", [b"a"]]]
)
async def test_a_body_that_is_no_list_of_reads_is_refused(body: Any) -> None:
    async with served() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        await socket.send_bytes(pack([1, "reads", body]))
        number, ok, error = await receive(socket)
        assert (number, ok, error["code"]) == (1, False, "BAD_REQUEST")


async def test_binary_json_command_and_machine_name_are_as_without_a_session() -> None:
    async with served() as node:
        assert node.raft.machine.name == KV_MACHINE
        session = await node.opened()
        command = base64.b64encode(pack(Put("k", b"\xff"))).decode()
        for _ in range(2):
            body = {"command_b64": command, "session": session, "serial": 1}
            assert (await node.ask("POST", "/v1/write", json=body))[0] == 200
        assert (await node.ask("GET", "/v1/kv/k"))[1]["value_b64"] == "/w=="
