"""What the whole cluster looks like: one node is asked, then every member it names; a verdict in words.

What the answers mean is decided by :mod:`raftkit_core.network.survey`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from raftkit_core.errors import RaftError
from raftkit_core.network.client import ClusterClient, MemberStatus, NodeStatus
from raftkit_core.network.survey import Survey, contact_ms, lag_entries, lag_ms, verdict

PER_NODE_S = 2.0
"""How long one member is waited for, where nothing else says so."""


async def take_survey(client: ClusterClient, *, per_node_s: float, digest: bool = False) -> Survey:
    """Ask one endpoint, then every member; members the leader knows better are asked too.

    Raises: Unreachable when no endpoint answers.
    """
    asked = await client.status(digest=digest)
    answers: dict[str, NodeStatus | None] = {asked.id: asked}
    errors: dict[str, str] = {}
    survey = Survey(asked, answers, errors)
    for _ in range(2):  # the second round for members only the leader named
        missing = [member for member in survey.members if member.id not in answers]
        if not missing:
            break
        await asyncio.gather(
            *(_ask(client, member, answers, errors, per_node_s=per_node_s, digest=digest) for member in missing)
        )
    order = {member.id: position for position, member in enumerate(survey.members)}
    survey.answers = dict(sorted(answers.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
    return survey


async def find_leader(client: ClusterClient) -> tuple[NodeStatus, NodeStatus | None]:
    """What the node says that answers first, and the leader's own status; None when nobody leads.

    The one that answers first may be cut off, or removed: then every member it remembers is asked who leads.
    """
    status = await client.status()
    if status.role == "leader":
        return status, status
    named = next((member for member in status.members if member.id == status.leader), None)
    if named is not None:
        try:
            answer = await client.status_of(named.node.client_address)
        except RaftError:
            pass  # it has just gone
        else:
            if answer.role == "leader":
                return status, answer
    if not status.members:
        return status, None
    return status, (await take_survey(client, per_node_s=PER_NODE_S)).leader_status


async def _ask(
    client: ClusterClient,
    member: MemberStatus,
    answers: dict[str, NodeStatus | None],
    errors: dict[str, str],
    *,
    per_node_s: float,
    digest: bool,
) -> None:
    answers[member.id] = None
    try:
        async with asyncio.timeout(per_node_s):
            answer = await client.status_of(member.node.client_address, digest=digest)
    except RaftError as error:
        errors[member.id] = error.message
    except TimeoutError:
        errors[member.id] = f"no answer within {per_node_s:g} s"
    else:
        if answer.id == member.id:
            answers[member.id] = answer
        else:
            errors[member.id] = f"{member.node.client_address} answers as {answer.id}"


def as_data(survey: Survey) -> dict[str, Any]:
    """The survey as JSON: names fixed by the documentation of ``raftkit status``."""
    state, sentence = verdict(survey)
    working, needed, voters = survey.quorum()
    return {
        "cluster": survey.asked.cluster,
        "cluster_id": survey.asked.cluster_id,
        "leader": survey.leader,
        "term": survey.term,
        "state": state,
        "verdict": sentence,
        "asked": survey.asked.id,
        "joint": survey.is_joint,
        "quorum": {"working": working, "needed": needed, "voters": voters},
        "nodes": [_node_data(survey, node_id) for node_id in survey.answers],
    }


def _node_data(survey: Survey, node_id: str) -> dict[str, Any]:
    answer = survey.answers[node_id]
    member = next((member for member in survey.members if member.id == node_id), None)
    leader = survey.leader_status
    peer = None
    if leader is not None and leader.replication is not None:
        peer = leader.replication.get(node_id)
    return {
        "id": node_id,
        "address": None if member is None else member.node.client_address,
        "voter": None if member is None else member.voter,
        "role": "unknown" if answer is None else answer.role,
        "reachable": answer is not None,
        "error": survey.errors.get(node_id),
        "term": answer and answer.term,
        "leader": answer and answer.leader,
        "last_log_index": answer and answer.last_log_index,
        "committed": answer and answer.committed,
        "applied": answer and answer.applied,
        "snapshot": answer and answer.snapshot,
        "purged": answer and answer.purged,
        "lag_entries": lag_entries(survey, node_id),
        "lag_ms": lag_ms(survey, node_id),
        "last_contact_ms": contact_ms(survey, node_id),
        "replication": None if peer is None else peer.state,
        "storage": None
        if answer is None
        else {
            "adapter": answer.storage.adapter,
            "location": answer.storage.location,
            "size_bytes": answer.storage.size_bytes,
            "durability": answer.storage.durability,
        },
        "snapshot_size_bytes": answer and answer.snapshot_size_bytes,
        "state_machine": answer and answer.state_machine,
        "store_id": answer and answer.store_id,
        "version": answer and answer.version,
        "uptime_ms": answer and answer.uptime_ms,
        "pending_writes": answer and answer.pending_writes,
        "fatal": answer and answer.fatal,
        "needs_rejoin": answer and answer.needs_rejoin,
        "digest": answer and answer.digest,
    }


__all__ = ["Survey", "as_data", "contact_ms", "find_leader", "lag_entries", "lag_ms", "take_survey", "verdict"]
