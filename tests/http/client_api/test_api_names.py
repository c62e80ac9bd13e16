"""What a request names is what is meant, however it is written; what could mean two things is refused."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_core.types.kv import Put
from raftkit_http.api.openapi import OPERATIONS, document, path_of
from raftkit_http.api.routes import routes


@pytest.mark.parametrize("path", ["/v1/%6bv/a%20b", "/%761/kv/a b", "/v1/k%76/%61%20b", "/v1/kv/a%20b?timeout_ms=900"])
async def test_a_path_that_is_escaped_more_than_it_must_be_names_the_same_key(path: str, api_node: Any) -> None:
    async with api_node() as node:
        status, _ = await node.ask("PUT", path.replace(" ", "%20"), data=b"v")
        assert status == 200
        assert list(node.raft.data) == ["a b"]


async def test_the_word_behind_a_key_may_be_escaped_too(api_node: Any) -> None:
    async with api_node() as node:
        status, _ = await node.ask("POST", "/v1/%6bv/x/%63as", json={"expected": None, "value": "v"})
        assert (status, list(node.raft.data)) == (200, ["x"])


@pytest.mark.parametrize("path", ["/v1/kv?prefix=%FF", "/v1/kv?%FF=a", "/v1/kv?after=%C3"])
async def test_a_query_that_is_not_utf8_is_refused_and_not_taken_for_something_else(path: str, api_node: Any) -> None:
    async with api_node() as node:
        status, answer = await node.ask("GET", path)
    assert (status, answer["error"]["code"]) == (400, "BAD_REQUEST")
    assert "percent-encode" in answer["error"]["hint"]


async def test_a_query_may_hold_any_text(api_node: Any) -> None:
    async with api_node() as node:
        for key in ("a=b&c", "ä+1", "%41"):
            await node.raft.write(Put(key, b"v"))
        for query, found in (("a%3Db%26", "a=b&c"), ("%C3%A4%2B", "ä+1"), ("%2541", "%41")):
            _, answer = await node.ask("GET", f"/v1/kv?prefix={query}")
            assert [item["key"] for item in answer["data"]["items"]] == [found]


@pytest.mark.parametrize(
    ("name", "values", "others"),
    [
        ("If-Match", ['"1"', '"2"'], {}),
        ("If-None-Match", ["*", "*"], {}),
        ("Raftkit-Session", ["0" * 32 + "-1", "0" * 32 + "-2"], {"Raftkit-Serial": "1"}),
        ("Raftkit-Serial", ["1", "2"], {"Raftkit-Session": "0" * 32 + "-1"}),
        ("Raftkit-Acknowledged-Floor", ["0", "1"], {"Raftkit-Session": "0" * 32 + "-1", "Raftkit-Serial": "2"}),
    ],
)
async def test_a_header_that_is_given_twice_is_refused(
    name: str, values: list[str], others: dict[str, str], api_node: Any
) -> None:
    async with api_node() as node:
        headers = [*others.items(), *((name, value) for value in values)]
        status, answer = await node.ask("PUT", "/v1/kv/k", data=b"v", headers=headers)
        assert (status, answer["error"]["message"]) == (400, f"{name} is given twice")
        assert not node.raft.data


async def test_a_place_to_begin_that_is_given_twice_is_refused(api_node: Any) -> None:
    async with api_node() as node:
        headers = [("Last-Event-ID", "1"), ("Last-Event-ID", "2")]
        status, answer = await node.ask("GET", "/v1/watch", headers=headers)
    assert (status, answer["error"]["message"]) == (400, "Last-Event-ID is given twice")


@pytest.mark.parametrize("path", ["/", "/nope", "/v2/kv/a", "/metric", "/v1/nope"])
async def test_every_path_that_is_not_there_is_answered_as_an_error_that_says_where_to_look(
    path: str, api_node: Any
) -> None:
    async with api_node() as node:
        status, answer = await node.ask("GET", path)
    assert (status, answer["schema"], answer["error"]["code"]) == (404, "raftkit.error/1", "NOT_FOUND")
    assert "GET /v1 " in answer["error"]["hint"]


@pytest.mark.parametrize(
    ("method", "path", "offered"),
    [("PATCH", "/v1/kv/k", "DELETE, GET, PUT"), ("POST", "/livez", "GET"), ("PUT", "/v1/members", "GET, POST")],
)
async def test_another_method_is_refused_with_those_there_are(
    method: str, path: str, offered: str, api_node: Any
) -> None:
    async with api_node() as node, node.http.request(method, node.url + path) as response:
        answer = await response.json()
    assert (response.status, response.headers["Allow"]) == (405, offered)
    assert answer["error"]["hint"] == f"use {offered}"


async def test_a_body_that_cannot_be_read_says_where_its_form_is_described(api_node: Any) -> None:
    async with api_node() as node:
        status, answer = await node.ask("POST", "/v1/sessions", json={"ttl_ms": "5"})
    assert (status, answer["error"]["hint"]) == (400, "GET /openapi.json describes what each route takes")


# --- the document and the handlers ----------------------------------------------------------------------------------


async def test_every_route_that_writes_takes_the_headers_it_documents_and_documents_those_it_takes(
    api_node: Any, fake_raft: Any
) -> None:
    """A session without its serial is refused by whoever looks at it."""
    for route in routes():
        key = (route.method, route.path)
        if route.role != "write" or route.path.startswith("/v1/sessions"):
            continue
        operation = OPERATIONS[key]
        path = operation.path_example or route.path
        async with api_node(fake_raft()) as node:
            options: dict[str, Any] = {} if operation.body is None else {"json": operation.example}
            status, answer = await node.ask(route.method, path, headers={"Raftkit-Session": "0" * 32 + "-1"}, **options)
            assert ("Raftkit-Session" in operation.headers) == (status == 400), (key, answer)
            _, answer = await node.ask(route.method, path, headers={"If-Match": "x"}, **options)
            takes_preconditions = "If-Match is a revision" in str(answer)
            assert takes_preconditions == ("If-Match" in operation.headers), key


@pytest.mark.parametrize("key", [key for key in OPERATIONS if OPERATIONS[key].body is not None], ids=" ".join)
async def test_the_document_asks_for_a_body_where_a_request_without_one_is_refused(
    key: tuple[str, str], api_node: Any
) -> None:
    """Whoever leaves a body out that is optional sends no Content-Type either."""
    described = document(routes())["paths"][path_of_key(key)][key[0].lower()]["requestBody"]
    path = OPERATIONS[key].path_example or key[1]
    async with api_node() as node, node.http.request(key[0], node.url + path) as response:
        await response.read()
        assert described["required"] == (response.status == 415)


def path_of_key(key: tuple[str, str]) -> str:
    return next(path_of(route) for route in routes() if (route.method, route.path) == key)
