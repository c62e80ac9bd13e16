"""How tools and remote applications talk to a cluster, whatever the transport (hook ``raftkit_register_clients``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec

from raftkit_core.errors import ConfigError
from raftkit_core.types.kv import KeyValue, KvEvent, WriteResult
from raftkit_core.types.membership import Node
from raftkit_core.types.metrics import NodeEvent

Consistency = Literal["linearizable", "lease", "stale"]


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The leader's view of one peer."""

    matching: int | None = None
    lag: int = 0
    state: str = "probe"
    last_contact_ms: int | None = None
    last_error: str | None = None


class StorageStatus(msgspec.Struct, frozen=True, kw_only=True):
    adapter: str = ""
    location: str = ""
    size_bytes: int = 0
    durability: str = ""


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One member as the membership names it."""

    id: str
    node: Node
    voter: bool


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one node says about itself. Indexes are None where there is nothing yet; times are milliseconds."""

    id: str
    cluster: str
    cluster_id: str | None = None
    store_id: str = ""
    version: str = ""
    role: str = "learner"
    term: int = 0
    leader: str | None = None
    last_log_index: int | None = None
    committed: int | None = None
    applied: int | None = None
    applied_time_ms: int = 0
    snapshot: int | None = None
    purged: int | None = None
    members: list[MemberStatus] = []
    joint: bool = False
    replication: dict[str, PeerStatus] | None = None
    millis_since_quorum_ack: int | None = None
    millis_since_leader_contact: int | None = None
    storage: StorageStatus = StorageStatus()
    snapshot_size_bytes: int = 0
    state_machine: str = ""
    digest: str | None = None
    fatal: str | None = None
    needs_rejoin: str | None = None
    pending_writes: int = 0
    uptime_ms: int = 0


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """A member in a survey: what it said of itself and of what happened to it, or why there is nothing (``error``)."""

    id: str
    status: NodeStatus | None = None
    events: list[NodeEvent] = []
    error: str | None = None


class MembershipResult(msgspec.Struct, frozen=True, kw_only=True):
    """The membership a change ended in."""

    members: list[MemberStatus]
    log_index: int


class ClusterClient(ABC):
    """A client of one cluster, given one or more endpoints. Follows the leader; any node accepts any request.

    Raises (every method): a typed ``RaftError``; ``Unreachable`` when no endpoint answers; ``OutcomeUnknown`` when a
    change may have happened; ``AccessDenied``. No call outlives its timeout.
    """

    @abstractmethod
    async def __aenter__(self) -> ClusterClient: ...

    @abstractmethod
    async def __aexit__(self, *exc_info: object) -> None: ...

    @abstractmethod
    async def status(self, *, digest: bool = False) -> NodeStatus:
        """The first endpoint that answers, about itself."""

    @abstractmethod
    async def status_of(self, address: str, *, digest: bool = False) -> NodeStatus:
        """The node at ``address`` (a client address out of a membership), about itself."""

    @abstractmethod
    async def initialize(self, members: dict[str, Node]) -> None: ...

    @abstractmethod
    async def add_learner(self, node_id: str, node: Node, *, blocking: bool = True) -> MembershipResult: ...

    @abstractmethod
    async def change_membership(
        self, voters: list[str], *, retain: bool = False, force: bool = False
    ) -> MembershipResult:
        """Make exactly ``voters`` the voters (through a joint configuration where needed)."""

    @abstractmethod
    async def remove_nodes(self, node_ids: list[str]) -> MembershipResult:
        """Remove learners."""

    @abstractmethod
    async def transfer_leader(self, to: str | None = None) -> str:
        """Hand leadership to ``to`` (None: the most up-to-date voter). Returns the new leader's id."""

    @abstractmethod
    async def trigger_snapshot(self, address: str | None = None) -> None: ...

    def read_snapshot(self, address: str | None = None) -> AsyncGenerator[bytes, None]:
        """The newest snapshot of the node at ``address`` (None: of the first that answers), as its container's bytes.

        Raises: NotFound while there is none; StorageCorrupt if the bytes end early.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot read snapshots", hint="take one offline: raftkit storage backup"
        )

    @abstractmethod
    async def write(self, command: Any) -> Any:
        """A command of the cluster's state machine, as JSON-like data; gives its result as JSON-like data."""

    @abstractmethod
    async def kv_get(self, key: str, *, consistency: Consistency = "linearizable") -> KeyValue | None: ...

    @abstractmethod
    async def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult:
        """``if_revision`` must be the key's revision (0: it must not exist). Raises: PreconditionFailed."""

    @abstractmethod
    async def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult: ...

    @abstractmethod
    async def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult:
        """Set ``value`` if the key holds ``expected`` (None: does not exist). Raises: PreconditionFailed."""

    @abstractmethod
    async def kv_list(
        self,
        prefix: str = "",
        *,
        limit: int = 1000,
        after: str | None = None,
        consistency: Consistency = "linearizable",
    ) -> list[KeyValue]:
        """Keys with ``prefix`` in order, after ``after``, at most ``limit``."""

    async def survey(self, events_after: dict[str, int] | None = None) -> list[NodeReport]:
        """Every member, as the node that answers sees it; of each only events with a number above ``events_after``."""
        raise ConfigError(f"{type(self).__name__} cannot survey a cluster", hint="talk to the cluster over http")

    def watch(self, prefix: str = "", *, from_revision: int | None = None) -> AsyncGenerator[KvEvent, None]:
        """Changes of the keys with ``prefix``, in log order, each once and none left out, from ``from_revision`` on
        (None: from now on). It does not end by itself: leave it by ``break`` in an ``aclosing`` block.

        Raises, also while it is iterated: Compacted (no node that answers keeps the revision any more), Unreachable.
        """
        raise ConfigError(f"{type(self).__name__} cannot watch", hint="talk to the cluster over http")
