"""What the demo found: the figures and the verdict."""

from __future__ import annotations

from typing import Any


class Report:
    """Figures of one run. ``lost`` counts acknowledged keys that are missing or hold another value at the end."""

    def __init__(self, *, nodes: int, storage: str, network: str) -> None:
        self.nodes = nodes
        self.storage = storage
        self.network = network
        self.keys = 0
        self.acknowledged = 0
        self.lost: list[str] = []
        self.unknown = 0
        self.unknown_applied = 0
        self.refused = 0
        self.latencies_s: list[float] = []
        self.first_leader: str | None = None
        self.election_s: float | None = None
        self.killed: str | None = None
        self.killed_after = 0
        self.next_leader: str | None = None
        self.failover_s: float | None = None
        self.is_restarted = False
        self.catch_up_s: float | None = None
        self.digests: dict[str, str | None] = {}
        self.digest_index: int | None = None
        self.seconds = 0.0
        self.directory: str | None = None
        self.endpoints: list[str] = []
        self.logs: dict[str, list[str]] = {}

    @property
    def digests_equal(self) -> bool:
        return bool(self.digests) and len(set(self.digests.values())) == 1 and None not in self.digests.values()

    def percentile_ms(self, fraction: float) -> float | None:
        """Of the writes without the one that waited for a new leader: that wait is ``failover_s``."""
        ordered = sorted(self.latencies_s)
        if not ordered:
            return None
        return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] * 1000, 2)

    def as_data(self) -> dict[str, Any]:
        """The figures under their JSON names."""
        return {
            "nodes": self.nodes,
            "storage": self.storage,
            "network": self.network,
            "keys": self.keys,
            "acknowledged": self.acknowledged,
            "lost": len(self.lost),
            "lost_keys": self.lost[:20],
            "unknown": self.unknown,
            "unknown_applied": self.unknown_applied,
            "refused": self.refused,
            "first_leader": self.first_leader,
            "election_seconds": _rounded(self.election_s),
            "killed": self.killed,
            "killed_after": self.killed_after,
            "next_leader": self.next_leader,
            "failover_seconds": _rounded(self.failover_s),
            "restarted": self.is_restarted,
            "catch_up_seconds": _rounded(self.catch_up_s),
            "write_p50_ms": self.percentile_ms(0.50),
            "write_p99_ms": self.percentile_ms(0.99),
            "digests_equal": self.digests_equal,
            "digest": next(iter(self.digests.values()), None) if self.digests_equal else None,
            "digest_index": self.digest_index,
            "digests": self.digests,
            "seconds": _rounded(self.seconds),
            "dir": self.directory,
            "endpoints": self.endpoints,
            **({"logs": self.logs} if self.logs else {}),
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
