"""``/openapi.json`` says what is served: its routes are those there are, and calling each by it works as it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from raftkit_core.types.kv import Put
from raftkit_core.types.membership import Membership, Node
from raftkit_http.api.openapi import OPERATIONS, document, path_of
from raftkit_http.api.routes import routes

DOCUMENT = msgspec.json.decode(msgspec.json.encode(document(routes())))
Key = tuple[str, str]
KEYS = sorted(OPERATIONS)
VALUES = {
    "prefix": "a",
    "limit": "2",
    "after": "0",
    "consistency": "lease",
    "if_revision": "1",
    "from_revision": "1",
    "digest": "1",
    "events_after": "n1:3",
    "timeout_ms": "900",
}
"""A value for each query parameter there is."""


def problems(value: Any, schema: dict[str, Any], where: str = "$") -> Iterator[str]:
    """Where ``value`` is not as ``schema`` says: as much of JSON Schema as the document uses."""
    unknown = set(schema) - {
        *("$ref", "anyOf", "const", "enum", "type", "properties", "required", "additionalProperties", "items"),
        *("minimum", "maximum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "pattern"),
        *("minProperties", "maxProperties", "propertyNames", "title", "description", "default", "contentEncoding"),
    }
    assert not unknown, f"this test does not know {unknown}"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from problems(value, DOCUMENT["components"]["schemas"][name], where)
        return
    if "anyOf" in schema:
        tried = [list(problems(value, one, where)) for one in schema["anyOf"]]
        if all(tried):
            yield f"{where} fits none: {tried}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{where} is {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, not of {schema['enum']}"
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": float,
        "boolean": bool,
        "null": type(None),
    }
    wanted = schema.get("type")
    if wanted is not None and (not isinstance(value, kinds[wanted]) or (value is True and wanted != "boolean")):
        yield f"{where} is {value!r}, no {wanted}"
        return
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where} lacks {name}"
        more = schema.get("additionalProperties", True)
        for name, item in value.items():
            if name in schema.get("properties", {}):
                yield from problems(item, schema["properties"][name], f"{where}.{name}")
            elif more is False:
                yield f"{where} has {name}"
            elif isinstance(more, dict):
                yield from problems(item, more, f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for at, item in enumerate(value):
            yield from problems(item, schema["items"], f"{where}[{at}]")
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"].replace("\\Z", "$"), value):
        yield f"{where} is {value!r}, which {schema['pattern']} does not match"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where} is {value}, out of bounds"


def described(key: Key) -> dict[str, Any]:
    path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", key[1])
    found: dict[str, Any] = DOCUMENT["paths"][path][key[0].lower()]
    return found


def query_of(operation: dict[str, Any]) -> list[str]:
    return [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]


def url_of(key: Key, *names: str) -> str:
    values = {name: "1" if key[1] == "/v1/events" and name == "after" else VALUES[name] for name in names}
    return f"{OPERATIONS[key].path_example or key[1]}?{urlencode(values)}"


async def call(node: Any, key: Key, *names: str, body: bytes | None = None) -> Any:
    """Status, content type and content."""
    options: dict[str, Any] = {}
    if OPERATIONS[key].body is not None:
        example = msgspec.json.encode(OPERATIONS[key].example)
        options = {"data": example if body is None else body, "headers": {"Content-Type": "application/json"}}
    async with node.http.request(key[0], node.url + url_of(key, *names), **options) as response:
        if response.content_type == "text/event-stream":
            return response.status, response.content_type, (await response.content.readline()).decode()
        return response.status, response.content_type, await response.read()


@pytest.fixture
def prepared(fake_raft: Any) -> Any:
    """A node that has what the examples are about."""

    async def make() -> Any:
        raft = fake_raft()
        nodes = {name: Node(f"http://127.0.0.1:{port}") for port, name in ((7401, "n1"), (7404, "n4"))}
        raft.membership = Membership.of([["n1"]], nodes)
        await raft.write(Put("greeting", b"hello"))
        return raft

    return make


def test_the_document_has_exactly_the_routes_there_are() -> None:
    served = {(route.method.lower(), path_of(route)) for route in routes()}
    assert served == {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert {(route.method, route.path) for route in routes()} == set(OPERATIONS)


def test_every_route_says_its_role_and_every_operation_has_an_id_of_its_own() -> None:
    for route in routes():
        operation = described((route.method, route.path))
        assert operation["description"].endswith(f"Role: {route.role}.")
        assert operation["security"] == ([] if route.role == "open" else [{"token": []}])
        assert query_of(operation) == [*route.query, "timeout_ms"]
    ids = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_somewhere_and_nothing_is_left_over() -> None:
    text = msgspec.json.encode(DOCUMENT).decode()
    used = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert used == set(DOCUMENT["components"]["schemas"])


@pytest.mark.parametrize("key", KEYS, ids=" ".join)
async def test_a_call_as_documented_is_answered_as_documented(key: Key, api_node: Any, prepared: Any) -> None:
    operation, raft = described(key), await prepared()
    if key[1] == "/v1/ws":
        return  # test_api_socket
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert list(problems(OPERATIONS[key].example, schema)) == []
    async with api_node(raft) as node:
        status, media, content = await call(node, key)
        assert str(status) in operation["responses"], content
        schema = operation["responses"][str(status)]["content"][media].get("schema")
        if schema is not None:
            assert list(problems(msgspec.json.decode(content), schema)) == []


@pytest.mark.parametrize("key", KEYS, ids=" ".join)
async def test_every_documented_parameter_is_taken_and_no_other(key: Key, api_node: Any, prepared: Any) -> None:
    if key[1] == "/v1/ws":
        return
    raft = await prepared()
    operation = described(key)
    for parameter in operation["parameters"]:
        if parameter["in"] == "query":
            assert "schema" in parameter, f"{parameter['name']} is not described"
    async with api_node(raft) as node:
        status, _, content = await call(node, key, *query_of(operation))
        assert status in (200, 409), content
        async with node.http.request(key[0], node.url + url_of(key) + "&nonsense=1") as response:
            answer = await response.json()
            assert response.status == 400
            assert "nonsense" in answer["error"]["message"]
            assert list(problems(answer, DOCUMENT["components"]["schemas"]["ErrorAnswer"])) == []


@pytest.mark.parametrize("key", [key for key in KEYS if OPERATIONS[key].body is not None], ids=" ".join)
async def test_a_body_that_is_not_as_documented_is_refused(key: Key, api_node: Any, prepared: Any) -> None:
    async with api_node(await prepared()) as node:
        for body in (b'{"nonsense": 1}', b"[1]", b"null", b"{"):
            status, _, content = await call(node, key, body=body)
            answer = msgspec.json.decode(content)
            assert (status, answer["error"]["code"]) == (400, "BAD_REQUEST")
            assert list(problems(answer, DOCUMENT["components"]["schemas"]["ErrorAnswer"])) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Match": '"1"'}, 200),
        ({"If-Match": "1"}, 200),
        ({"If-Match": '"7"'}, 412),
        ({"If-None-Match": "*"}, 412),
        ({"If-Match": "*"}, 400),
        ({"If-None-Match": '"1"'}, 400),
        ({"If-Match": "1", "If-None-Match": "*"}, 400),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_preconditions_as_headers(
    method: str, headers: dict[str, str], status: int, api_node: Any, prepared: Any
) -> None:
    async with api_node(await prepared()) as node:
        async with node.http.get(f"{node.url}/v1/kv/greeting") as response:
            assert response.headers["ETag"] == '"1"'
        async with node.http.request(method, f"{node.url}/v1/kv/greeting", headers=headers, data=b"x") as response:
            assert response.status == status
        found, answer = await node.ask("DELETE", "/v1/kv/greeting?if_revision=99")
        assert (found, answer["error"]["code"]) == (409, "PRECONDITION_FAILED")
        async with node.http.put(f"{node.url}/v1/kv/new", headers={"If-None-Match": "*"}, data=b"x") as response:
            assert response.status == 200


async def test_members_are_promoted_and_set_from_any_node(api_node: Any, prepared: Any) -> None:
    async with api_node(await prepared()) as node:
        raft = node.raft
        _, answer = await node.ask("POST", "/v1/members/promote", json={"ids": ["n4"]})
        assert [(member["id"], member["voter"]) for member in answer["data"]["members"]] == [("n1", True), ("n4", True)]
        body = {"members": {"n1": {"peer": "http://127.0.0.1:7401"}, "n5": {"peer": "http://127.0.0.1:5"}}}
        _, answer = await node.ask("POST", "/v1/members/set", json=body)
        assert [type(operation).__name__ for operation in raft.operations] == [
            "ChangeMembership",
            "AddLearner",
            "ChangeMembership",
        ]
        voters = [member["id"] for member in answer["data"]["members"] if member["voter"]]
        assert voters == ["n1", "n5"]


async def test_it_is_served(api_node: Any) -> None:
    async with api_node() as node:
        status, found = await node.ask("GET", "/openapi.json")
        assert (status, found) == (200, DOCUMENT)
