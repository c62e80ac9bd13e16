"""Nodes that are gone, silent, lying or slow: a change is repeated only where it provably did not happen."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raftkit_core.errors import (
    BadCommand,
    ForwardToLeader,
    InProgress,
    OutcomeUnknown,
    Overloaded,
    QuorumNotEnough,
    RaftError,
    RequestTooLarge,
    StorageFull,
    Unreachable,
)
from raftkit_core.testing.ports import free_urls
from raftkit_core.types.membership import Membership, Node
from raftkit_http.client import HttpClusterClient

MEMBERS = {
    "schema": "raftkit.members/1",
    "ok": True,
    "data": {"members": [], "joint": False, "log_index": 0, "id": "x", "leader": None, "term": 1},
}


class Rogue:
    """A server that answers whatever a test wants; None breaks the connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []


@asynccontextmanager
async def rogue(post: bytes | None, *, get: bytes | str | None = "members") -> AsyncIterator[Rogue]:
    served: Rogue
    tasks: set[asyncio.Task[None]] = set()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.add(writer)
        try:
            while line := (await reader.readline()).decode():
                length = 0
                while (header := (await reader.readline()).decode().strip().lower()) != "":
                    if header.startswith("content-length:"):
                        length = int(header.partition(":")[2])
                await reader.readexactly(length)
                served.requests.append(" ".join(line.split("?")[0].split()[:2]))
                answer = post if line.startswith("POST") else get
                if answer == "members":
                    answer = ok(MEMBERS)
                if answer is None:
                    break
                assert isinstance(answer, bytes)
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            writers.discard(writer)
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    served = Rogue(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield served
    finally:
        server.close()
        for writer in list(writers):
            writer.close()
        await asyncio.gather(*tasks)
        await server.wait_closed()


def raw(status: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])
    return head.encode() + b"\r\n\r\n" + body


