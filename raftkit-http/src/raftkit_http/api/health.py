"""``/livez``, ``/readyz`` and ``/metrics``: for machines that watch. They read what is published and do not wait."""

from __future__ import annotations

import asyncio

from aiohttp import web

from raftkit_core.errors import Fatal, NeedsRejoin, QuorumNotEnough, RaftError, Stopped
from raftkit_http.api.envelope import failure, success
from raftkit_http.api.guard import Call
from raftkit_http.api.metrics import CONTENT_TYPE, Measured
from raftkit_http.api.schema import HealthAnswer

STATUS_SECONDS = 1.0
"""How long a scrape waits for the node's status before it goes on without."""


async def get_livez(call: Call) -> web.Response:
    """Alive unless the node is dead for good: restarting it may help."""
    problem = fatal_problem(call)
    if problem is not None:
        return failure(call.request, problem, caller=call.caller)
    return success(call.request, "health", HealthAnswer(node=call.raft.id, alive=True))


async def get_readyz(call: Call) -> web.Response:
    """Ready if a request sent here now can be served: a leader is known and in contact."""
    problem = fatal_problem(call) or readiness_problem(call)
    if problem is not None:
        return failure(call.request, problem, caller=call.caller, status=503)
    return success(call.request, "health", HealthAnswer(node=call.raft.id, ready=True))


def fatal_problem(call: Call) -> RaftError | None:
    metrics = call.raft.metrics().value
    if metrics.fatal is not None:
        return Fatal(f"{call.raft.id} has stopped: {metrics.fatal}", hint="read its log, then restart it")
    return None


def readiness_problem(call: Call) -> RaftError | None:
    metrics, config = call.raft.metrics().value, call.raft.config
    if call.api.closing or call.raft.is_stopping or not metrics.running:
        return Stopped(f"{call.raft.id} is shutting down", hint="ask another node")
    if metrics.needs_rejoin is not None:
        return NeedsRejoin(f"{call.raft.id} must be added anew: {metrics.needs_rejoin}")
    if metrics.current_leader is None:
        return QuorumNotEnough(f"{call.raft.id} knows no leader", hint="see: raftkit status")
    acked_ms = metrics.millis_since_quorum_ack
    if metrics.current_leader == call.raft.id and acked_ms is not None and acked_ms > config.leader_lease_ms:
        return QuorumNotEnough(
            f"{call.raft.id} leads, but a quorum was last heard {acked_ms} ms ago", hint="see: raftkit status"
        )
    age_ms = metrics.millis_since_leader_contact
    if metrics.current_leader != call.raft.id and age_ms is not None and age_ms > config.election_timeout_max_ms:
        return QuorumNotEnough(
            f"the leader {metrics.current_leader} was last heard {age_ms} ms ago", hint="see: raftkit status"
        )
    return None


async def get_metrics(call: Call) -> web.Response:
    try:
        async with asyncio.timeout(STATUS_SECONDS):
            status = await call.raft.status()
    except (RaftError, TimeoutError):
        status = None
    raft = call.raft
    own = Measured(raft.counters(), raft.figures(), raft.is_storage_stalled, len(call.api.watches), raft.session_count)
    return web.Response(body=call.api.metrics.expose(status, own), headers={"Content-Type": CONTENT_TYPE})
