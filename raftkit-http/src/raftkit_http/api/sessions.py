"""``/v1/sessions``: open a client session, keep it alive, close it."""

from __future__ import annotations

from aiohttp import web

from raftkit_core.types.operations import (
    CloseSession,
    KeepSession,
    OpenSession,
    SessionClosed,
    SessionKept,
    SessionOpened,
)
from raftkit_http.api.envelope import success
from raftkit_http.api.guard import Call
from raftkit_http.api.schema import OpenSessionRequest, SessionAnswer, SessionClosedAnswer, SessionRequest
from raftkit_http.api.write import session_ref


async def post_session(call: Call) -> web.Response:
    body = await call.json(OpenSessionRequest)
    opened: SessionOpened = await call.change(
        call.raft.call(OpenSession(body.ttl_ms, body.nonce), timeout=call.remaining)
    )
    return success(call.request, "session", _answer(call, opened.session.token, opened.ttl_ms))


async def post_keep_alive(call: Call) -> web.Response:
    body = await call.json(SessionRequest)
    kept: SessionKept = await call.raft.call(KeepSession(session_ref(body.session)), timeout=call.remaining)
    return success(call.request, "session", _answer(call, body.session, kept.ttl_ms))


async def post_close(call: Call) -> web.Response:
    body = await call.json(SessionRequest)
    operation = CloseSession(session_ref(body.session))
    closed: SessionClosed = await call.change(call.raft.call(operation, timeout=call.remaining))
    return success(call.request, "session-closed", SessionClosedAnswer(existed=closed.existed))


def _answer(call: Call, token: str, ttl_ms: int) -> SessionAnswer:
    return SessionAnswer(session=token, ttl_ms=ttl_ms, valid_ms=int(ttl_ms * (1 - call.raft.config.max_clock_drift)))
