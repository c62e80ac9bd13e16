"""``/openapi.json``: what this node serves, for people who generate clients and for tests that compare.

Built from the table of routes (methods, paths, roles, query parameters) and from :data:`OPERATIONS`, which adds what a
route takes and gives. The types are those the handlers decode into and answer with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

from raftkit_core.config import ReadPolicy
from raftkit_core.network.client import MembershipResult, NodeStatus
from raftkit_core.runtime.status import toolkit_version
from raftkit_http.api import schema
from raftkit_http.api.envelope import ERROR_SCHEMA, ErrorBody
from raftkit_http.api.guard import Call, Route
from raftkit_http.api.schema import JSON_TYPE, MAX_LIST_KEYS, MAX_SAFE_INT, MSGPACK_TYPE

Json = dict[str, Any]
Key = tuple[str, str]

MAX_EVENTS = 512


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What one route takes and gives. ``answers``: the type of ``data`` by the kind in ``schema``."""

    answers: dict[str, Any] = {}
    body: Any = None
    """The type of the JSON body."""
    example: Any = None
    """A body that is accepted; of a route with a path parameter together with ``path_example``."""
    path_example: str = ""
    raw_body: str | None = None
    """Another media type the body may have."""
    media: str | None = None
    """What is answered instead of an envelope, and with which ``status``."""
    status: int = 200
    headers: tuple[str, ...] = ()
    about: str = ""


SESSION = "00112233445566778899aabbccddeeff-42"
ONCE = ("Raftkit-Session", "Raftkit-Serial", "Raftkit-Acknowledged-Floor")

