"""Answers: the envelope around every one, and which HTTP status an error becomes.

``{"schema": "raftkit.status/1", "ok": true, "data": …}`` or ``{"schema": "raftkit.error/1", "ok": false, "error": …}``.
A client that sends ``Accept: application/msgpack`` gets the same document in MessagePack.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from raftkit_core import errors
from raftkit_core.errors import ErrorInfo, RaftError
from raftkit_core.types.membership import Node
from raftkit_http.access import NOBODY, Caller
from raftkit_http.api.discretion import info_for
from raftkit_http.api.schema import JSON_TYPE, MSGPACK_TYPE

ERROR_SCHEMA = "raftkit.error/1"
RETRY_AFTER_SECONDS = 1

_STATUS: dict[type[RaftError], int] = {
    RaftError: 500,
    errors.Fatal: 500,
    errors.Stopped: 503,
    errors.ForwardToLeader: 503,
    errors.QuorumNotEnough: 503,
    errors.NotApplied: 503,
    errors.Overloaded: 503,
    errors.TransferFailed: 503,
    errors.Unreachable: 503,
    errors.PeerBusy: 503,
    errors.NeedsRejoin: 503,
    errors.LogReversion: 503,
    errors.OutcomeUnknown: 504,
    errors.RPCTimeout: 504,
    errors.WaitTimeout: 504,
    errors.RPCError: 502,
    errors.BadRequest: 400,
    errors.BadCommand: 400,
    errors.ConfigError: 400,
    errors.EmptyMembership: 400,
    errors.NotInMembers: 400,
    errors.RequestTooLarge: 413,
    errors.PayloadTooLarge: 413,
    errors.AccessDenied: 403,
    errors.NotFound: 404,
    errors.Compacted: 410,
    errors.LearnerNotFound: 404,
    errors.CommandRejected: 409,
    errors.ConditionFailed: 409,
    errors.LeadershipLost: 503,
    errors.SessionExpired: 409,
    errors.TooManySessions: 503,
    errors.SessionFull: 503,
    errors.SerialReused: 409,
    errors.ResultForgotten: 409,
    errors.ChangeMembershipError: 409,
    errors.InitializeError: 409,
    errors.IdentityError: 409,
    errors.StorageError: 500,
}


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error as clients see it: like :class:`ErrorInfo`, with every field always there."""

    code: str
    message: str
    hint: str | None
    retryable: bool
    outcome: errors.Outcome
    leader: str | None = None
    leader_node: Node | None = None
    oldest: int | msgspec.UnsetType = msgspec.UNSET
    """Of ``COMPACTED``: the lowest revision a watch can begin with here."""

    @classmethod
    def of(cls, info: ErrorInfo) -> ErrorBody:
        return cls(
            code=info.code,
            message=info.message,
            hint=info.hint,
            retryable=info.retryable,
            outcome=info.outcome,
            leader=info.leader,
            leader_node=info.leader_node,
            oldest=msgspec.UNSET if info.oldest is None else info.oldest,
        )


class Success(msgspec.Struct, frozen=True):
    schema: str
    ok: bool
    data: Any


class Failure(msgspec.Struct, frozen=True):
    schema: str
    ok: bool
    error: ErrorBody


_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


def status_of(error: BaseException) -> int:
    """The HTTP status of an error: that of its nearest listed class; 500 for a foreign exception."""
    for cls in type(error).__mro__:
        if cls in _STATUS:
            return _STATUS[cls]
    return 500


def success(request: web.Request, kind: str, data: Any, *, status: int = 200) -> web.Response:
    """An answer of schema ``raftkit.<kind>/1``."""
    return _response(request, Success(f"raftkit.{kind}/1", True, data), status, {})


def failure(
    request: web.Request, error: BaseException, *, caller: Caller = NOBODY, status: int | None = None
) -> web.Response:
    """The answer to a failed request, in as many words as ``caller`` may hear. A foreign exception shows its type only:
    its text may hold what is private."""
    status = status_of(error) if status is None else status
    body = Failure(ERROR_SCHEMA, False, ErrorBody.of(info_for(caller, error)))
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    return _response(request, body, status, headers)


def _response(request: web.Request, document: Success | Failure, status: int, headers: dict[str, str]) -> web.Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} | headers
    if request.headers.get("Accept") == MSGPACK_TYPE:
        return web.Response(body=_msgpack.encode(document), status=status, headers=headers, content_type=MSGPACK_TYPE)
    body = _json.encode(document) + b"\n"
    return web.Response(body=body, status=status, headers=headers, content_type=JSON_TYPE, charset="utf-8")
