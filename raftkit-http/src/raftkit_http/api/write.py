"""``POST /v1/write``: a command of the state machine, as JSON, or encoded by the machine's own codec."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from raftkit_core.errors import BadCommand, BadRequest, NotFound, RaftError, RequestTooLarge
from raftkit_core.types.kv import KV_MACHINE
from raftkit_http.api.decode import check_depth, clean, decode_json, read_body, require_type
from raftkit_http.api.envelope import success
from raftkit_http.api.guard import Call
from raftkit_http.api.handle import RaftHandle, WriteOutcome
from raftkit_http.api.schema import JSON_TYPE, MSGPACK_TYPE, KvWriteRequest, WriteAnswer, WriteRequest, kv_command


async def post_write(call: Call) -> web.Response:
    media_type = require_type(call.request, JSON_TYPE, MSGPACK_TYPE)
    body = await read_body(call.request, call.command_limit_bytes)
    if media_type == MSGPACK_TYPE:
        command = command_of_bytes(call.raft, body)
    else:
        command = command_of_json(call.raft, decode_json(body, WriteRequest))
    return success(call.request, "write", await propose(call, command))


def command_of_bytes(raft: RaftHandle, body: bytes) -> Any:
    """Raises: BadCommand, RequestTooLarge."""
    check_size(raft, body)
    return raft.machine.codec.decode_command(body)


def command_of_json(raft: RaftHandle, body: WriteRequest) -> Any:
    """The one form given, as the machine's command. Raises: BadRequest, BadCommand, RequestTooLarge, NotFound."""
    forms = [name for name in body.__struct_fields__ if getattr(body, name) is not msgspec.UNSET]
    if len(forms) != 1:
        raise BadRequest(
            f"a write is exactly one of put, delete, cas, command and command_b64, not {len(forms)}",
            hint='for example {"put": {"key": "hello", "value": "world"}}',
        )
    if not isinstance(body.command_b64, msgspec.UnsetType):
        return command_of_bytes(raft, body.command_b64)
    if forms == ["command"]:
        return command_of_data(raft, body.command)
    require_kv(raft)
    return kv_command(body.put, body.delete, body.cas)


def command_of_data(raft: RaftHandle, data: Any) -> Any:
    """JSON-like data as a command: for kv in its named forms, else as the machine's codec reads its MessagePack."""
    if raft.machine.name == KV_MACHINE:
        try:
            return msgspec.convert(data, KvWriteRequest, strict=True).to_command()
        except msgspec.ValidationError as error:
            raise BadRequest(f"this is no kv command: {clean(str(error))}") from error
    check_depth(data)
    try:
        encoded = msgspec.msgpack.encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadCommand(f"the command cannot be encoded: {error}") from error
    return command_of_bytes(raft, encoded)


def require_kv(raft: RaftHandle) -> None:
    """Raises: NotFound if this cluster runs another machine."""
    if raft.machine.name != KV_MACHINE:
        raise NotFound(
            f"this cluster runs the machine {raft.machine.name}, which has no keys",
            hint='write its commands with POST /v1/write and {"command": …}',
        )


def check_size(raft: RaftHandle, encoded: bytes) -> None:
    """Raises: RequestTooLarge."""
    if len(encoded) > raft.config.max_entry_bytes:
        raise RequestTooLarge(
            f"the command has {len(encoded)} bytes, this node takes {raft.config.max_entry_bytes}",
            hint="split it, or raise max_entry_bytes in the nodes' configuration",
        )


async def propose(call: Call, command: Any) -> WriteAnswer:
    """Write, from whatever node this is. Raises: what ``Raft.write`` raises, the machine's refusal included."""
    check_size(call.raft, call.raft.machine.codec.encode_command(command))
    outcome = await call.change(measured(call, command))
    return WriteAnswer(
        log_index=outcome.log_id.index, term=outcome.log_id.term, result=msgspec.to_builtins(outcome.data)
    )


async def measured(call: Call, command: Any) -> WriteOutcome:
    metrics, clock = call.api.metrics, asyncio.get_running_loop().time
    started = clock()
    try:
        outcome = await call.raft.write(command, timeout=call.remaining)
        if isinstance(outcome.data, RaftError):
            raise outcome.data
    except RaftError as error:
        metrics.proposal_failed(error.code)
        raise
    metrics.proposal(clock() - started)
    return outcome
