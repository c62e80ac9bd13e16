"""``POST /v1/write``: a command of the state machine, as JSON, or encoded by the machine's own codec."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from raftkit_core.errors import BadCommand, BadRequest, NotFound, RaftError, RequestTooLarge
from raftkit_core.types.kv import KV_MACHINE
from raftkit_core.types.session import MAX_SERIAL, SessionRef, SessionSerial
from raftkit_http.api.decode import check_depth, clean, decode_json, one_header, quoted, read_body, require_type
from raftkit_http.api.envelope import success
from raftkit_http.api.guard import Call
from raftkit_http.api.handle import RaftHandle, WriteOutcome
from raftkit_http.api.schema import (
    COMMANDS,
    JSON_TYPE,
    MSGPACK_TYPE,
    KvWriteRequest,
    WriteAnswer,
    WriteRequest,
    kv_command,
)

SESSION_HEADER = "Raftkit-Session"
SERIAL_HEADER = "Raftkit-Serial"
FLOOR_HEADER = "Raftkit-Acknowledged-Floor"


async def post_write(call: Call) -> web.Response:
    media_type = require_type(call.request, JSON_TYPE, MSGPACK_TYPE)
    once = once_of_headers(call.request)
    body = await read_body(call.request, call.command_limit_bytes)
    if media_type == MSGPACK_TYPE:
        command = command_of_bytes(call.raft, body)
    else:
        request = decode_json(body, WriteRequest)
        command = command_of_json(call.raft, request)
        once = once_of_body(request, once)
    return success(call.request, "write", await propose(call, command, once))


def command_of_bytes(raft: RaftHandle, body: bytes) -> Any:
    """Raises: BadCommand, RequestTooLarge."""
    check_size(raft, body)
    return raft.machine.codec.decode_command(body)


def command_of_json(raft: RaftHandle, body: WriteRequest) -> Any:
    """The one form given, as the machine's command. Raises: BadRequest, BadCommand, RequestTooLarge, NotFound."""
    forms = [name for name in COMMANDS if getattr(body, name) is not msgspec.UNSET]
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


def once_of_headers(request: web.Request) -> SessionSerial | None:
    """``Raftkit-Session`` and ``Raftkit-Serial`` (and ``Raftkit-Acknowledged-Floor``) of a write; None without them.

    Raises: BadRequest.
    """
    session, serial = one_header(request, SESSION_HEADER), one_header(request, SERIAL_HEADER)
    floor = one_header(request, FLOOR_HEADER)
    if session is None and serial is None and floor is None:
        return None
    if session is None or serial is None:
        raise BadRequest(f"{SESSION_HEADER} and {SERIAL_HEADER} are given together, or not at all")
    numbers: list[int] = []
    for name, text in ((SERIAL_HEADER, serial), (FLOOR_HEADER, "0" if floor is None else floor)):
        if not (text.isascii() and text.isdecimal() and len(text) <= 16):
            raise BadRequest(f"{name} must be a number, not {quoted(text)}")
        numbers.append(int(text))
    return _once(session, *numbers)


def once_of_body(body: WriteRequest, from_headers: SessionSerial | None) -> SessionSerial | None:
    """Session and serial of a JSON write. Raises: BadRequest."""
    if isinstance(body.session, msgspec.UnsetType) and isinstance(body.serial, msgspec.UnsetType):
        if body.acknowledged_floor:
            raise BadRequest("acknowledged_floor says nothing without session and serial")
        return from_headers
    if isinstance(body.session, msgspec.UnsetType) or isinstance(body.serial, msgspec.UnsetType):
        raise BadRequest("session and serial are given together, or not at all")
    if from_headers is not None:
        raise BadRequest("session and serial are given in the body and in headers")
    return _once(body.session, body.serial, body.acknowledged_floor)


def _once(session: str, serial: int, floor: int) -> SessionSerial:
    if not (1 <= serial <= MAX_SERIAL and 0 <= floor < serial):
        raise BadRequest(
            f"serial {serial} with acknowledged floor {floor}: serials begin with 1, and the floor is below the serial"
        )
    return SessionSerial(session_ref(session), serial, floor)


def session_ref(token: str) -> SessionRef:
    """Raises: BadRequest."""
    try:
        return SessionRef.parse(token)
    except ValueError as error:
        raise BadRequest(f"{quoted(token)}: {error}", hint="open one: POST /v1/sessions") from error


async def propose(call: Call, command: Any, once: SessionSerial | None = None) -> WriteAnswer:
    """Write, from whatever node this is. Raises: what ``Raft.write`` raises, the machine's refusal included."""
    check_size(call.raft, call.raft.machine.codec.encode_command(command))
    return answer_of(await call.change(measured(call, command, once)))


def answer_of(outcome: WriteOutcome) -> WriteAnswer:
    return WriteAnswer(
        log_index=outcome.log_id.index, term=outcome.log_id.term, result=msgspec.to_builtins(outcome.data)
    )


async def propose_many(
    call: Call, commands: Sequence[Any], serials: Sequence[SessionSerial] | None
) -> Sequence[WriteAnswer | RaftError]:
    """Several writes as one append; each has its own outcome."""
    metrics, clock = call.api.metrics, asyncio.get_running_loop().time
    started = clock()
    outcomes = await call.change(call.raft.write_many(commands, serials, timeout=call.remaining))
    seconds = clock() - started
    answers: list[WriteAnswer | RaftError] = []
    for outcome in outcomes:
        refusal = outcome if isinstance(outcome, RaftError) else outcome.data
        if isinstance(refusal, RaftError):
            metrics.proposal_failed(refusal.code)
            answers.append(refusal)
        else:
            assert not isinstance(outcome, RaftError), "told apart above"
            metrics.proposal(seconds)
            answers.append(answer_of(outcome))
    return answers


async def measured(call: Call, command: Any, once: SessionSerial | None = None) -> WriteOutcome:
    metrics, clock = call.api.metrics, asyncio.get_running_loop().time
    started = clock()
    try:
        if once is None:
            outcome = await call.raft.write(command, timeout=call.remaining)
        else:
            outcome = await call.raft.write(command, session=once, timeout=call.remaining)
        if isinstance(outcome.data, RaftError):
            raise outcome.data
    except RaftError as error:
        metrics.proposal_failed(error.code)
        raise
    metrics.proposal(clock() - started)
    return outcome
