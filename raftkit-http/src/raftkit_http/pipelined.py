"""The client library: what :class:`HttpClusterClient` does, requests pipelined over a WebSocket per node, sessions."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any

from raftkit_core.clock import SystemClock
from raftkit_core.config import ReadPolicy
from raftkit_core.errors import BadRequest, ConfigError, RaftError, RequestTooLarge
from raftkit_core.network.client import Consistency
from raftkit_core.network.client_session import ClientSession
from raftkit_core.network.repeating import Attempts
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.types.kv import MAX_KEY_BYTES, CompareAndSet, Delete, KeyValue, Put, WriteResult
from raftkit_core.types.session import DEFAULT_TTL_MS, MAX_TTL_MS, SessionRef, SessionSerial
from raftkit_http.api.schema import (
    MSGPACK_TYPE,
    KeyValueAnswer,
    LeaderAnswer,
    SessionAnswer,
    SessionClosedAnswer,
    WriteAnswer,
)
from raftkit_http.attempt import Attempt, make_sure
from raftkit_http.client import DEFAULT_TIMEOUT, HttpClusterClient, get_of, json_post, write_result
from raftkit_http.exchange import Answer, Lost, NotSent, Outgoing, exchange
from raftkit_http.pipeline import NoUpgrade, Pipeline

SEEK_SECONDS = 1.0
"""At most this often it is asked who leads."""

CONSISTENCIES = frozenset(policy.value for policy in ReadPolicy)

_codec = KvCodec()


class Client(HttpClusterClient):
    """A client of one cluster for applications.

    ``async with Client(["http://127.0.0.1:7401", …]) as client``. Writes of kv commands and of encoded commands, and
    reads of keys, share one WebSocket per node, many in flight, and go to the leader if it is known; everything else is
    asked by HTTP. Where a proxy takes no WebSocket, each of them is a request, too.
    Without a session a write is sent again only where it provably did nothing; :meth:`open_session` gives one whose
    writes have one effect however often they are sent.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        token: str | None = None,
        ca: Path | str | None = None,
        discover: bool = True,
    ) -> None:
        super().__init__(endpoints, timeout=timeout, token=token, ca=ca, discover=discover)
        self._pipelines: dict[str, Pipeline] = {}
        self._sessions: list[HttpSession] = []
        self._seeking: asyncio.Task[None] | None = None
        self._sought_at = float("-inf")
        self._is_closing = False

    async def __aenter__(self) -> Client:
        await super().__aenter__()
        self._is_closing = False
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Writes under way end: those that were sent as ``OutcomeUnknown``."""
        self._is_closing = True
        sessions, self._sessions = self._sessions, []
        await asyncio.gather(*(session.close() for session in sessions))
        seeking, self._seeking = self._seeking, None
        if seeking is not None:
            seeking.cancel()
            await asyncio.wait([seeking])
        pipelines, self._pipelines = self._pipelines, {}
        await asyncio.gather(*(pipeline.close() for pipeline in pipelines.values()))
        await super().__aexit__(*exc_info)

    # --- writes -----------------------------------------------------------------------------------------------------

    async def write(self, command: Any) -> Any:
        """JSON-like data as the machine's codec reads it, a kv command, or bytes its codec has encoded already.

        Raises: OutcomeUnknown if it was sent and its answer was lost; every other error is definite.
        """
        encoded = _encoded(command)
        if encoded is None:
            return await super().write(command)
        attempt = Attempt(self._http(), self._endpoints, self._timeout, changes=True, probes=False)
        return (await attempt.run(lambda endpoint, seconds: self._piped(endpoint, encoded, None, seconds))).result

    async def write_many(self, commands: Sequence[Any]) -> list[Any | RaftError]:
        """All at once; gives each one's result or error, in order."""

        async def outcome(command: Any) -> Any | RaftError:
            try:
                return await self.write(command)
            except RaftError as error:
                return error

        return list(await asyncio.gather(*(outcome(command) for command in commands)))

    # --- reads ------------------------------------------------------------------------------------------------------

    async def kv_get(self, key: str, *, consistency: Consistency = "linearizable") -> KeyValue | None:
        """Reads side by side share frames, and their round to the quorum."""
        if consistency not in CONSISTENCIES or not _is_name(key):
            return await super().kv_get(key, consistency=consistency)
        attempt = Attempt(self._http(), self._endpoints, self._timeout)
        answer = await attempt.run(lambda endpoint, seconds: self._piped_read(endpoint, key, consistency, seconds))
        return None if answer.item is None else answer.item.to_key_value()

    async def _piped_read(
        self, endpoint: str, key: str, consistency: Consistency, seconds: float
    ) -> Answer[KeyValueAnswer]:
        now = asyncio.get_running_loop().time
        until = now() + seconds
        try:
            answer: Answer[KeyValueAnswer] = await self._pipeline(endpoint).read(key, consistency, seconds)
            if not isinstance(answer.error, RequestTooLarge):
                return answer
        except NoUpgrade:
            pass
        return await exchange(
            self._http(), endpoint, get_of(key, consistency), KeyValueAnswer, max(until - now(), 0.001)
        )

    # --- the way of both --------------------------------------------------------------------------------------------

    def _pipeline(self, endpoint: str) -> Pipeline:
        """Raises: ConfigError."""
        if self._is_closing:
            raise ConfigError("the client is closed")
        pipeline = self._pipelines.get(endpoint)
        if pipeline is None:
            pipeline = self._pipelines[endpoint] = Pipeline(self._http(), endpoint)
        return pipeline

    async def _piped(self, endpoint: str, command: bytes, once: SessionSerial | None, seconds: float) -> Any:
        pipeline = self._pipeline(endpoint)
        if not Pipeline.takes(command):
            return await self._posted(endpoint, command, once, seconds)
        self._seek_leader()
        asked_at = asyncio.get_running_loop().time()
        try:
            return await pipeline.write(command, once, seconds)
        except NoUpgrade:
            left = seconds - (asyncio.get_running_loop().time() - asked_at)
            return await self._posted(endpoint, command, once, max(left, 0.001))
        except (NotSent, Lost):
            self._sought_at = float("-inf")
            raise

    async def _posted(self, endpoint: str, command: bytes, once: SessionSerial | None, seconds: float) -> Any:
        """What is too large for a frame, or goes through a proxy that takes no WebSocket. Raises: NotSent, Lost."""
        http = self._http()
        if once is None:
            await make_sure(http, self._endpoints, endpoint, seconds)
        return await exchange(http, endpoint, _post(command, once), WriteAnswer, seconds)

    def _seek_leader(self) -> None:
        """Ask in the background who leads, now and then: a write to another node costs one hop more."""
        now = asyncio.get_running_loop().time()
        if now - self._sought_at < SEEK_SECONDS or (self._seeking is not None and not self._seeking.done()):
            return
        self._sought_at = now
        self._seeking = asyncio.get_running_loop().create_task(self._find_leader())

    async def _find_leader(self) -> None:
        session = self._http()
        for endpoint in self._endpoints.order():
            try:
                outgoing = Outgoing(method="GET", path="/v1/leader")
                answer = await exchange(session, endpoint, outgoing, LeaderAnswer, SEEK_SECONDS)
            except (NotSent, Lost):
                continue
            if answer.data is not None and answer.data.node is not None:
                self._endpoints.prefer(answer.data.node.client_address)
                return

    # --- sessions ---------------------------------------------------------------------------------------------------

    def open_session(self, ttl: float = DEFAULT_TTL_MS / 1000) -> OpeningHttpSession:
        """A session that lasts until it is closed, or ``ttl`` seconds after its last keep-alive.

        ``async with client.open_session() as session``; or await it, and close it yourself.

        Raises: TooManySessions, BadRequest.
        """
        return OpeningHttpSession(lambda: self._open_session(ttl))

    async def _open_session(self, ttl: float) -> HttpSession:
        sent_at = SystemClock().monotonic()
        opened = await self._call(
            json_post("/v1/sessions", {"ttl_ms": round(ttl * 1000), "nonce": secrets.token_hex(16)}), SessionAnswer
        )
        session = HttpSession(self, opened, sent_at)
        self._sessions = [held for held in self._sessions if not (held.is_closed or held.is_expired)]
        self._sessions.append(session)
        return session

    async def _write_once(self, command: Any, once: Callable[[], SessionSerial], timeout: float) -> Any:
        http, serial = self._http(), once()
        attempts = Attempts(f"write {serial.serial} of the session {serial.session.id}")
        attempt = Attempt(http, self._endpoints, timeout, again=attempts)
        encoded = _encoded(command)
        if encoded is not None:
            return (await attempt.run(lambda endpoint, seconds: self._piped(endpoint, encoded, once(), seconds))).result

        async def post(endpoint: str, seconds: float) -> Any:
            carried = once()
            body = {
                "command": command,
                "session": carried.session.token,
                "serial": carried.serial,
                "acknowledged_floor": carried.acknowledged_floor,
            }
            return await exchange(http, endpoint, json_post("/v1/write", body), WriteAnswer, seconds)

        return (await attempt.run(post)).result


