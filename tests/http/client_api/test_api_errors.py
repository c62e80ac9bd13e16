"""Every error has its HTTP status and an envelope, and nothing malformed gets further than the decoder."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from raftkit_core import errors
from raftkit_core.config import Config
from raftkit_core.errors import ERRORS_BY_CODE, ErrorInfo, RaftError
from raftkit_core.types.membership import Node
from raftkit_http.api.envelope import status_of
from raftkit_http.api.guard import ApiLimits

JSON = {"Content-Type": "application/json"}

STATUSES: list[tuple[RaftError, int]] = [
    (errors.Fatal("dead"), 500),
    (errors.Stopped("stopping"), 503),
    (errors.ForwardToLeader("not me", leader="n2", leader_node=Node("http://h:2")), 503),
    (errors.QuorumNotEnough("one of three"), 503),
    (errors.NotApplied("superseded"), 503),
    (errors.Overloaded("full"), 503),
    (errors.NeedsRejoin("wiped"), 503),
    (errors.Unreachable("peer"), 503),
    (errors.OutcomeUnknown("late"), 504),
    (errors.RPCTimeout("late"), 504),
    (errors.RemoteError("peer", info=ErrorInfo("X", "x")), 502),
    (errors.BadCommand("garbage"), 400),
    (errors.ConfigError("bad address"), 400),
    (errors.RequestTooLarge("large"), 413),
    (errors.AccessDenied("no"), 403),
    (errors.NotFound("none"), 404),
    (errors.LearnerNotFound("n9"), 404),
    (errors.CommandRejected("no"), 409),
    (errors.PreconditionFailed("no"), 409),
    (errors.SessionExpired("old"), 409),
    (errors.InProgress("wait"), 409),
    (errors.QuorumWouldBeLost("no"), 409),
    (errors.StoreIdChange("no"), 409),
    (errors.NotAllowed("done already"), 409),
    (errors.NotInMembers("who"), 400),
    (errors.EmptyMembership("nobody"), 400),
    (errors.TransferFailed("late"), 503),
    (errors.StorageCorrupt("row 7"), 500),
]


@pytest.mark.parametrize(("error", "status"), STATUSES, ids=lambda value: getattr(value, "code", ""))
async def test_an_error_of_the_raft_becomes_its_status_and_envelope(
    api_node: Any, error: RaftError, status: int
) -> None:
    async with api_node() as node:
        node.raft.failure = error
        async with node.http.post(f"{node.url}/v1/write", json={"delete": {"key": "k"}}) as response:
            answer = await response.json()
    assert response.status == status
    assert (answer["schema"], answer["ok"]) == ("raftkit.error/1", False)
    assert answer["error"]["code"] == error.code
    assert answer["error"]["message"] == error.message
    assert answer["error"]["retryable"] is error.retryable
    assert answer["error"]["outcome"] == error.outcome
    assert answer["error"]["leader"] == error.leader
    assert ("Retry-After" in response.headers) is (status == 503)


def test_every_error_there_is_has_a_status() -> None:
    for cls in ERRORS_BY_CODE.values():
        assert status_of(cls("x")) in (400, 403, 404, 409, 410, 413, 500, 502, 503, 504)


async def test_a_foreign_exception_shows_its_type_and_nothing_else(
    api_node: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with api_node() as node:
        node.raft.failure = ValueError("/secret/path")
        status, answer = await node.ask("PUT", "/v1/kv/k", data=b"v")
    assert (status, answer["error"]["code"]) == (500, "INTERNAL")
    assert answer["error"]["message"] == "internal error: ValueError"
    assert "/secret/path" in caplog.text


def deep(levels: int) -> bytes:
    return b'{"command":' + b"[" * levels + b"]" * levels + b"}"


MALFORMED: list[tuple[str, str, dict[str, Any], int]] = [
    # JSON that is not what was asked for
    ("POST", "/v1/write", {"data": b"", "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b"{", "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b"[]", "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b"null", "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b"{} {}", "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b"\xff\xfe", "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b'{"put":{"key":"\xff","value":"v"}}', "headers": JSON}, 400),
    ("POST", "/v1/write", {"json": {}}, 400),
    ("POST", "/v1/write", {"json": {"puts": {"key": "k", "value": "v"}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v"}, "delete": {"key": "k"}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v", "ttl": 3}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k"}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v", "value_b64": "dg=="}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value_b64": "not base64"}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": 5, "value": "v"}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": 5}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v", "if_revision": True}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v", "if_revision": 1.0}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v", "if_revision": -1}}}, 400),
    ("POST", "/v1/write", {"json": {"put": {"key": "k", "value": "v", "if_revision": 2**53}}}, 400),
    ("POST", "/v1/write", {"data": b'{"delete":{"key":"k","if_revision":NaN}}', "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b'{"command":Infinity}', "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b'{"command":1e999}', "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b'{"delete":{"key":"a","key":"b"}}', "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": b'{"delete":{"key":"\\ud800"}}', "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": deep(40), "headers": JSON}, 400),
    ("POST", "/v1/write", {"data": deep(50_000), "headers": JSON}, 400),
    ("POST", "/v1/write", {"json": {"command": {"frob": 1}}}, 400),
    ("POST", "/v1/write", {"json": {"command_b64": "AAAA"}}, 400),
    ("POST", "/v1/write", {"json": {"cas": {"key": "k", "value": "v"}}}, 400),
    ("POST", "/v1/write", {"json": {"cas": {"key": "k", "expected": None, "expected_b64": "", "value": "v"}}}, 400),
    # bodies of another kind
    ("POST", "/v1/write", {"data": {"put": "k"}}, 415),
    ("POST", "/v1/write", {"data": b'{"delete":{"key":"k"}}', "headers": {"Content-Type": "text/plain"}}, 415),
    ("POST", "/v1/write", {"data": b"\x1f\x8b", "headers": {**JSON, "Content-Encoding": "gzip"}}, 415),
    ("POST", "/v1/write", {"data": b"\xc1", "headers": {"Content-Type": "application/msgpack"}}, 400),
    ("POST", "/v1/write", {"data": b"cos\nsystem\n.", "headers": {"Content-Type": "application/msgpack"}}, 400),
    ("POST", "/v1/leader/transfer", {}, 415),
    # keys and queries
    ("GET", "/v1/kv/%FF", {}, 400),
    ("GET", "/v1/kv/k?consistency=maybe", {}, 400),
    ("GET", "/v1/kv/k?consistensy=stale", {}, 400),
    ("GET", "/v1/kv/k?consistency=stale&consistency=lease", {}, 400),
    ("GET", "/v1/kv?limit=0", {}, 400),
    ("GET", "/v1/kv?limit=1001", {}, 400),
    ("GET", "/v1/kv?limit=%D9%A3", {}, 400),
    ("GET", "/v1/kv?limit=-1", {}, 400),
    ("GET", "/v1/kv?limit=1e2", {}, 400),
    ("GET", "/v1/kv/k?timeout_ms=0", {}, 400),
    ("GET", "/v1/kv/k?timeout_ms=99999999999999999999999", {}, 400),
    ("PUT", "/v1/kv/k?if_revision=+1", {"data": b"v"}, 400),
    ("DELETE", "/v1/kv/k?if_revision=x", {}, 400),
    ("GET", "/v1/status?digest=yes", {}, 400),
    ("POST", "/v1/read", {"json": {}}, 400),
    ("POST", "/v1/read", {"json": {"get": {"key": "k"}, "list": {}}}, 400),
    ("POST", "/v1/read", {"json": {"get": {"key": "k"}, "consistency": "strong"}}, 400),
    ("POST", "/v1/read", {"json": {"list": {"limit": 100000}}}, 400),
    # members
    ("POST", "/v1/initialize", {"json": {"members": {}}}, 400),
    ("POST", "/v1/initialize", {"json": {"members": {"-x": {"peer": "http://h:1"}}}}, 400),
    ("POST", "/v1/initialize", {"json": {"members": {"n1": {"peer": ""}}}}, 400),
    ("POST", "/v1/members", {"json": {"id": "n2"}}, 400),
    ("POST", "/v1/members", {"json": {"id": "../n2", "node": {"peer": "http://h:1"}}}, 400),
    ("POST", "/v1/members", {"json": {"id": "n2", "node": {"peer": "http://h:1\r\nX-Evil: 1"}}}, 400),
    ("POST", "/v1/members", {"json": {"id": "n2", "node": {"peer": "h", "store_id": "../../etc"}}}, 400),
    ("POST", "/v1/members", {"json": {"id": "n2\x1b[31m", "node": {"peer": "http://h:1"}}}, 400),
    ("POST", "/v1/members", {"json": {"id": "n2", "node": {"peer": "http://h:1"}, "blocking": 1}}, 400),
    ("POST", "/v1/members/change", {"json": {"voters": []}}, 400),
    ("POST", "/v1/members/change", {"json": {"voters": "n1"}}, 400),
    ("POST", "/v1/members/change", {"json": {"voters": ["n1"], "retain": "yes"}}, 400),
    ("POST", "/v1/members/remove", {"json": {"ids": [1]}}, 400),
    ("DELETE", "/v1/members/-n", {}, 400),
    ("POST", "/v1/leader/transfer", {"json": {"to": ""}}, 400),
    ("POST", "/v1/snapshot", {"json": {"now": True}}, 400),
    # routes
    ("GET", "/v1/nothing", {}, 404),
    ("GET", "/v1/", {}, 404),
    ("GET", "/v1/write", {}, 405),
    ("PATCH", "/v1/kv/k", {}, 405),
    ("GET", "/v1/ws", {}, 400),
    # somebody else's page
    ("GET", "/v1/kv/k", {"headers": {"Origin": "http://evil.example"}}, 403),
    ("POST", "/v1/write", {"json": {"delete": {"key": "k"}}, "headers": {"Origin": "null"}}, 403),
]


@pytest.mark.parametrize(
    ("method", "path", "request_", "expected"),
    MALFORMED,
    ids=[f"{number}-{row[0]}-{row[1][:24]}" for number, row in enumerate(MALFORMED)],
)
async def test_a_malformed_request_is_refused_with_an_envelope_and_changes_nothing(
    api_node: Any, method: str, path: str, request_: dict[str, Any], expected: int
) -> None:
    async with api_node() as node:
        status, answer = await node.ask(method, path, **request_)
    assert status == expected, answer
    assert answer["ok"] is False
    assert answer["error"]["code"] in ERRORS_BY_CODE
    assert answer["error"]["outcome"] == "not_applied"
    assert answer["error"]["message"].isprintable()
    assert node.raft.written == node.raft.operations == []
    assert list(node.raft.membership.nodes) == ["n1"]


async def test_a_wrong_method_names_the_right_ones(api_node: Any) -> None:
    async with api_node() as node, node.http.get(f"{node.url}/v1/write") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_a_command_over_the_entry_limit_is_too_large_in_every_form(api_node: Any, fake_raft: Any) -> None:
    raft = fake_raft(config=Config(max_entry_bytes=1000))
    async with api_node(raft) as node:
        status, answer = await node.ask("PUT", "/v1/kv/k", data=b"x" * 1000)
        assert (status, answer["error"]["code"]) == (413, "REQUEST_TOO_LARGE")
        status, _ = await node.ask("POST", "/v1/write", json={"put": {"key": "k", "value": "x" * 1000}})
        assert status == 413
        packed = msgspec.msgpack.encode(["put", "k", b"x" * 1000, None])
        status, _ = await node.ask("POST", "/v1/write", data=packed, headers={"Content-Type": "application/msgpack"})
        assert status == 413
        assert (await node.ask("PUT", "/v1/kv/k", data=b"x" * 900))[0] == 200
    assert len(raft.written) == 1


async def test_a_body_over_the_limit_is_refused_before_it_is_read(api_node: Any) -> None:
    async with api_node() as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(
            b"POST /v1/members HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 300000\r\n\r\n"
        )
        head = await asyncio.wait_for(reader.readline(), 60)
        writer.write(b" " * 300000)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert b" 413 " in head


async def test_a_chunked_body_that_grows_over_the_limit_is_cut_off(api_node: Any) -> None:
    async def endless() -> Any:
        for _ in range(6):
            yield b" " * 65536

    async with api_node() as node:
        status, answer = await node.ask("POST", "/v1/members", data=endless(), headers=JSON)
    assert (status, answer["error"]["code"]) == (413, "REQUEST_TOO_LARGE")


async def test_a_slow_body_ends_at_its_deadline(api_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkit_http.api.decode.BODY_SECONDS", 0.05)
    async with api_node() as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(
            b"POST /v1/read HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10\r\n\r\n{"
        )
        head = await asyncio.wait_for(reader.readline(), 60)
        writer.write(b" " * 9)
        writer.close()
        await writer.wait_closed()
    assert b" 408 " in head


async def test_a_change_that_outlives_its_deadline_is_an_unknown_outcome_and_a_read_is_not(
    api_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftkit_http.api.guard.GRACE_SECONDS", 0.01)
    async with api_node() as node:
        node.raft.hold = asyncio.Event()
        status, write = await node.ask("PUT", "/v1/kv/k?timeout_ms=20", data=b"v")
        assert (status, write["error"]["code"], write["error"]["outcome"]) == (504, "OUTCOME_UNKNOWN", "unknown")
        status, read = await node.ask("GET", "/v1/kv/k?timeout_ms=20")
        assert (status, read["error"]["code"], read["error"]["outcome"]) == (504, "RPC_TIMEOUT", "not_applied")
        node.raft.hold.set()


async def test_a_client_that_goes_away_does_not_stop_its_change_half_way(api_node: Any) -> None:
    async with api_node() as node:
        node.raft.hold = asyncio.Event()
        body = b'{"voters":["n1"]}'
        head = f"POST /v1/members/change HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n".encode()
        _, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(head + b"Content-Type: application/json\r\n\r\n" + body)
        await asyncio.wait_for(node.raft.arrived.wait(), 60)
        writer.close()
        await writer.wait_closed()
        node.raft.hold.set()
        await node.api.close()
    assert len(node.raft.operations) == 1


async def test_more_requests_than_the_limit_are_refused_definitely_but_status_still_answers(api_node: Any) -> None:
    async with api_node(limits=ApiLimits(max_requests=1)) as node:
        node.raft.hold = asyncio.Event()
        first = asyncio.create_task(node.ask("PUT", "/v1/kv/k", data=b"1"))
        await asyncio.wait_for(node.raft.arrived.wait(), 60)
        status, refused = await node.ask("PUT", "/v1/kv/k", data=b"2")
        assert (status, refused["error"]["code"], refused["error"]["outcome"]) == (503, "OVERLOADED", "not_applied")
        assert (await node.ask("GET", "/v1/status"))[0] == 200
        node.raft.hold.set()
        assert (await first)[0] == 200
        assert (await node.ask("PUT", "/v1/kv/k", data=b"3"))[0] == 200


async def test_a_node_that_closes_refuses_definitely_so_that_another_can_be_asked(api_node: Any) -> None:
    async with api_node() as node:
        await node.api.close()
        status, answer = await node.ask("PUT", "/v1/kv/k", data=b"1")
        assert (status, answer["error"]["code"]) == (503, "STOPPED")
        assert (answer["error"]["outcome"], answer["error"]["retryable"]) == ("not_applied", True)
        assert (await node.ask("GET", "/readyz"))[0] == 503
        assert (await node.ask("GET", "/livez"))[0] == 200
