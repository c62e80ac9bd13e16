"""``/v1/kv`` and ``POST /v1/read``: the key-value machine for people, curl and clients."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec
from aiohttp import hdrs, web

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import BadRequest, NotFound, RequestTooLarge
from raftkit_core.types.kv import Delete, Get, KeyValue, ListKeys, Put
from raftkit_http.api.decode import decode_json, key_in_path, precondition, quoted, read_body
from raftkit_http.api.envelope import success
from raftkit_http.api.guard import Call
from raftkit_http.api.schema import (
    JSON_TYPE,
    MAX_LIST_BYTES,
    CasValueRequest,
    KeyValueAnswer,
    KeyValueBody,
    ListAnswer,
    PutValueRequest,
    ReadRequest,
)
from raftkit_http.api.write import once_of_headers, propose, require_kv

KEY_CHARACTER_BYTES = 6
"""What a character of a key takes at most in JSON."""


async def get_key(call: Call) -> web.Response:
    key = key_in_path(call.request)
    answer = await read_key(call, key, call.query.consistency())
    if answer.item is None:
        raise NotFound(f"the key {quoted(key)} does not exist", hint="GET /v1/kv lists the keys there are")
    response = success(call.request, "kv", answer.item)
    response.headers[hdrs.ETAG] = f'"{answer.item.revision}"'
    return response


async def list_keys(call: Call) -> web.Response:
    query = ListKeys(prefix=call.query.text("prefix") or "", limit=call.query.limit(), after=call.query.text("after"))
    return success(call.request, "kv-list", await read_list(call, query, call.query.consistency()))


async def post_read(call: Call) -> web.Response:
    body = await call.json(ReadRequest)
    return success(call.request, *await answer_read(call, body))


async def answer_read(call: Call, body: ReadRequest) -> tuple[str, Any]:
    """Schema and data of the answer. Raises: BadRequest unless exactly one of get and list is asked."""
    policy = ReadPolicy(body.consistency)
    if not isinstance(body.get, msgspec.UnsetType) and isinstance(body.list, msgspec.UnsetType):
        return "kv-item", await read_key(call, body.get.key, policy)
    if not isinstance(body.list, msgspec.UnsetType) and isinstance(body.get, msgspec.UnsetType):
        query = ListKeys(prefix=body.list.prefix, limit=body.list.limit, after=body.list.after)
        return "kv-list", await read_list(call, query, policy)
    raise BadRequest("a read is exactly one of get and list", hint='for example {"get": {"key": "hello"}}')


async def put_key(call: Call) -> web.Response:
    """The body is the value as it is; with ``Content-Type: application/json`` it is ``{"value": …}``."""
    require_kv(call.raft)
    key, if_revision = key_in_path(call.request), precondition(call.request, call.query)
    once = once_of_headers(call.request)
    body = await read_body(call.request, call.command_limit_bytes)
    if call.request.content_type == JSON_TYPE:
        body = decode_json(body, PutValueRequest).value_bytes()
    return success(call.request, "write", await propose(call, Put(key, body, if_revision), once))


async def delete_key(call: Call) -> web.Response:
    require_kv(call.raft)
    command = Delete(key_in_path(call.request), precondition(call.request, call.query))
    return success(call.request, "write", await propose(call, command, once_of_headers(call.request)))


async def cas_key(call: Call) -> web.Response:
    require_kv(call.raft)
    key = key_in_path(call.request, before="cas")
    body = await call.json(CasValueRequest, limit_bytes=call.command_limit_bytes)
    return success(call.request, "write", await propose(call, body.command_for(key), once_of_headers(call.request)))


async def read_key(call: Call, key: str, policy: ReadPolicy) -> KeyValueAnswer:
    require_kv(call.raft)
    found: KeyValue | None = await call.raft.read(Get(key), policy, timeout=call.remaining)
    return KeyValueAnswer(item=None if found is None else KeyValueBody.of(found))


async def read_keys(call: Call, keys: Sequence[str], policy: ReadPolicy) -> list[KeyValueBody | None]:
    """One position is confirmed for all of them. Raises: RequestTooLarge above ``MAX_LIST_BYTES``."""
    require_kv(call.raft)

    found: list[KeyValue | None] = []
    size = 0

    def is_enough(item: KeyValue | None) -> bool:
        """What is too much is not read to its end: a thousand values may be a gigabyte."""
        nonlocal size
        found.append(item)
        size += 0 if item is None else len(item.key) + len(item.value)
        return size > MAX_LIST_BYTES

    def look_up(machine: Any) -> Any:
        nonlocal size
        found.clear()
        size = 0
        for number, key in enumerate(keys):
            item = machine.query(Get(key))
            if isinstance(item, Awaitable):
                return look_up_the_rest(machine, item, keys[number + 1 :])
            if is_enough(item):
                break
        return None

    async def look_up_the_rest(machine: Any, first: Awaitable[KeyValue | None], others: Sequence[str]) -> None:
        if is_enough(await first):
            return
        for key in others:
            item = machine.query(Get(key))
            if is_enough(await item if isinstance(item, Awaitable) else item):
                return

    await call.raft.read(look_up, policy, timeout=call.remaining)
    if size > MAX_LIST_BYTES:
        raise RequestTooLarge(
            f"the values of these {len(keys)} keys have more than the {MAX_LIST_BYTES} bytes that one answer takes",
            hint="ask for fewer keys at once",
        )
    return [None if item is None else KeyValueBody.of(item) for item in found]


async def read_list(call: Call, query: ListKeys, policy: ReadPolicy) -> ListAnswer:
    """Cut at ``MAX_LIST_BYTES``: a thousand values of a megabyte are no answer."""
    require_kv(call.raft)
    revision = call.raft.metrics().value.applied_index or 0
    bounded = msgspec.structs.replace(query, max_bytes=MAX_LIST_BYTES)
    found: list[KeyValue] = await call.raft.read(bounded, policy, timeout=call.remaining)
    items: list[KeyValueBody] = []
    size = 0
    for item in found:
        size += KEY_CHARACTER_BYTES * len(item.key) + len(item.value)
        if items and size > MAX_LIST_BYTES:
            break
        items.append(KeyValueBody.of(item))
    more = len(items) < len(found) or len(found) >= query.limit or size >= MAX_LIST_BYTES
    return ListAnswer(items=items, more=more, revision=revision)
