"""What stands around every handler: limits, a deadline, error translation, and an owner for what must not be cut off.

A handler gets a :class:`Call` and returns data or a response; it never catches errors and never times itself. A change
runs in a task of :class:`ClientApi`: a client that goes away ends the waiting, never a membership change half-way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from raftkit_core import errors
from raftkit_http.access import ANYONE, NOBODY, Access, Caller, RouteRole, TooManyFailures, Unauthenticated, audit
from raftkit_http.api.decode import (
    BodyTooSlow,
    Query,
    UnsupportedBody,
    decode_json,
    has_precondition_header,
    read_body,
    require_type,
)
from raftkit_http.api.envelope import failure, status_of
from raftkit_http.api.handle import RaftHandle
from raftkit_http.api.metrics import ApiMetrics
from raftkit_http.api.schema import JSON_TYPE

T = TypeVar("T")
log = logging.getLogger("raftkit_http.api")

Role = RouteRole
"""What a caller must be allowed. ``open`` routes say nothing about data."""

SMALL_BODY_BYTES = 256 * 1024
"""Every body but a command's."""
GRACE_SECONDS = 1.0
"""How much longer than its own deadline the Raft may take before the caller is told that the outcome is unknown."""


class ApiLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what clients may ask of one node. Seconds and counts."""

    default_timeout: float = 5.0
    admin_timeout: float = 60.0
    """Default of membership changes: a learner that must catch up first takes its time."""
    max_timeout: float = 300.0
    max_requests: int = 1024
    max_socket_window: int = 256
    max_socket_waiting: int = 1024
    max_sockets: int = 256
    max_watches: int = 256
    watch_progress_seconds: float = 10.0
    """A sign of life on a watch where nothing changes: shorter than proxies wait for a byte."""
    watch_write_seconds: float = 10.0
    """A reader of a watch that takes nothing for this long is cut off."""
    close_timeout: float = 2.0


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the API: also what ``/v1`` lists."""

    method: str
    path: str
    summary: str
    role: Role
    handler: Callable[[Call], Awaitable[web.StreamResponse]]
    query: tuple[str, ...] = ()
    light: bool = False
    """Reads what is published and never waits: never refused for load."""
    long_lived: bool = False
    """No deadline and no place in the count of requests: what comes over it has its own."""


class Call:
    """One request on its way: what it asks, and until when."""

    def __init__(
        self,
        api: ClientApi,
        request: web.Request,
        query: Query,
        deadline: float,
        *,
        owned: bool = False,
        caller: Caller = ANYONE,
    ) -> None:
        self.api = api
        self.raft = api.raft
        self.request = request
        self.query = query
        self.caller = caller
        self.changing = False
        """Whether a change has been handed to the Raft: from then on a lost answer is an unknown outcome."""
        self.begun: web.StreamResponse | None = None
        """The answer, once its header went out: from then on no other can be given."""
        self._deadline = deadline
        self._owned = owned  # runs in a task of the API already

    @property
    def remaining(self) -> float:
        """Seconds left, never below a millisecond."""
        return max(self._deadline - asyncio.get_running_loop().time(), 0.001)

    async def change(self, operation: Coroutine[Any, Any, T]) -> T:
        """Carry out a change to its end, whatever becomes of the caller."""
        self.changing = True
        if self._owned:
            return await operation
        return await asyncio.shield(self.api.own(operation))

    async def json(self, into: type[T], *, limit_bytes: int = SMALL_BODY_BYTES) -> T:
        """The JSON body, strictly ``into``; an empty one is ``{}``."""
        require_type(self.request, JSON_TYPE)
        return decode_json(await read_body(self.request, limit_bytes) or b"{}", into)

    @property
    def command_limit_bytes(self) -> int:
        """For bodies with a command in it: base64 and JSON escapes included."""
        return 2 * self.raft.config.max_entry_bytes + SMALL_BODY_BYTES


