"""Settings of a node: validated once in the constructor, then frozen."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

import msgspec

from raftkit_core.errors import ConfigError
from raftkit_core.types.ids import MAX_ENTRY_BYTES


class ReadPolicy(Enum):
    """How a read is made safe."""

    READ_INDEX = "linearizable"
    """A quorum confirms the leader after the read arrived. Needs no assumption about clocks."""
    LEASE = "lease"
    """The leader's quorum lease answers at once. Assumes that clocks of members drift less than ``max_clock_drift``."""
    STALE = "stale"
    """Whatever this node has applied. No promise."""


class LogsSinceLast(msgspec.Struct, frozen=True, tag=True):
    """Snapshot when ``count`` entries were committed since the last one (openraft ``since_last``)."""

    count: int = 5000


class LogBytesSinceLast(msgspec.Struct, frozen=True, tag=True):
    """Snapshot when the log grew by ``max(minimum_bytes, size of the last snapshot)`` since the last one."""

    minimum_bytes: int = 64 * 1024 * 1024


class Never(msgspec.Struct, frozen=True, tag=True):
    """Snapshot only when asked."""


class SnapshotPolicy:
    """Namespace of the snapshot policies: ``SnapshotPolicy.LogsSinceLast(5000)``.

    Of a durable state machine no snapshot is made by policy: as often as one would be, its log is purged behind what it
    has applied. A snapshot of it is made when a peer needs one, or when asked.
    """

    LogsSinceLast = LogsSinceLast
    LogBytesSinceLast = LogBytesSinceLast
    Never = Never


AnySnapshotPolicy: TypeAlias = LogsSinceLast | LogBytesSinceLast | Never

MIB = 1024 * 1024


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a node; durations in milliseconds, sizes in bytes.

    Raises:
        ConfigError: a value is of the wrong type or out of range, naming the field.
    """

    cluster: str = "default"
    heartbeat_interval_ms: int = 100
    election_timeout_min_ms: int = 500
    election_timeout_max_ms: int = 1000
    leader_lease_ms: int = 500
    max_clock_drift: float = 0.1
    single_term_leader: bool = False
    pre_vote: bool = True
    max_payload_entries: int = 4096
    max_payload_bytes: int = MIB
    max_inflight: int = 16
    max_entry_bytes: int = MIB
    max_uncommitted_bytes: int = 64 * MIB
    max_unflushed_bytes: int = 64 * MIB
    snapshot_policy: AnySnapshotPolicy = LogBytesSinceLast()
    snapshot_chunk_bytes: int = MIB
    max_in_snapshot_log_to_keep: int = 1000
    purge_batch_size: int = 256
    replication_lag_threshold: int = 5000
    install_snapshot_timeout_ms: int = 10000
    storage_stall_timeout_ms: int = 2000
    enable_tick: bool = True
    enable_heartbeat: bool = True
    enable_elect: bool = True

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            self._require_int(name, minimum=1)
        for name in ("max_in_snapshot_log_to_keep", "replication_lag_threshold"):
            self._require_int(name, minimum=0)
        for name in ("single_term_leader", "pre_vote", "enable_tick", "enable_heartbeat", "enable_elect"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if type(self.cluster) is not str or not 1 <= len(self.cluster) <= 63 or not self.cluster.isprintable():
            raise ConfigError(f"cluster must be 1 to 63 printable characters, not {self.cluster!r}")
        if type(self.max_clock_drift) not in (int, float) or not 0 <= self.max_clock_drift < 1:
            raise ConfigError(f"max_clock_drift must be a fraction in [0, 1), not {self.max_clock_drift!r}")
        if self.max_entry_bytes > MAX_ENTRY_BYTES:
            raise ConfigError(f"max_entry_bytes is {self.max_entry_bytes}, the protocol allows {MAX_ENTRY_BYTES}")
        if not isinstance(self.snapshot_policy, LogsSinceLast | LogBytesSinceLast | Never):
            raise ConfigError(f"snapshot_policy must be a SnapshotPolicy, not {self.snapshot_policy!r}")
        if isinstance(self.snapshot_policy, LogsSinceLast) and self.snapshot_policy.count < 1:
            raise ConfigError(
                f"snapshot_policy: LogsSinceLast needs a count of at least 1, not {self.snapshot_policy.count}"
            )
        self._validate_timing()

    def _require_int(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < minimum:
            raise ConfigError(f"{name} must be an integer of at least {minimum}, not {value!r}")

    def _validate_timing(self) -> None:
        """2 × heartbeat ≤ leader_lease ≤ election_timeout_min < election_timeout_max."""
        if 2 * self.heartbeat_interval_ms > self.leader_lease_ms:
            raise ConfigError(
                f"leader_lease_ms ({self.leader_lease_ms}) must be at least twice"
                f" heartbeat_interval_ms ({self.heartbeat_interval_ms})"
            )
        if self.leader_lease_ms > self.election_timeout_min_ms:
            raise ConfigError(
                f"election_timeout_min_ms ({self.election_timeout_min_ms}) must be at least"
                f" leader_lease_ms ({self.leader_lease_ms})"
            )
        if self.election_timeout_min_ms >= self.election_timeout_max_ms:
            raise ConfigError(
                f"election_timeout_max_ms ({self.election_timeout_max_ms}) must be greater than"
                f" election_timeout_min_ms ({self.election_timeout_min_ms})"
            )


_POSITIVE = (
    "heartbeat_interval_ms",
    "election_timeout_min_ms",
    "election_timeout_max_ms",
    "leader_lease_ms",
    "max_payload_entries",
    "max_payload_bytes",
    "max_inflight",
    "max_entry_bytes",
    "max_uncommitted_bytes",
    "max_unflushed_bytes",
    "snapshot_chunk_bytes",
    "purge_batch_size",
    "install_snapshot_timeout_ms",
    "storage_stall_timeout_ms",
)
