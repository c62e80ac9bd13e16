"""``/metrics``, names with prefix ``raftkit_``: a registry per node, because several may live in one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from raftkit_core.network.client import NodeStatus
from raftkit_core.runtime.figures import BOUNDS, Durations, NodeFigures
from raftkit_core.types.metrics import NodeCounters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Measured(NamedTuple):
    """What a node counts and measures, whether or not it answers."""

    counters: NodeCounters
    figures: NodeFigures
    is_storage_stalled: bool
    watches: int
    sessions: int


class ApiMetrics:
    """Counters of the client API; the node's own figures are read when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._node = NodeCollector()
        self.registry.register(self._node)
        self._requests = Counter(
            "raftkit_http_requests", "Answered client requests.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "raftkit_proposal_seconds",
            "Time from a write's arrival at this node's client API to its result.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._failed = Counter(
            "raftkit_proposals_failed", "Writes that failed, by error code.", ["reason"], registry=self.registry
        )

    def request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def proposal(self, seconds: float) -> None:
        self._seconds.observe(seconds)

    def proposal_failed(self, reason: str) -> None:
        self._failed.labels(reason).inc()

    def expose(self, status: NodeStatus | None, measured: Measured) -> bytes:
        """The text format. ``status`` None: the node did not say, so only what is measured and counted."""
        self._node.status = status
        self._node.measured = measured
        return generate_latest(self.registry)


class NodeCollector(Collector):
    """A :class:`NodeStatus` as gauges. A position that does not exist yet has no sample, rather than a false zero."""

    def __init__(self) -> None:
        self.status: NodeStatus | None = None
        self.measured: Measured | None = None

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        if self.measured is not None:
            yield from self._measured(self.measured)
        status = self.status
        if status is None:
            return
        plugins = GaugeMetricFamily("raftkit_plugin_info", "What this node runs.", labels=["kind", "name", "version"])
        plugins.add_metric(["storage", status.storage.adapter, status.version], 1)
        plugins.add_metric(["state_machine", status.state_machine, status.version], 1)
        yield plugins
        yield gauge("has_leader", "1 if this node knows a leader.", status.leader is not None)
        yield gauge("is_leader", "1 if this node leads.", status.role == "leader")
        yield gauge("is_learner", "1 if this node is a learner.", status.role == "learner")
        yield gauge("fatal", "1 if this node has stopped for good.", status.fatal is not None)
        yield gauge("needs_rejoin", "1 if this node must be added anew.", status.needs_rejoin is not None)
        yield gauge("term", "Current term.", status.term)
        yield gauge("last_log_index", "Index of the last log entry.", status.last_log_index)
        yield gauge("commit_index", "Index of the last committed entry.", status.committed)
        yield gauge("applied_index", "Index of the last applied entry.", status.applied)
        yield gauge("snapshot_index", "Last index in the current snapshot.", status.snapshot)
        yield gauge("purged_index", "Last index removed from the log.", status.purged)
        yield gauge("proposals_pending", "Writes waiting for their result.", status.pending_writes)
        yield gauge("storage_bytes", "Size of the log store.", status.storage.size_bytes)
        yield gauge("snapshot_bytes", "Size of the current snapshot.", status.snapshot_size_bytes)
        yield gauge(
            "quorum_ack_age_seconds", "Leader: age of the last quorum.", seconds(status.millis_since_quorum_ack)
        )
        yield gauge(
            "leader_contact_age_seconds", "Age of the last contact.", seconds(status.millis_since_leader_contact)
        )
        peers = status.replication or {}
        yield peer_gauge(
            "peer_match_index", "Last index known to match.", {peer: view.matching for peer, view in peers.items()}
        )
        yield peer_gauge("peer_lag_entries", "Entries behind.", {peer: view.lag for peer, view in peers.items()})
        yield peer_gauge(
            "peer_last_contact_seconds",
            "Age of the peer's last answer.",
            {peer: seconds(view.last_contact_ms) for peer, view in peers.items()},
        )

    @staticmethod
    def _measured(measured: Measured) -> Iterator[Metric]:
        counters, figures = measured.counters, measured.figures
        elections = CounterMetricFamily("raftkit_elections", "Campaigns of this node, by result.", labels=["result"])
        elections.add_metric(["started"], counters.elections_started)
        elections.add_metric(["won"], counters.elections_won)
        elections.add_metric(["lost"], counters.elections_lost)
        yield elections
        yield counter("leader_changes", "How often this node saw another leader.", counters.leader_changes)
        yield counter("snapshots", "Snapshots built or received.", counters.snapshots)
        yield counter("storage_stalls", "Log writes that took too long.", counters.storage_stalls)
        yield counter("plugin_stalls", "How often plugin code held the node up.", counters.plugin_stalls)
        yield counter("proposals_committed", "Commands applied on this node.", figures.applied_commands)
        yield gauge("storage_stalled", "1 while a log write takes too long.", measured.is_storage_stalled)
        yield gauge("watches", "Watches served by this node.", measured.watches)
        yield gauge("sessions", "Client sessions that are open, as this node has applied them.", measured.sessions)
        yield durations("storage_flush_seconds", "Durable writes of the log.", {(): figures.flush})
        yield durations("snapshot_seconds", "Building a snapshot.", {(): figures.snapshot})
        yield durations("read_index_seconds", "Confirming that a read is safe.", {(): figures.read_index})
        yield durations("rpc_seconds", "Answered calls to peers.", figures.calls)
        errors = CounterMetricFamily("raftkit_rpc_errors", "Calls to peers that failed.", labels=["kind", "peer"])
        for (kind, peer), count in sorted(figures.call_errors.items()):
            errors.add_metric([kind, peer], count)
        yield errors


def counter(name: str, help_text: str, value: int) -> Metric:
    return CounterMetricFamily(f"raftkit_{name}", help_text, value=value)


def durations(
    name: str, help_text: str, values: Mapping[tuple[()], Durations] | Mapping[tuple[str, str], Durations]
) -> Metric:
    labels = ("kind", "peer") if name == "rpc_seconds" else ()
    family = HistogramMetricFamily(f"raftkit_{name}", help_text, labels=labels)
    for key, value in sorted(values.items()):
        sums = list(accumulate(value.counts))
        bounds = [*(repr(bound) for bound in BOUNDS), "+Inf"]
        family.add_metric(list(key), buckets=list(zip(bounds, sums, strict=True)), sum_value=value.sum_seconds)
    return family


def gauge(name: str, help_text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"raftkit_{name}", help_text)
    if value is not None:
        family.add_metric([], float(value))
    return family


def peer_gauge(name: str, help_text: str, values: Mapping[str, float | None]) -> Metric:
    family = GaugeMetricFamily(f"raftkit_{name}", help_text, labels=["peer"])
    for peer, value in values.items():
        if value is not None:
            family.add_metric([peer], float(value))
    return family


def seconds(millis: int | None) -> float | None:
    return None if millis is None else millis / 1000
