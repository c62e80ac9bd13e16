"""A node's HTTP server with a Raft that is one kv machine: what the client API and the client are tested against."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from yarl import URL

from raftkit_core.config import Config, ReadPolicy
from raftkit_core.errors import RaftError
from raftkit_core.network.client import MemberStatus, NodeReport, NodeStatus, PeerStatus
from raftkit_core.runtime.figures import NodeFigures
from raftkit_core.state_machine.interface import AppliedEntry, MsgspecCodec
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.kv_watch import ChangeRing, KvWatch
from raftkit_core.types.entry import NORMAL, Entry, Envelope, encode_envelope
from raftkit_core.types.kv import KV_MACHINE, KeyValue, ListKeys
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import (
    AddVoterIds,
    Membership,
    Node,
    RemoveNodes,
    ReplaceAllVoters,
    StoredMembership,
)
from raftkit_core.types.metrics import NodeCounters, NodeEvent, RaftMetrics, ServerState
from raftkit_core.types.operations import (
    AddLearner,
    ChangeMembership,
    CloseSession,
    KeepSession,
    MembershipDone,
    OpenSession,
    Operation,
    SessionClosed,
    SessionKept,
    SessionOpened,
    TransferDone,
    TransferLeader,
)
from raftkit_core.types.session import SessionRef, SessionSerial
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource
from raftkit_core.types.vote import LeaderId
from raftkit_http.access import Access
from raftkit_http.api import attach
from raftkit_http.api.guard import ApiLimits, ClientApi
from raftkit_http.server import HttpServer
from raftkit_http.settings import Address

sys.path.insert(0, str(Path(__file__).parent))


class EchoMachine:
    """Another machine than kv: commands are any objects, and the result is the command."""

    codec = MsgspecCodec(dict, Any)

    def __init__(self, name: str) -> None:
        self.name = name

    def apply(self, batch: OneEntry) -> list[Any]:
        return [{"echo": entry.command} for entry in batch.entries]


class OneEntry:
    """A batch as the runtime gives it to a machine."""

    membership = None

    def __init__(self, entry: AppliedEntry) -> None:
        self.entries = [entry]
        self.last_log_id = entry.log_id

    def seal(self, results: Sequence[Any]) -> Sequence[tuple[bytes, bytes | None]]:
        return []


class Written(msgspec.Struct, frozen=True):
    log_id: LogId
    data: Any


class FakeWatch:
    def __init__(self, value: RaftMetrics) -> None:
        self.value = value


class FakeRaft:
    """One node that leads itself. ``failure`` is raised by whatever is asked next of the Raft."""

    def __init__(self, node_id: str = "n1", *, machine: str = KV_MACHINE, config: Config | None = None) -> None:
        self.id = node_id
        self.config = Config() if config is None else config
        self.machine: Any = KvStateMachine() if machine == KV_MACHINE else EchoMachine(machine)
        self.index = 0
        self.changes = ChangeRing()
        self.is_storage_stalled = False
        self.is_stopping = False
        self.session_count = 2
        self.measured = NodeFigures()
        self.measured.flush.observe(0.003)
        self.measured.called("append_entries", "n2", 0.02, True)
        self.measured.called("vote", "n3", 0.5, False)
        self.told = [NodeEvent(number, 1000 + number, 1, "role", f"{node_id} leads") for number in (1, 2, 3)]
        self.written: list[Any] = []
        self.operations: list[Operation] = []
        self.reads: list[tuple[Any, ReadPolicy]] = []
        self.failure: BaseException | None = None
        self.hold: asyncio.Event | None = None
        self.arrived = asyncio.Event()
        self.membership = Membership.of([[node_id]], {node_id: Node("http://127.0.0.1:1")})
        self.role = ServerState.LEADER
        self.leader: str | None = node_id
        self.fatal: str | None = None
        self.quorum_ack_ms: int | None = None
        self.snapshots = 0
        self.digests = 0

    async def _gate(self) -> None:
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure

    async def status(self, digest: bool = False) -> NodeStatus:
        if self.failure is not None:
            raise self.failure
        self.digests += digest
        members = [
            MemberStatus(id=name, node=node, voter=self.membership.is_voter(name))
            for name, node in self.membership.nodes.items()
        ]
        return NodeStatus(
            id=self.id,
            cluster="default",
            role=self.role.value,
            term=1,
            leader=self.leader,
            last_log_index=self.index,
            committed=self.index,
            applied=self.index,
            members=members,
            replication={"n2": PeerStatus(matching=3, lag=2, last_contact_ms=40)},
            digest="d1" if digest else None,
        )

    def events(self, after: int = 0, limit: int = 512) -> list[NodeEvent]:
        return [event for event in self.told if event.number > after][:limit]

    async def survey(self, events_after: dict[str, int] | None = None, *, timeout: float = 1.5) -> list[NodeReport]:
        await self._gate()
        own = NodeReport(
            id=self.id, status=await self.status(), events=self.events((events_after or {}).get(self.id, 0))
        )
        others = [node_id for node_id in self.membership.nodes if node_id != self.id]
        return [own, *(NodeReport(id=node_id, error="connection refused") for node_id in others)]

    def counters(self) -> NodeCounters:
        return NodeCounters(elections_started=2, elections_won=1, leader_changes=3)

    def figures(self) -> NodeFigures:
        return self.measured

    def metrics(self) -> FakeWatch:
        stored = StoredMembership(LogId(LeaderId(1, self.id), 0), self.membership)
        return FakeWatch(
            RaftMetrics(
                id=self.id,
                fatal=self.fatal,
                state=self.role,
                current_term=1,
                current_leader=self.leader,
                last_applied=LogId(LeaderId(1, self.id), self.index) if self.index else None,
                membership=stored,
                millis_since_quorum_ack=self.quorum_ack_ms,
            )
        )

    async def write(self, command: Any, *, session: SessionSerial | None = None, timeout: float = 5.0) -> Written:
        async with asyncio.timeout(timeout + 60):
            await self._gate()
        self.index += 1
        self.written.append(command)
        result = self._apply(command)
        self._feed(command, result)
        if isinstance(result, RaftError):
            raise result
        return Written(LogId(LeaderId(1, self.id), self.index), result)

    async def write_many(
        self, commands: Sequence[Any], serials: Sequence[SessionSerial] | None = None, *, timeout: float = 5.0
    ) -> list[Written | RaftError]:
        async def one(command: Any) -> Written | RaftError:
            try:
                return await self.write(command, timeout=timeout)
            except RaftError as error:
                return error

        return [await one(command) for command in commands]

    def _feed(self, command: Any, result: Any) -> None:
        log_id = LogId(LeaderId(1, self.id), self.index)
        is_kv = isinstance(self.machine, KvStateMachine)
        body = self.machine.codec.encode_command(command)
        log = [Entry(log_id, 0, NORMAL, encode_envelope(Envelope(1, self.machine.name, 0, 0, 0, body)))]
        self.changes.feed(log, log if is_kv else [], [result] if is_kv else [])

    def watch(self, prefix: str = "", from_revision: int | None = None) -> KvWatch:
        if self.failure is not None:
            raise self.failure
        return KvWatch(self.changes, prefix, from_revision)

    def _apply(self, command: Any) -> Any:
        log_id = LogId(LeaderId(1, self.id), self.index)
        return self.machine.apply(OneEntry(AppliedEntry(log_id, 0, command)))[0]

    @property
    def data(self) -> dict[str, KeyValue]:
        """Every key there is."""
        return {item.key: item for item in self.machine.query(ListKeys())}

    async def read(self, fn_or_query: Any, policy: ReadPolicy = ReadPolicy.READ_INDEX, timeout: float = 5.0) -> Any:
        await self._gate()
        self.reads.append((fn_or_query, policy))
        return fn_or_query(self.machine) if callable(fn_or_query) else self.machine.query(fn_or_query)

    async def call(self, operation: Operation, timeout: float = 5.0) -> Any:
        await self._gate()
        self.operations.append(operation)
        if isinstance(operation, TransferLeader):
            self.leader = operation.to or self.id
            return TransferDone(self.leader)
        match operation:
            case OpenSession(ttl_ms):
                return SessionOpened(SessionRef("0123456789abcdef" * 2, 42), ttl_ms)
            case KeepSession():
                return SessionKept(30_000)
            case CloseSession():
                return SessionClosed(True)
        self.membership = self._changed(operation)
        self.index += 1
        return MembershipDone(LogId(LeaderId(1, self.id), self.index), self.membership)

    def _changed(self, operation: Operation) -> Membership:
        old = self.membership
        match operation:
            case AddLearner(node_id, node):
                return Membership.of(old.configs, {**old.nodes, node_id: node})
            case ChangeMembership(AddVoterIds(ids)):
                return Membership.of([[*old.voter_ids, *ids]], old.nodes)
            case ChangeMembership(ReplaceAllVoters(ids)):
                return Membership.of([ids], old.nodes)
            case ChangeMembership(RemoveNodes(ids)):
                return Membership.of(old.configs, {name: node for name, node in old.nodes.items() if name not in ids})
        raise AssertionError(f"unexpected operation {operation!r}")

    async def initialize(self, members: dict[str, Node]) -> None:
        await self._gate()
        self.membership = Membership.of([members], members)

    def trigger(self) -> FakeRaft:
        return self

    async def snapshot(self) -> None:
        await self._gate()
        self.snapshots += 1

    async def get_snapshot(self) -> SnapshotSource | None:
        await self._gate()
        return FakeSource()


class FakeSource(SnapshotSource):
    """Three bytes."""

    def __init__(self) -> None:
        self.meta = SnapshotMeta(None, StoredMembership(), "a1", 0, 3, hashlib.sha256(b"abc").hexdigest())

    async def open(self, offset: int = 0, chunk_bytes: int = 1) -> AsyncIterator[bytes]:
        yield b"abc"[offset:]

    async def close(self) -> None:
        return


class ApiNode:
    """A served node, and a plain HTTP session to it."""

    def __init__(self, server: HttpServer, raft: FakeRaft, api: ClientApi, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.raft = raft
        self.api = api
        self.http = http
        self.url = server.url

    async def ask(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        """Status and the decoded document. ``json`` as aiohttp takes it; ``data`` as it is."""
        async with self.http.request(method, URL(self.url + path, encoded=True), **kwargs) as response:
            return response.status, await response.json()


ApiNodes = Callable[..., AbstractAsyncContextManager[ApiNode]]


@asynccontextmanager
async def _api_node(
    raft: FakeRaft | None = None, limits: ApiLimits | None = None, access: Access | None = None
) -> AsyncIterator[ApiNode]:
    raft = FakeRaft() if raft is None else raft
    server = HttpServer(Address("127.0.0.1", 0))
    api = attach(server, raft, limits, access=access)
    await server.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
            yield ApiNode(server, raft, api, http)
    finally:
        await server.close()


@pytest.fixture
def api_node() -> ApiNodes:
    """``async with api_node() as node``: served on a free port, stopped at the end."""
    return _api_node


@pytest.fixture
def fake_raft() -> type[FakeRaft]:
    return FakeRaft