class HttpSession(ClientSession):
    """A session of a :class:`Client`: its writes have one effect however often they are sent."""

    def __init__(self, client: Client, opened: SessionAnswer, sent_at: float) -> None:
        try:
            ref = SessionRef.parse(opened.session)
        except ValueError as error:
            raise BadRequest(f"a node answered with a session {opened.session[:80]!r}") from error
        if not 0 < opened.valid_ms <= opened.ttl_ms <= MAX_TTL_MS:
            raise BadRequest(f"a node answered with a session of {opened.ttl_ms} ms, valid for {opened.valid_ms} ms")
        self._client = client
        super().__init__(
            ref,
            opened.ttl_ms,
            sent_at=sent_at,
            max_clock_drift=1 - opened.valid_ms / opened.ttl_ms,
            clock=SystemClock(),
        )

    async def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult:
        return write_result(await self.write(Put(key, value, if_revision)))

    async def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult:
        return write_result(await self.write(Delete(key, if_revision)))

    async def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult:
        return write_result(await self.write(CompareAndSet(key, expected, value)))

    async def _send_keep_alive(self, timeout: float) -> None:
        outgoing = json_post("/v1/sessions/keep-alive", {"session": self.ref.token})
        await self._client._call(outgoing, SessionAnswer, timeout=timeout)

    async def _send_write(self, command: Any, once: Callable[[], SessionSerial], timeout: float) -> Any:
        return await self._client._write_once(command, once, timeout)

    async def _send_close(self, timeout: float) -> None:
        outgoing = json_post("/v1/sessions/close", {"session": self.ref.token})
        await self._client._call(outgoing, SessionClosedAnswer, timeout=timeout)


