"""A client of one cluster over HTTP: asks any node, follows failures to the next one, and never guesses.

A change is repeated only when it provably did not happen: it was never sent, or a node said ``not_applied`` and
``retryable``. When its answer is lost the caller gets ``OutcomeUnknown``. Before a change goes to a node that has not
answered for a second, the node is asked something harmless first: a dead node or a stale connection is found out while
it is still certain that nothing was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from raftkit_core.errors import BadCommand, ConfigError, OutcomeUnknown, RaftError, UnknownOption
from raftkit_core.network.client import ClusterClient, Consistency, MembershipResult, NodeReport, NodeStatus
from raftkit_core.types.kv import CompareAndSet, Delete, KeyValue, KvEvent, Put, WriteResult
from raftkit_core.types.membership import Node
from raftkit_http.api.schema import (
    MAX_LIST_KEYS,
    MSGPACK_TYPE,
    ClusterAnswer,
    KeyValueAnswer,
    ListAnswer,
    TransferAnswer,
    WriteAnswer,
)
from raftkit_http.attempt import Attempt
from raftkit_http.download import download_snapshot
from raftkit_http.endpoints import Endpoints
from raftkit_http.exchange import Outgoing, exchange, make_session
from raftkit_http.tls import ca_context
from raftkit_http.watching import Follower

T = TypeVar("T")

DEFAULT_TIMEOUT = 5.0

_encoder = msgspec.json.Encoder()


class HttpClusterClient(ClusterClient):
    """See :class:`ClusterClient`. ``timeout`` (seconds) bounds each call, retries included. ``discover=False`` asks the
    given endpoints only, where members advertise addresses that cannot be reached from here.

    Use it as ``async with HttpClusterClient(["http://127.0.0.1:7401"]) as client``.

    Raises:
        ConfigError: an endpoint is no ``http://host:port``, the timeout is not positive, or the token is malformed.
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
        if isinstance(endpoints, str):
            endpoints = endpoints.split(",")
        if type(timeout) not in (int, float) or not 0 < timeout < 86400:
            raise ConfigError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if token is not None and not (token.isascii() and token.isprintable() and 0 < len(token) <= 4096):
            raise ConfigError("the token must be printable ASCII without line breaks")
        self._endpoints = Endpoints(endpoints, fixed=not discover, secret=token is not None)
        self._timeout = float(timeout)
        self._token = token
        self._tls = ca_context(None if ca is None else Path(ca)) if self._endpoints.need_tls else None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpClusterClient:
        if self._session is not None:
            raise ConfigError("this client is open already")
        self._session = make_session(self._token, self._tls)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- Status and membership --------------------------------------------------------------------------------------

    async def status(self, *, digest: bool = False) -> NodeStatus:
        status = await self._call(_get_status(digest), NodeStatus)
        if not status.members:
            status = await self._status_of_member(digest) or status
        self._endpoints.learn(status.members)
        return status

    async def _status_of_member(self, digest: bool) -> NodeStatus | None:
        """Of another endpoint, one that belongs to a cluster: a node whose data is gone knows of none, and would be
        told to begin one."""
        for endpoint in self._endpoints.order()[1:]:
            try:
                status = await self._call(
                    _get_status(digest), NodeStatus, only=endpoint, timeout=min(1.0, self._timeout)
                )
            except RaftError:
                continue
            if status.members:
                self._endpoints.answered(endpoint, asyncio.get_running_loop().time())
                return status
        return None

    async def status_of(self, address: str, *, digest: bool = False) -> NodeStatus:
        return await self._call(_get_status(digest), NodeStatus, only=address)

    async def survey(self, events_after: dict[str, int] | None = None) -> list[NodeReport]:
        after = ",".join(f"{node_id}:{number}" for node_id, number in sorted((events_after or {}).items()))
        path = f"/v1/cluster?events_after={after}" if after else "/v1/cluster"
        answer = await self._call(Outgoing(method="GET", path=path), ClusterAnswer)
        return [
            NodeReport(id=node.id, status=node.status, events=node.events, error=node.error) for node in answer.nodes
        ]

    async def initialize(self, members: dict[str, Node]) -> None:
        await self._call(json_post("/v1/initialize", {"members": members}), dict, changes=True)

    async def add_learner(self, node_id: str, node: Node, *, blocking: bool = True) -> MembershipResult:
        body = {"id": node_id, "node": node, "blocking": blocking}
        return await self._membership(json_post("/v1/members", body))

    async def change_membership(
        self, voters: list[str], *, retain: bool = False, force: bool = False
    ) -> MembershipResult:
        body = {"voters": voters, "retain": retain, "force": force}
        return await self._membership(json_post("/v1/members/change", body))

    async def remove_nodes(self, node_ids: list[str]) -> MembershipResult:
        return await self._membership(json_post("/v1/members/remove", {"ids": node_ids}))

    async def _membership(self, outgoing: Outgoing) -> MembershipResult:
        result = await self._call(outgoing, MembershipResult, changes=True)
        self._endpoints.learn(result.members)
        return result

    async def transfer_leader(self, to: str | None = None) -> str:
        done = await self._call(json_post("/v1/leader/transfer", {"to": to}), TransferAnswer, changes=True)
        return done.leader

    async def trigger_snapshot(self, address: str | None = None) -> None:
        await self._call(json_post("/v1/snapshot", {}), dict, changes=True, only=address)

    def read_snapshot(self, address: str | None = None) -> AsyncGenerator[bytes, None]:
        endpoints = self._endpoints.order() if address is None else [self._endpoints.checked(address)]
        return download_snapshot(self._http(), endpoints)

    # --- Writes -----------------------------------------------------------------------------------------------------

    async def write(self, command: Any) -> Any:
        """JSON-like data as the machine's codec reads it, a kv command, or bytes its codec has encoded already."""
        if isinstance(command, bytes):
            outgoing = Outgoing(method="POST", path="/v1/write", body=command, content_type=MSGPACK_TYPE)
        elif isinstance(command, Put | Delete | CompareAndSet):
            outgoing = _kv_write(command)
        else:
            outgoing = json_post("/v1/write", {"command": command})
        return (await self._call(outgoing, WriteAnswer, changes=True)).result

    async def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult:
        return write_result(await self.write(Put(key, value, if_revision)))

    async def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult:
        return write_result(await self.write(Delete(key, if_revision)))

    async def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult:
        return write_result(await self.write(CompareAndSet(key, expected, value)))

    # --- Reads ------------------------------------------------------------------------------------------------------

    async def kv_get(self, key: str, *, consistency: Consistency = "linearizable") -> KeyValue | None:
        answer = await self._call(get_of(key, consistency), KeyValueAnswer)
        return None if answer.item is None else answer.item.to_key_value()

    async def kv_list(
        self,
        prefix: str = "",
        *,
        limit: int = 1000,
        after: str | None = None,
        consistency: Consistency = "linearizable",
    ) -> list[KeyValue]:
        """In pages: each is as consistent as asked, the whole is not one moment."""
        found: list[KeyValue] = []
        while len(found) < limit:
            page = {"prefix": prefix, "limit": min(limit - len(found), MAX_LIST_KEYS), "after": after}
            answer = await self._call(json_post("/v1/read", {"list": page, "consistency": consistency}), ListAnswer)
            found += [item.to_key_value() for item in answer.items]
            if not answer.more or not answer.items:
                break
            after = found[-1].key
        return found

    def watch(self, prefix: str = "", *, from_revision: int | None = None) -> AsyncGenerator[KvEvent, None]:
        """Follows failures to other nodes, behind what was seen; ``timeout`` is how long nobody may answer."""
        return Follower(self._http(), self._endpoints, prefix, from_revision, self._timeout).events()

    # --- The way to a node ------------------------------------------------------------------------------------------

    async def _call(
        self,
        outgoing: Outgoing,
        into: type[T],
        *,
        changes: bool = False,
        only: str | None = None,
        timeout: float | None = None,
    ) -> T:
        """Ask until somebody answers for good, nobody can be reached, or the time is up."""
        session = self._http()
        attempt = Attempt(
            session, self._endpoints, self._timeout if timeout is None else timeout, changes=changes, only=only
        )
        return await attempt.run(lambda endpoint, seconds: exchange(session, endpoint, outgoing, into, seconds))

    def _http(self) -> aiohttp.ClientSession:
        """Raises: ConfigError."""
        if self._session is None:
            raise ConfigError("the client is not open", hint="async with Client([...]) as client: …")
        return self._session