OPERATIONS: dict[Key, Operation] = {
    ("GET", "/v1"): Operation(answers={"index": schema.IndexAnswer}),
    ("POST", "/v1/write"): Operation(
        body=schema.WriteRequest,
        example={"put": {"key": "greeting", "value": "hello"}},
        raw_body=MSGPACK_TYPE,
        headers=ONCE,
        answers={"write": schema.WriteAnswer},
        about="Exactly one of put, delete, cas, command and command_b64; in MessagePack the command as the machine's"
        " codec encodes it. What becomes of it is in `outcome` of an error.",
    ),
    ("POST", "/v1/read"): Operation(
        body=schema.ReadRequest,
        example={"get": {"key": "greeting"}},
        answers={"kv-item": schema.KeyValueAnswer, "kv-list": schema.ListAnswer},
        about="Exactly one of get and list. Unlike in a path, any key can be asked for, whatever is in it.",
    ),
    ("GET", "/v1/kv"): Operation(
        answers={"kv-list": schema.ListAnswer},
        about="Ask again with `after` set to the last key while `more` is true. A watch from `revision` + 1 misses"
        " nothing that is not in the list.",
    ),
    ("POST", "/v1/kv/{key:.+}/cas"): Operation(
        body=schema.CasValueRequest,
        example={"expected": None, "value": "first"},
        path_example="/v1/kv/once/cas",
        answers={"write": schema.WriteAnswer},
        headers=ONCE,
        about="`expected` null: the key must not exist.",
    ),
    ("GET", "/v1/kv/{key:.+}"): Operation(
        path_example="/v1/kv/greeting",
        answers={"kv": schema.KeyValueBody},
        about="The answer's ETag is the key's revision.",
    ),
    ("PUT", "/v1/kv/{key:.+}"): Operation(
        body=schema.PutValueRequest,
        example={"value": "hello"},
        path_example="/v1/kv/greeting",
        raw_body="*/*",
        answers={"write": schema.WriteAnswer},
        headers=("If-Match", "If-None-Match", *ONCE),
        about='The body is the value as it is; with Content-Type application/json it is {"value": …}. For curl: a'
        " program writes by POST, because HTTP libraries silently repeat a PUT.",
    ),
    ("DELETE", "/v1/kv/{key:.+}"): Operation(
        path_example="/v1/kv/greeting",
        answers={"write": schema.WriteAnswer},
        headers=("If-Match", "If-None-Match", *ONCE),
    ),
    ("GET", "/v1/watch"): Operation(
        media="text/event-stream",
        headers=("Last-Event-ID",),
        about="Events put, delete, progress and end; `id` is a revision. Ends with COMPACTED (HTTP 410 if that is known"
        " at once) when what comes next is no longer kept here.",
    ),
    ("GET", "/v1/ws"): Operation(
        media="application/octet-stream", status=101, about="Frames of MessagePack; see docs/api.md."
    ),
    ("POST", "/v1/sessions"): Operation(
        body=schema.OpenSessionRequest,
        example={"ttl_ms": 30_000},
        answers={"session": schema.SessionAnswer},
        about="Writes that name the session and a serial of their own happen once, however often they are sent.",
    ),
    ("POST", "/v1/sessions/keep-alive"): Operation(
        body=schema.SessionRequest, example={"session": SESSION}, answers={"session": schema.SessionAnswer}
    ),
    ("POST", "/v1/sessions/close"): Operation(
        body=schema.SessionRequest, example={"session": SESSION}, answers={"session-closed": schema.SessionClosedAnswer}
    ),
    ("GET", "/v1/status"): Operation(answers={"status": NodeStatus}),
    ("GET", "/v1/cluster"): Operation(answers={"cluster": schema.ClusterAnswer}),
    ("GET", "/v1/events"): Operation(answers={"events": schema.EventsAnswer}),
    ("GET", "/v1/members"): Operation(answers={"members": schema.MembersAnswer}),
    ("GET", "/v1/leader"): Operation(answers={"leader": schema.LeaderAnswer}),
    ("POST", "/v1/initialize"): Operation(
        body=schema.InitializeRequest,
        example={"members": {"n1": {"peer": "http://127.0.0.1:7401"}}},
        answers={"initialize": schema.InitializeAnswer},
    ),
    ("POST", "/v1/members"): Operation(
        body=schema.AddLearnerRequest,
        example={"id": "n4", "node": {"peer": "http://127.0.0.1:7404"}},
        answers={"membership": MembershipResult},
    ),
    ("POST", "/v1/members/promote"): Operation(
        body=schema.PromoteRequest, example={"ids": ["n4"]}, answers={"membership": MembershipResult}
    ),
    ("POST", "/v1/members/change"): Operation(
        body=schema.ChangeMembersRequest, example={"voters": ["n1", "n4"]}, answers={"membership": MembershipResult}
    ),
    ("POST", "/v1/members/set"): Operation(
        body=schema.SetMembersRequest,
        example={"members": {"n1": {"peer": "http://127.0.0.1:7401"}, "n5": {"peer": "http://127.0.0.1:7405"}}},
        answers={"membership": MembershipResult},
        about="What is missing is added and catches up first; then the voters change. It can be repeated after a"
        " failure at any step.",
    ),
    ("POST", "/v1/members/remove"): Operation(
        body=schema.RemoveMembersRequest, example={"ids": ["n4"]}, answers={"membership": MembershipResult}
    ),
    ("DELETE", "/v1/members/{id}"): Operation(path_example="/v1/members/n4", answers={"membership": MembershipResult}),
    ("POST", "/v1/leader/transfer"): Operation(
        body=schema.TransferRequest, example={}, answers={"transfer": schema.TransferAnswer}
    ),
    ("POST", "/v1/snapshot"): Operation(
        body=schema.EmptyRequest, example={}, answers={"snapshot": schema.SnapshotAnswer}
    ),
    ("GET", "/v1/snapshot"): Operation(
        media="application/octet-stream",
        about="The container raftkit-snapshot/1, with its sha256 in Raftkit-Snapshot-Sha256. 404 before there is one.",
    ),
    ("GET", "/ui"): Operation(media="text/html"),
    ("GET", "/livez"): Operation(
        answers={"health": schema.HealthAnswer},
        about="200 while the node runs; 500 when it has stopped for good, and restarting it may help.",
    ),
    ("GET", "/readyz"): Operation(
        answers={"health": schema.HealthAnswer},
        about="200 if a request sent here now can be served: a leader is known and was heard lately. Else 503.",
    ),
    ("GET", "/metrics"): Operation(media="text/plain", about="Names: docs/metrics.md."),
    ("GET", "/openapi.json"): Operation(media=JSON_TYPE, about="This document."),
}

QUERY: dict[str, Json] = {
    "prefix": {"schema": {"type": "string"}, "description": "Only keys that begin with it."},
    "limit": {"schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIST_KEYS}, "description": "At most so many."},
    "after": {"schema": {"type": "string"}, "description": "Only keys behind this one."},
    "consistency": {
        "schema": {"type": "string", "enum": [policy.value for policy in ReadPolicy]},
        "description": "linearizable (the default), lease (trusts clocks), stale (this node, no promise).",
    },
    "if_revision": {
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_SAFE_INT - 1},
        "description": "The key's revision must be this; 0: it must not exist.",
    },
    "from_revision": {
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_SAFE_INT - 1},
        "description": "Begin with this revision; without it, with the next change.",
    },
    "digest": {"schema": {"enum": ["0", "1", "true", "false"]}, "description": "Also a digest of the machine's state."},
    "events_after": {
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]+:[0-9]{1,16}(,[A-Za-z0-9._-]+:[0-9]{1,16})*$"},
        "description": "ID:NUMBER,…: of each node only events with a higher number.",
    },
    "timeout_ms": {
        "schema": {"type": "integer", "minimum": 1, "maximum": 2**31},
        "description": "How long the answer may take.",
    },
}
"""Query parameters by name; those of one route only stand in :data:`OWN_QUERY`."""

OWN_QUERY: dict[tuple[Key, str], Json] = {
    (("GET", "/v1/events"), "after"): {
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_SAFE_INT - 1},
        "description": "Only events with a higher number.",
    },
    (("GET", "/v1/events"), "limit"): {
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_EVENTS},
        "description": "At most so many.",
    },
}

