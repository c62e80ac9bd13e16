"""The pipelining WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from raftkit_core.errors import QuorumNotEnough
from raftkit_core.types.kv import Put
from raftkit_http.api import socket as socket_module
from raftkit_http.api.guard import ApiLimits

pack = msgspec.msgpack.encode


def put(number: int) -> bytes:
    return pack([number, "write", pack(Put(f"k{number}", b"v"))])


async def receive(socket: aiohttp.ClientWebSocketResponse) -> Any:
    return msgspec.msgpack.decode(await socket.receive_bytes(timeout=5))


async def test_writes_and_reads_are_pipelined_and_answered_by_their_ids(api_node: Any) -> None:
    async with api_node() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        for number in range(20):
            await socket.send_bytes(put(number))
        answers = {}
        for _ in range(20):
            number, ok, data = await receive(socket)
            answers[number] = (ok, data["log_index"])
        assert answers == {number: (True, number + 1) for number in range(20)}, "in the order they were sent"
        await socket.send_bytes(pack([99, "read", {"get": {"key": "k3"}, "consistency": "stale"}]))
        assert await receive(socket) == [99, True, {"item": {"key": "k3", "revision": 4, "value": "v"}}]


@pytest.mark.parametrize(
    "frame",
    [
        [1, "write", b"\xc1"],
        [1, "write", {"put": {}}],
        [1, "read", {"get": {"key": 5}}],
        [1, "read", {}],
        [1, "read", None],
    ],
)
async def test_a_bad_request_is_refused_and_the_connection_goes_on(api_node: Any, frame: Any) -> None:
    async with api_node() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        await socket.send_bytes(pack(frame))
        number, ok, error = await receive(socket)
        assert (number, ok) == (1, False)
        assert error["code"] in ("BAD_REQUEST", "BAD_COMMAND")
        await socket.send_bytes(put(2))
        assert (await receive(socket))[:2] == [2, True]


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", pack([1, "write"]), pack(["1", "write", b""]), pack([1, "eval", b""]), pack({"id": 1})]
)
async def test_a_frame_that_is_none_ends_the_connection(api_node: Any, frame: bytes) -> None:
    async with api_node() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        await socket.send_bytes(frame)
        message = await socket.receive(timeout=5)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert socket.close_code == 1007


async def test_text_is_refused(api_node: Any) -> None:
    async with api_node() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        await socket.send_str("[]")
        await socket.receive(timeout=5)
        assert socket.close_code == 1003


async def test_an_error_of_the_raft_is_answered_with_its_outcome(api_node: Any) -> None:
    async with api_node() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        node.raft.failure = QuorumNotEnough("one of three")
        await socket.send_bytes(put(1))
        number, ok, error = await receive(socket)
    assert (number, ok, error["code"], error["outcome"]) == (1, False, "NO_QUORUM", "not_applied")


async def test_no_more_than_the_window_is_taken_in(api_node: Any) -> None:
    async with (
        api_node(limits=ApiLimits(max_socket_window=2)) as node,
        node.http.ws_connect(f"{node.url}/v1/ws") as socket,
    ):
        arrivals = []
        write = node.raft.write

        async def counting(command: Any, *, timeout: float = 5.0) -> Any:
            arrivals.append(command)
            return await write(command, timeout=timeout)

        node.raft.write = counting
        node.raft.hold = asyncio.Event()
        for number in range(10):
            await socket.send_bytes(put(number))
        await asyncio.wait_for(node.raft.arrived.wait(), 60)
        await node.ask("GET", "/v1/status")  # the server has had its turns
        await node.ask("GET", "/v1/status")
        assert len(arrivals) == 2
        node.raft.hold.set()
        assert [(await receive(socket))[0] for _ in range(10)] == list(range(10))


@asynccontextmanager
async def full_window(api_node: Any, **limits: int) -> AsyncIterator[tuple[Any, aiohttp.ClientWebSocketResponse]]:
    """A node that answers nothing until it is let, and a socket whose window is full."""
    async with (
        api_node(limits=ApiLimits(max_socket_window=2, **limits)) as node,
        node.http.ws_connect(f"{node.url}/v1/ws", autoping=False) as socket,
    ):
        node.raft.hold = asyncio.Event()
        for number in range(5):
            await socket.send_bytes(put(number))
        await asyncio.wait_for(node.raft.arrived.wait(), 60)
        yield node, socket


async def test_pings_are_answered_while_the_window_is_full(api_node: Any) -> None:
    async with full_window(api_node) as (node, socket):
        await socket.ping(b"still there?")
        message = await socket.receive(timeout=5)
        assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PONG, b"still there?")
        node.raft.hold.set()
        assert [(await receive(socket))[0] for _ in range(5)] == list(range(5))


async def test_a_close_is_answered_while_the_window_is_full_and_what_waited_is_not_carried_out(api_node: Any) -> None:
    async with full_window(api_node) as (node, socket):
        await socket.close()
        assert socket.close_code is not None
        node.raft.hold.set()
        await node.ask("GET", "/v1/status")
        await node.ask("GET", "/v1/status")
        assert len(node.raft.written) == 2


@pytest.mark.parametrize("bound", ["max_socket_waiting", "WAITING_BYTES_MAX"])
async def test_what_does_not_fit_behind_a_full_window_is_refused_definitely(
    api_node: Any, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    limits = {"max_socket_waiting": 3} if bound == "max_socket_waiting" else {}
    if not limits:
        monkeypatch.setattr(socket_module, "WAITING_BYTES_MAX", 3 * len(put(0)))
    async with full_window(api_node, **limits) as (node, socket):
        for number in (5, 6):
            await socket.send_bytes(put(number))
            refused, ok, error = await receive(socket)
            assert (refused, ok, error["code"], error["outcome"]) == (number, False, "OVERLOADED", "not_applied")
        node.raft.hold.set()
        assert [(await receive(socket))[:2] for _ in range(5)] == [[number, True] for number in range(5)]
        await socket.send_bytes(put(7))
        assert (await receive(socket))[:2] == [7, True]


async def test_who_waits_for_its_turn_beyond_its_deadline_is_told_that_nothing_was_changed(api_node: Any) -> None:
    async with full_window(api_node) as (node, socket):
        await socket.send_bytes(pack([9, "write", pack(Put("late", b"v")), 1]))
        await socket.ping()
        await socket.receive(timeout=5)
        await asyncio.sleep(0.005)
        node.raft.hold.set()
        answers = {}
        for _ in range(6):
            number, ok, data = await receive(socket)
            answers[number] = ok or (data["code"], data["outcome"])
        assert answers == dict.fromkeys(range(5), True) | {9: ("RPC_TIMEOUT", "not_applied")}
        assert "late" not in node.raft.data


async def test_more_sockets_than_the_limit_are_refused(api_node: Any) -> None:
    async with api_node(limits=ApiLimits(max_sockets=1)) as node, node.http.ws_connect(f"{node.url}/v1/ws"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await node.http.ws_connect(f"{node.url}/v1/ws")
        assert refused.value.status == 503


async def test_a_socket_is_closed_when_the_node_stops(api_node: Any) -> None:
    async with api_node() as node, node.http.ws_connect(f"{node.url}/v1/ws") as socket:
        closing = asyncio.create_task(node.api.close())
        await socket.receive(timeout=5)
        await closing
        assert socket.close_code == 1001
        assert node.api.sockets == set()


async def test_a_page_of_another_origin_gets_no_socket(api_node: Any) -> None:
    async with api_node() as node:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await node.http.ws_connect(f"{node.url}/v1/ws", origin="http://evil.example")
        assert refused.value.status == 403


async def test_a_result_that_is_no_message_is_an_answer_all_the_same(
    api_node: Any, fake_raft: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The write was applied: whoever sent it hears that something is wrong, and not nothing."""
    raft = fake_raft(machine="echo")
    raft._apply = lambda command: 2**70
    raft._feed = lambda command, result: None
    async with api_node(raft) as node, node.http.ws_connect(node.url + "/v1/ws") as socket:
        await socket.send_bytes(msgspec.msgpack.encode([7, "write", msgspec.msgpack.encode({"a": 1})]))
        number, ok, error = await receive(socket)
    assert (number, ok, error["code"], error["outcome"]) == (7, False, "INTERNAL", "unknown")
    assert "cannot be encoded" in caplog.text