def make_client(endpoints: list[str], options: Mapping[str, Any]) -> HttpClusterClient:
    """What the hook ``raftkit_register_clients`` registers. Options: ``timeout`` (seconds), ``token``, ``ca``."""
    unknown = sorted(set(options) - {"ca", "timeout", "token"})
    if unknown:
        raise UnknownOption(f"the http client has no option {unknown[0]!r}", hint="known options: ca, timeout, token")
    return HttpClusterClient(endpoints, **options)


def _get_status(digest: bool) -> Outgoing:
    return Outgoing(method="GET", path="/v1/status?digest=1" if digest else "/v1/status")


def get_of(key: str, consistency: Consistency) -> Outgoing:
    return json_post("/v1/read", {"get": {"key": key}, "consistency": consistency})


def json_post(path: str, body: Any) -> Outgoing:
    try:
        return Outgoing(method="POST", path=path, body=_encoder.encode(body))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadCommand(f"this cannot be written as JSON: {error}") from error


def _kv_write(command: Put | Delete | CompareAndSet) -> Outgoing:
    match command:
        case Put(key, value, if_revision):
            form = {"put": {"key": key, "value_b64": value, "if_revision": if_revision}}
        case Delete(key, if_revision):
            form = {"delete": {"key": key, "if_revision": if_revision}}
        case CompareAndSet(key, expected, value):
            held = {"expected": None} if expected is None else {"expected_b64": expected}
            form = {"cas": {"key": key, "value_b64": value, **held}}
    return json_post("/v1/write", form)


def write_result(data: Any) -> WriteResult:
    try:
        return msgspec.convert(data, WriteResult, strict=True)
    except msgspec.ValidationError as error:
        raise OutcomeUnknown(f"the change happened, but its result cannot be read: {error}") from error