def ok(document: Any) -> bytes:
    return raw("200 OK", json.dumps(document).encode(), "Content-Type: application/json")


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """Takes connections and says nothing, like a stopped process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def dead_url() -> str:
    """A port nobody listens on."""
    return free_urls(1)[0]


async def test_a_dead_endpoint_is_passed_over_and_the_one_that_answered_is_remembered(api_node: Any) -> None:
    async with (
        rogue(None, get=None) as broken,
        api_node() as node,
        HttpClusterClient([dead_url(), broken.url, node.url]) as client,
    ):
        await client.kv_put("k", b"1")
        assert broken.requests == ["GET /v1/members"] * len(broken.requests), "a change was never risked there"
        asked = len(broken.requests)
        await client.kv_put("k", b"2")
        assert len(broken.requests) == asked
    assert len(node.raft.written) == 2


async def test_members_learned_from_an_answer_are_asked_when_the_first_node_is_gone(
    api_node: Any, fake_raft: Any
) -> None:
    async with api_node(fake_raft("n2")) as two, api_node() as one:
        nodes = {"n1": Node(one.url), "n2": Node("http://127.0.0.1:1", client=two.url), "n3": Node("memory:x")}
        one.raft.membership = Membership.of([nodes], nodes)
        async with HttpClusterClient([one.url]) as client:
            await client.kv_put("k", b"1")
            await one.server.close()
            await client.kv_put("k", b"2")
            assert (await client.status()).id == "n2"
    assert [len(one.raft.written), len(two.raft.written)] == [1, 1]


async def test_a_lost_answer_to_a_change_is_an_unknown_outcome_and_nobody_else_is_asked(api_node: Any) -> None:
    async with rogue(None) as broken, api_node() as node, HttpClusterClient([broken.url, node.url]) as client:
        with pytest.raises(OutcomeUnknown, match="may or may not") as unknown:
            await client.kv_put("k", b"v")
        assert unknown.value.outcome == "unknown"
        assert unknown.value.hint is not None
        assert broken.requests == ["GET /v1/members", "POST /v1/write"], "sent once"
        assert node.raft.written == []


@pytest.mark.parametrize("changes", ["initialize", "add_learner", "change_membership", "remove_nodes", "transfer"])
async def test_every_change_whose_answer_is_lost_is_unknown(changes: str) -> None:
    async with rogue(None) as broken, HttpClusterClient([broken.url]) as client:
        call = {
            "initialize": lambda: client.initialize({"n1": Node("http://h:1")}),
            "add_learner": lambda: client.add_learner("n2", Node("http://h:1")),
            "change_membership": lambda: client.change_membership(["n1"]),
            "remove_nodes": lambda: client.remove_nodes(["n1"]),
            "transfer": lambda: client.transfer_leader(),
        }[changes]
        with pytest.raises(OutcomeUnknown):
            await call()


async def test_a_lost_answer_to_a_read_is_asked_of_the_next_node(api_node: Any) -> None:
    async with rogue(None) as broken, api_node() as node, HttpClusterClient([broken.url, node.url]) as client:
        assert await client.kv_get("k") is None
        assert broken.requests == ["POST /v1/read"]


async def test_a_silent_node_is_found_out_before_a_change_is_sent(
    api_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftkit_http.attempt.PROBE_SECONDS", 0.05)
    async with silent() as stopped, api_node() as node, HttpClusterClient([stopped, node.url]) as client:
        await client.kv_put("k", b"v")
    assert len(node.raft.written) == 1


async def test_a_silent_node_does_not_eat_the_time_of_a_read(api_node: Any) -> None:
    async with (
        silent() as stopped,
        api_node() as node,
        HttpClusterClient([stopped, node.url], timeout=0.6) as client,
    ):
        assert await client.kv_get("k") is None


async def test_a_change_that_gets_no_answer_in_time_is_unknown(api_node: Any) -> None:
    async with api_node() as node, HttpClusterClient([node.url], timeout=0.3) as client:
        await client.status()
        node.raft.hold = asyncio.Event()
        with pytest.raises(OutcomeUnknown):
            await client.kv_put("k", b"v")
        node.raft.hold.set()


@pytest.mark.parametrize(
    "error",
    [
        QuorumNotEnough("one of three"),
        ForwardToLeader("nobody leads"),
        Overloaded("full"),
        InProgress("a change is under way"),
    ],
    ids=lambda error: error.code,
)
async def test_what_was_definitely_not_applied_and_may_work_later_is_tried_again_and_applied_once(
    api_node: Any, error: RaftError
) -> None:
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        node.raft.failure = error
        writing = asyncio.create_task(client.kv_put("k", b"v"))
        await asyncio.wait_for(node.raft.arrived.wait(), 60)
        node.raft.failure = None
        await writing
        assert [len(node.raft.written), node.raft.data["k"].revision] == [1, 1]


async def test_a_refusal_that_lasts_is_raised_as_itself_when_the_time_is_up(api_node: Any) -> None:
    async with api_node() as node, HttpClusterClient([node.url], timeout=0.3) as client:
        node.raft.failure = QuorumNotEnough("1 of 3 voters reachable", hint="raftkit local restart n1")
        with pytest.raises(QuorumNotEnough, match="1 of 3") as refused:
            await client.kv_put("k", b"v")
        assert (refused.value.outcome, refused.value.hint) == ("not_applied", "raftkit local restart n1")


async def test_a_refusal_for_good_is_raised_at_once_and_nobody_else_is_asked(api_node: Any, fake_raft: Any) -> None:
    async with api_node() as one, api_node(fake_raft("n2")) as two, HttpClusterClient([one.url, two.url]) as client:
        one.raft.failure = BadCommand("too large")
        with pytest.raises(BadCommand):
            await client.kv_put("k", b"v")
        assert two.raft.written == []


async def test_an_error_with_an_unknown_outcome_is_never_repeated(api_node: Any, fake_raft: Any) -> None:
    async with api_node() as one, api_node(fake_raft("n2")) as two, HttpClusterClient([one.url, two.url]) as client:
        one.raft.failure = StorageFull("no space left")
        with pytest.raises(OutcomeUnknown, match="STORAGE_FULL"):
            await client.kv_put("k", b"v")
        assert two.raft.written == []
        assert await client.kv_get("k") is None, "a read goes on to the next node"


async def test_a_node_that_is_stopping_hands_its_clients_to_the_next(api_node: Any, fake_raft: Any) -> None:
    async with api_node() as one, api_node(fake_raft("n2")) as two, HttpClusterClient([one.url, two.url]) as client:
        await client.kv_put("k", b"1")
        await one.api.close()
        await client.kv_put("k", b"2")
    assert [len(one.raft.written), len(two.raft.written)] == [1, 1]


async def test_the_leader_a_node_names_is_asked_next(api_node: Any, fake_raft: Any) -> None:
    async with api_node() as one, api_node(fake_raft("n2")) as two, HttpClusterClient([one.url]) as client:
        one.raft.failure = ForwardToLeader("n2 leads", leader="n2", leader_node=Node(two.url))
        await client.kv_put("k", b"v")
        assert len(two.raft.written) == 1


async def test_when_nobody_answers_every_endpoint_is_named_with_its_reason() -> None:
    dead = dead_url()
    async with silent() as stopped, HttpClusterClient([dead, stopped], timeout=0.2) as client:
        for call in (client.status, lambda: client.kv_get("k"), lambda: client.kv_put("k", b"v")):
            with pytest.raises(Unreachable) as unreachable:
                await call()
            assert f"{dead} (connection refused)" in unreachable.value.message
            assert f"{stopped} (no answer in time)" in unreachable.value.message
            assert unreachable.value.outcome == "not_applied"
            assert unreachable.value.hint is not None
            assert "raftkit local up" in unreachable.value.hint


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    async with HttpClusterClient(["http://no-such-host.invalid:7401"], timeout=2) as client:
        with pytest.raises(Unreachable, match=r"no-such-host\.invalid"):
            await client.status()


async def test_asking_one_node_asks_only_that_one(api_node: Any) -> None:
    dead = dead_url()
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        with pytest.raises(Unreachable) as unreachable:
            await client.status_of(dead)
        assert node.url not in unreachable.value.message
        assert (await client.status()).id == "n1"


async def test_of_several_endpoints_one_that_belongs_to_a_cluster_says_how_it_is(api_node: Any, fake_raft: Any) -> None:
    """The first lost its data: it knows of no cluster, and must not be taken for a place to begin one."""
    async with api_node(fake_raft("n2")) as two, api_node() as wiped, silent() as stopped:
        wiped.raft.membership = Membership.of([], {})
        async with HttpClusterClient([wiped.url]) as client:
            assert (await client.status()).members == []
        async with HttpClusterClient([wiped.url, dead_url(), two.url], timeout=3) as client:
            assert (await client.status()).id == "n2"
            await client.kv_put("k", b"1")
        async with HttpClusterClient([wiped.url, stopped], timeout=0.2) as client:
            assert (await client.status()).id == "n1"
    assert [len(wiped.raft.written), len(two.raft.written)] == [0, 1]


GARBAGE: list[tuple[str, bytes]] = [
    ("a redirect", raw("302 Found", b"", "Location: http://169.254.169.254/")),
    ("a page", raw("200 OK", b"<html>hello</html>", "Content-Type: text/html")),
    ("a foreign 404", raw("404 Not Found", b"not found")),
    ("a gateway error", raw("502 Bad Gateway", b"<html>")),
    ("no envelope", ok({"id": "n1"})),
    ("no data", ok({"schema": "s", "ok": True})),
    ("an unknown outcome", ok({"schema": "s", "ok": False, "error": {"code": "X", "message": "", "outcome": "maybe"}})),
    ("a float as an index", ok({"schema": "s", "ok": True, "data": {"id": "x", "cluster": "c", "term": 1.5}})),
    ("nested without end", raw("200 OK", b"[" * 100_000)),
    ("compressed", raw("200 OK", b"\x1f\x8b\x08\x00", "Content-Encoding: gzip")),
    ("endless headers", raw("200 OK", b"", *(f"X-{number}: {'x' * 100}" for number in range(500)))),
    ("too large", raw("200 OK", b"").replace(b"Content-Length: 0", b"Content-Length: 99999999999")),
    ("no HTTP", b"SSH-2.0-OpenSSH\r\n\r\n"),
]


@pytest.mark.parametrize(("what", "answer"), GARBAGE, ids=[row[0] for row in GARBAGE])
async def test_a_garbled_answer_is_no_answer_and_the_next_node_is_asked(
    api_node: Any, what: str, answer: bytes
) -> None:
    async with rogue(answer, get=answer) as liar, api_node() as node:
        async with HttpClusterClient([liar.url, node.url]) as client:
            assert (await client.status()).id == "n1"
            await client.kv_put("k", b"v")
        async with HttpClusterClient([liar.url]) as client:
            with pytest.raises(Unreachable):
                await client.status()
    assert all(request.startswith("GET /v1/") for request in liar.requests)
    assert len(node.raft.written) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (raw("200 OK", b"{}"), OutcomeUnknown),
        (raw("502 Bad Gateway", b""), OutcomeUnknown),
        (raw("302 Found", b"", "Location: http://h/"), Unreachable),
        (raw("404 Not Found", b""), Unreachable),
    ],
)
async def test_a_garbled_answer_to_a_change_is_unknown_unless_it_says_that_nothing_was_done(
    answer: bytes, error: type[RaftError]
) -> None:
    async with rogue(answer) as liar, HttpClusterClient([liar.url]) as client:
        with pytest.raises(error):
            await client.kv_put("k", b"v")
        assert liar.requests.count("POST /v1/write") == 1


async def test_an_error_code_of_a_newer_node_is_still_an_error_with_its_outcome() -> None:
    info = {"code": "NEW_IN_V9", "message": "m", "hint": "h", "retryable": False, "outcome": "not_applied", "x": 1}
    async with (
        rogue(ok({"schema": "s", "ok": False, "error": info})) as newer,
        HttpClusterClient([newer.url]) as client,
    ):
        with pytest.raises(RaftError, match="m") as error:
            await client.kv_put("k", b"v")
        assert (error.value.outcome, error.value.hint) == ("not_applied", "h")


async def test_proxies_of_the_environment_are_not_used(api_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_url())
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        assert (await client.status()).id == "n1"


async def test_many_calls_at_once_are_each_applied_once(api_node: Any, fake_raft: Any) -> None:
    async with (
        api_node() as one,
        api_node(fake_raft("n2")) as two,
        HttpClusterClient([one.url, dead_url(), two.url], timeout=30) as client,
    ):
        await asyncio.gather(*(client.kv_put(f"k{number}", b"v") for number in range(150)))
    assert len(one.raft.written) + len(two.raft.written) == 150
    assert len(one.raft.data) + len(two.raft.data) == 150


@pytest.mark.parametrize("size", [2_000_000, 20_000_000])
async def test_a_value_that_is_too_large_is_refused_as_that_and_not_as_an_unknown_outcome(
    api_node: Any, size: int
) -> None:
    async with api_node() as node, HttpClusterClient([node.url]) as client:
        with pytest.raises(RequestTooLarge) as refused:
            await client.kv_put("k", b"x" * size)
        assert refused.value.outcome == "not_applied"
        await client.kv_put("k", b"v")
    assert len(node.raft.written) == 1


async def test_what_to_do_about_a_node_that_does_not_answer_depends_on_why(authority: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    (closed,) = free_urls(1)
    async with rogue(None, get=None) as broken, plain:
        for url, hint in {
            broken.url: "-e https://HOST:PORT",  # as a listener with TLS breaks off when it is asked in plain text
            f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}": "plain HTTP as http://HOST:PORT",
            closed: "raftkit local up",
        }.items():
            async with HttpClusterClient([url], ca=authority.ca_file, timeout=2) as client:
                with pytest.raises(Unreachable) as refused:
                    await client.status()
            assert hint in str(refused.value.hint), refused.value