class ClientApi:
    """The client API of one node."""

    def __init__(self, raft: RaftHandle, limits: ApiLimits | None = None, access: Access | None = None) -> None:
        self.raft = raft
        self.access = Access() if access is None else access
        self.limits = ApiLimits() if limits is None else limits
        self.metrics = ApiMetrics()
        self.closing = False
        self.sockets: set[web.WebSocketResponse] = set()
        self.watches: set[asyncio.Task[None]] = set()
        self._running = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def own(self, operation: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run to the end, at the latest to :meth:`close`."""
        task = asyncio.get_running_loop().create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that went away does not fetch it

    async def close(self) -> None:
        """Refuse what comes, let changes under way end for ``close_timeout``, close the sockets. Idempotent."""
        self.closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.limits.close_timeout)
        await asyncio.gather(*(socket.close(code=1001, message=b"shutting down") for socket in list(self.sockets)))
        # A watch has ended with its node by now; one of a node that goes on without this API is cut off.
        remaining: set[asyncio.Task[Any]] = self._tasks | self.watches
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining, timeout=self.limits.close_timeout)

    def guarded(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """``route``'s handler as aiohttp wants it: every outcome is an answer."""

        async def handle(request: web.Request) -> web.StreamResponse:
            caller = NOBODY
            response: web.StreamResponse | None = None
            try:
                caller = self.access.identify(request, route.role, self._now())
                caller.require(route.role)
            except errors.AccessDenied as error:
                response = _refused(request, error)
            if response is None:
                response = await self._answer(route, request, caller)
            self.metrics.request(route.path, response.status)
            if route.role == "admin" and (
                caller is not NOBODY or self.access.strangers.take(request.remote or "", self._now())
            ):
                audit(caller, request, response.status)
            return response

        return handle

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _answer(self, route: Route, request: web.Request, caller: Caller) -> web.StreamResponse:
        call: Call | None = None
        try:
            call = self._call(route, request, caller)
            if route.long_lived:
                return await self._stream(route, call)
            with self.admitted(count=route.role != "open" and not route.light):
                async with asyncio.timeout(call.remaining + GRACE_SECONDS):
                    return await route.handler(call)
        except BodyTooSlow as error:
            return failure(request, error, caller=caller, status=408)
        except UnsupportedBody as error:
            return failure(request, error, caller=caller, status=415)
        except errors.PreconditionFailed as error:
            return failure(request, error, caller=caller, status=412 if has_precondition_header(request) else None)
        except errors.RaftError as error:
            log.debug("%s %s for %s: %s: %s", route.method, route.path, caller.name, error.code, error.message)
            return failure(request, error, caller=caller)
        except TimeoutError:
            return failure(request, self._late(call), caller=caller)
        except Exception as error:
            log.exception("%s %s failed", route.method, route.path)
            return failure(request, error, caller=caller, status=status_of(error))

    async def _stream(self, route: Route, call: Call) -> web.StreamResponse:
        """A long answer that fails on its way is cut off: an error document among its bytes would be taken for some."""
        try:
            return await route.handler(call)
        except Exception as error:
            if call.begun is None:
                raise
            if isinstance(error, ConnectionError | TimeoutError):
                log.debug("%s %s: the reader is gone, or does not read", route.method, route.path)
            else:
                log.error("%s %s was cut off", route.method, route.path, exc_info=error)
            if call.request.transport is not None:
                call.request.transport.abort()
            return call.begun

    def _call(self, route: Route, request: web.Request, caller: Caller) -> Call:
        query = Query(request, *route.query)
        limits = self.limits
        asked_ms = query.integer("timeout_ms", minimum=1, maximum=2**31)
        usual = limits.admin_timeout if route.role == "admin" else limits.default_timeout
        timeout = usual if asked_ms is None else min(asked_ms / 1000, limits.max_timeout)
        return Call(self, request, query, asyncio.get_running_loop().time() + timeout, caller=caller)

    @contextmanager
    def admitted(self, *, count: bool = True) -> Iterator[None]:
        """Around one request. Raises: Stopped or Overloaded, both definite."""
        if not count:
            yield
            return
        if self.closing:
            raise errors.Stopped(
                f"{self.raft.id} is shutting down", hint="ask another node", retryable=True, outcome="not_applied"
            )
        if self._running >= self.limits.max_requests:
            raise errors.Overloaded(
                f"{self.raft.id} serves {self.limits.max_requests} requests already", hint="try again in a second"
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _late(self, call: Call | None) -> errors.RaftError:
        if call is not None and call.changing:
            return errors.OutcomeUnknown(
                "no answer within the deadline: the change may have happened, or happen later",
                hint="read the state before you try again, or raise timeout_ms",
            )
        return errors.RPCTimeout(
            "not finished within the deadline; nothing was changed", hint="raise timeout_ms", outcome="not_applied"
        )


def _refused(request: web.Request, error: errors.AccessDenied) -> web.Response:
    """401 for who is not known, 403 for who may not, 429 for who tries too often. The body is not read for them."""
    status = 401 if isinstance(error, Unauthenticated) else 429 if isinstance(error, TooManyFailures) else 403
    response = failure(request, error, status=status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 429:
        response.headers["Retry-After"] = "1"
    if request.can_read_body or status == 429:
        response.force_close()
    return response
