"""What the whole cluster looks like: one node is asked, then every member it names; a verdict in words.

Pure functions over :class:`NodeStatus`, and :func:`take_survey`, which asks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from raftkit_core.errors import RaftError
from raftkit_core.network.client import ClusterClient, MemberStatus, NodeStatus


class Survey:
    """Answers by node id; None for a member that gave none, with the reason in ``errors``."""

    def __init__(self, asked: NodeStatus, answers: dict[str, NodeStatus | None], errors: dict[str, str]) -> None:
        self.asked = asked
        self.answers = answers
        self.errors = errors

    @property
    def reachable(self) -> list[NodeStatus]:
        return [answer for answer in self.answers.values() if answer is not None]

    @property
    def leader(self) -> str | None:
        """Who leads, by the answer of the newest term that names somebody; None when nobody does.

        A leader counts only if it says so itself or cannot be asked: a follower may not have noticed its end yet.
        """
        for answer in sorted(self.reachable, key=lambda status: status.term, reverse=True):
            if answer.leader is None:
                continue
            named = self.answers.get(answer.leader)
            if named is None or named.role == "leader":
                return answer.leader
        return None

    @property
    def term(self) -> int:
        return max(answer.term for answer in self.reachable)

    @property
    def leader_status(self) -> NodeStatus | None:
        """The leader's own answer, if it gave one."""
        leader = self.leader
        return self.answers.get(leader) if leader is not None else None

    @property
    def members(self) -> list[MemberStatus]:
        """The membership, as the leader sees it, else as the most advanced answer does."""
        source = self.leader_status
        if source is None:
            source = max(self.reachable, key=lambda status: (status.term, status.committed or -1))
        return source.members

    @property
    def is_joint(self) -> bool:
        source = self.leader_status or self.asked
        return source.joint

    def quorum(self) -> tuple[int, int, int]:
        """(voters that answer and work, voters needed, voters)."""
        voters = [member.id for member in self.members if member.voter]
        working = [node_id for node_id in voters if is_working(self.answers.get(node_id))]
        return len(working), len(voters) // 2 + 1, len(voters)


def is_working(answer: NodeStatus | None) -> bool:
    """Whether a node answers and can do its part."""
    return answer is not None and not answer.fatal and not answer.needs_rejoin


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


def verdict(survey: Survey) -> tuple[str, str]:
    """(state, sentence): ``healthy``, ``degraded``, ``no leader``, ``no quorum`` or ``not initialized``."""
    if not survey.members:
        return "not initialized", f"{survey.asked.id} belongs to no cluster yet"
    working, needed, voters = survey.quorum()
    if working < needed:
        gone = _listed([m.id for m in survey.members if m.voter and not is_working(survey.answers.get(m.id))])
        return "no quorum", f"{working} of {voters} voters answer, {needed} needed; missing: {gone}"
    if survey.leader is None:
        return "no leader", f"{working} of {voters} voters answer, an election is under way"
    troubles = _troubles(survey)
    spare = working - needed
    tolerates = f"quorum {working}/{voters}, tolerates {spare} {'more failure' if spare == 1 else 'more failures'}"
    if troubles:
        return "degraded", f"{tolerates}; {'; '.join(troubles)}"
    return "healthy", tolerates


def _troubles(survey: Survey) -> list[str]:
    troubles = []
    for member in survey.members:
        answer = survey.answers.get(member.id)
        if answer is None:
            troubles.append(f"{member.id} does not answer")
        elif answer.fatal:
            troubles.append(f"{member.id} has stopped: {answer.fatal}")
        elif answer.needs_rejoin:
            troubles.append(f"{member.id} needs to rejoin: {answer.needs_rejoin}")
    if survey.is_joint:
        troubles.append("a membership change is under way")
    return troubles


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


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


def lag_entries(survey: Survey, node_id: str) -> int | None:
    """How many entries a node is behind the leader's log: by what the leader knows, else by the node's own word."""
    leader, answer = survey.leader_status, survey.answers.get(node_id)
    if leader is None:
        return None
    if node_id == leader.id:
        return 0
    if answer is not None:
        return max(0, (leader.last_log_index or 0) - (answer.last_log_index or 0))
    peer = (leader.replication or {}).get(node_id)
    return peer.lag if peer is not None else None


def lag_ms(survey: Survey, node_id: str) -> int | None:
    """How much cluster time lies between what the leader has applied and what this node has; both were asked."""
    leader, answer = survey.leader_status, survey.answers.get(node_id)
    if leader is None or answer is None:
        return None
    return max(0, leader.applied_time_ms - answer.applied_time_ms)


def contact_ms(survey: Survey, node_id: str) -> int | None:
    """Age of the last answer the leader had from this node; without a leader, of the node's last word from one."""
    leader, answer = survey.leader_status, survey.answers.get(node_id)
    if leader is not None and node_id == leader.id:
        return None
    peer = (leader.replication or {}).get(node_id) if leader is not None else None
    if peer is not None:
        return peer.last_contact_ms
    return answer.millis_since_leader_contact if answer is not None else None
