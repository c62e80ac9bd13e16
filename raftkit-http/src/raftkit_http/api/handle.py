"""What the client API needs of a ``Raft``: so that a test can stand in for it without an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from raftkit_core.config import Config, ReadPolicy
from raftkit_core.errors import RaftError
from raftkit_core.network.client import NodeReport, NodeStatus
from raftkit_core.state_machine.interface import Codec
from raftkit_core.state_machine.kv_watch import KvWatch
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Node
from raftkit_core.types.metrics import NodeEvent, RaftMetrics
from raftkit_core.types.operations import Operation
from raftkit_core.types.session import SessionSerial
from raftkit_core.types.snapshot import SnapshotSource


class WriteOutcome(Protocol):
    """What a write gives back."""

    @property
    def log_id(self) -> LogId: ...
    @property
    def data(self) -> Any: ...


class Machine(Protocol):
    """The state machine, as far as commands and results are concerned."""

    @property
    def name(self) -> str: ...
    @property
    def codec(self) -> Codec: ...


class MetricsWatch(Protocol):
    @property
    def value(self) -> RaftMetrics: ...


class Trigger(Protocol):
    def snapshot(self) -> Awaitable[object] | None: ...


class RaftHandle(Protocol):
    """The part of ``raftkit_core.Raft`` that is served. Every method may raise a ``RaftError``."""

    @property
    def id(self) -> str: ...
    @property
    def config(self) -> Config: ...
    @property
    def machine(self) -> Machine: ...

    async def status(self, *, digest: bool = False) -> NodeStatus: ...
    async def survey(self, events_after: dict[str, int] | None = None, *, timeout: float = ...) -> list[NodeReport]: ...
    def events(self, after: int = 0, limit: int = ...) -> list[NodeEvent]: ...
    def metrics(self) -> MetricsWatch: ...
    async def write(
        self, command: Any, *, session: SessionSerial | None = None, timeout: float = 5.0
    ) -> WriteOutcome: ...
    async def write_many(
        self, commands: Sequence[Any], serials: Sequence[SessionSerial] | None = None, *, timeout: float = 5.0
    ) -> Sequence[WriteOutcome | RaftError]: ...
    async def read(self, fn_or_query: Any, policy: ReadPolicy = ..., *, timeout: float = 5.0) -> Any: ...
    def watch(self, prefix: str = "", from_revision: int | None = None) -> KvWatch: ...
    async def call(self, operation: Operation, *, timeout: float = 5.0) -> Any: ...
    async def initialize(self, members: Mapping[str, Node]) -> object: ...
    def trigger(self) -> Trigger: ...
    async def get_snapshot(self) -> SnapshotSource | None: ...