class OpeningHttpSession:
    """What ``open_session`` gives: await it, or enter it with ``async with``."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, HttpSession]]) -> None:
        self._opening = opening
        self._session: HttpSession | None = None

    def __await__(self) -> Generator[Any, None, HttpSession]:
        return self._opening().__await__()

    async def __aenter__(self) -> HttpSession:
        self._session = await self._opening()
        return self._session

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()


def _post(command: bytes, once: SessionSerial | None) -> Outgoing:
    headers: dict[str, str] = {}
    if once is not None:
        headers = {
            "Raftkit-Session": once.session.token,
            "Raftkit-Serial": str(once.serial),
            "Raftkit-Acknowledged-Floor": str(once.acknowledged_floor),
        }
    return Outgoing(method="POST", path="/v1/write", body=command, content_type=MSGPACK_TYPE, headers=headers)


def _is_name(key: object) -> bool:
    """Whether a key can have this name; what cannot is refused in the words of the slower way."""
    try:
        return isinstance(key, str) and len(key.encode()) <= MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False


def _encoded(command: Any) -> bytes | None:
    """The command as its machine's codec encodes it, if that is known here. Raises: BadCommand."""
    if isinstance(command, bytes):
        return command
    return _codec.encode_command(command) if isinstance(command, Put | Delete | CompareAndSet) else None