HEADERS: dict[str, str] = {
    "Raftkit-Session": "The session of the write; together with Raftkit-Serial.",
    "Raftkit-Serial": "The serial of the write in its session: the same when it is sent again.",
    "Raftkit-Acknowledged-Floor": "Every serial up to this one has been answered.",
    "If-Match": "The key's revision must be this one (quoted or not); else 412.",
    "If-None-Match": "Only *: the key must not exist; else 412.",
    "Last-Event-ID": "Begin behind this revision: what a browser sends when it comes back.",
}

_REF = "#/components/schemas/{name}"


def document(routes: Iterable[Route]) -> Json:
    """The document for ``routes``. Raises: KeyError for a route that is not in :data:`OPERATIONS`."""
    table = [(route, OPERATIONS[route.method, route.path]) for route in routes]
    types = list(dict.fromkeys(_types(operation for _, operation in table)))
    schemas, components = msgspec.json.schema_components([*types, ErrorBody], ref_template=_REF)
    by_type = dict(zip([*types, ErrorBody], schemas, strict=True))
    components["ErrorAnswer"] = _envelope(ERROR_SCHEMA, False, "error", by_type[ErrorBody])
    paths: dict[str, Json] = {}
    for route, operation in table:
        paths.setdefault(path_of(route), {})[route.method.lower()] = _operation(route, operation, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "raftkit client API",
            "version": toolkit_version(),
            "description": "Any node takes any request. Every answer is an envelope: {schema, ok, data} or {schema, ok,"
            " error}. With Accept: application/msgpack it comes as MessagePack.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def path_of(route: Route) -> str:
    """``/v1/kv/{key:.+}`` as OpenAPI writes it."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)


def _types(operations: Iterable[Operation]) -> Iterable[Any]:
    for operation in operations:
        yield from operation.answers.values()
        if operation.body is not None:
            yield operation.body


def _operation(route: Route, operation: Operation, by_type: Mapping[Any, Json]) -> Json:
    key = (route.method, route.path)
    parameters: list[Json] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            **({"description": "May hold slashes; percent-encode its UTF-8 bytes."} if name == "key" else {}),
        }
        for name in re.findall(r"\{(\w+)", route.path)
    ]
    for name in (*route.query, "timeout_ms"):
        parameters.append({"name": name, "in": "query", **OWN_QUERY.get((key, name), QUERY.get(name, {}))})
    for name in operation.headers:
        parameters.append({"name": name, "in": "header", "schema": {"type": "string"}, "description": HEADERS[name]})
    described: Json = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "description": f"{operation.about} Role: {route.role}.".strip(),
        "parameters": parameters,
        "responses": {
            str(operation.status): _answer(operation, by_type),
            "default": {
                "description": "What happened, what became of it, and what to do next.",
                "content": {JSON_TYPE: {"schema": {"$ref": _REF.format(name="ErrorAnswer")}}},
            },
        },
        "security": [] if route.role == "open" else [{"token": []}],
    }
    if operation.body is not None:
        content: Json = {JSON_TYPE: {"schema": by_type[operation.body], "example": operation.example}}
        if operation.raw_body is not None:
            content[operation.raw_body] = {"schema": {"type": "string", "format": "binary"}}
        # Where everything has a default `{}` is enough; but a request without a Content-Type may come from any page.
        described["requestBody"] = {"content": content, "required": operation.raw_body != "*/*"}
    return described


def _answer(operation: Operation, by_type: Mapping[Any, Json]) -> Json:
    if operation.media is not None:
        return {"description": "As it is, without an envelope.", "content": {operation.media: {}}}
    envelopes = [_envelope(f"raftkit.{kind}/1", True, "data", by_type[of]) for kind, of in operation.answers.items()]
    return {
        "description": "Done.",
        "content": {JSON_TYPE: {"schema": envelopes[0] if len(envelopes) == 1 else {"anyOf": envelopes}}},
    }


def _envelope(kind: str, ok: bool, name: str, content: Json) -> Json:
    return {
        "type": "object",
        "properties": {"schema": {"const": kind}, "ok": {"const": ok}, name: content},
        "required": ["schema", "ok", name],
        "additionalProperties": False,
    }


def _operation_id(route: Route) -> str:
    words = re.findall(r"[a-z]+", re.sub(r":[^}]*\}", "}", route.path.removeprefix("/v1")))
    return "_".join([route.method.lower(), *words])


@cache
def _encoded() -> bytes:
    from raftkit_http.api.routes import routes

    return msgspec.json.format(msgspec.json.encode(document(routes())), indent=1)


async def get_openapi(call: Call) -> web.Response:
    return web.Response(
        body=_encoded(),
        content_type=JSON_TYPE,
        charset="utf-8",
        headers={"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"},
    )
