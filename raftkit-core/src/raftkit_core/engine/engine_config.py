"""What the engine must know of the node's settings. Durations in seconds, because ``now`` is in seconds."""

from __future__ import annotations

from raftkit_core.config import AnySnapshotPolicy, Config
from raftkit_core.types.ids import NodeId


class EngineConfig:
    """Settings of one engine; ``enable_heartbeat`` and ``enable_elect`` may change at run time."""

    __slots__ = (
        "election_timeout_max",
        "election_timeout_min",
        "enable_elect",
        "enable_heartbeat",
        "heartbeat_interval",
        "id",
        "leader_lease",
        "leader_lease_ms",
        "machine_is_durable",
        "max_clock_drift",
        "max_inflight",
        "max_payload_entries",
        "max_uncommitted_bytes",
        "max_unflushed_bytes",
        "pre_vote",
        "purge_batch_size",
        "single_term_leader",
        "snapshot_logs_to_keep",
        "snapshot_policy",
        "storage_stall_timeout",
        "store_id",
    )

    def __init__(self, node_id: NodeId, store_id: str, config: Config, *, machine_is_durable: bool = False) -> None:
        self.id = node_id
        self.store_id = store_id
        self.machine_is_durable = machine_is_durable
        """The machine keeps its applied position itself: a restart needs no snapshot, so none is built by policy."""
        self.single_term_leader = config.single_term_leader
        self.pre_vote = config.pre_vote
        self.heartbeat_interval = config.heartbeat_interval_ms / 1000
        self.election_timeout_min = config.election_timeout_min_ms / 1000
        self.election_timeout_max = config.election_timeout_max_ms / 1000
        self.leader_lease_ms = config.leader_lease_ms
        self.leader_lease = config.leader_lease_ms / 1000
        self.max_clock_drift = config.max_clock_drift
        self.storage_stall_timeout = config.storage_stall_timeout_ms / 1000
        self.max_payload_entries = config.max_payload_entries
        self.max_inflight = config.max_inflight
        self.max_uncommitted_bytes = config.max_uncommitted_bytes
        self.max_unflushed_bytes = config.max_unflushed_bytes
        self.snapshot_policy: AnySnapshotPolicy = config.snapshot_policy
        self.snapshot_logs_to_keep = config.max_in_snapshot_log_to_keep
        self.purge_batch_size = config.purge_batch_size
        self.enable_heartbeat = config.enable_heartbeat
        self.enable_elect = config.enable_elect
