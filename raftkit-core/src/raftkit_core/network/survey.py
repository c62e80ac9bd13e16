"""The health of a cluster in words, out of what its members say: what ``raftkit status`` and ``/ui`` show.

Pure functions over :class:`NodeStatus`; who asks the members, and how, is somebody else's.
"""

from __future__ import annotations

from raftkit_core.network.client import MemberStatus, NodeStatus


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
        working = [node_id for node_id in voters if self.counts(node_id)]
        return len(working), len(voters) // 2 + 1, len(voters)

    def counts(self, node_id: str) -> bool:
        """Whether a member answers, works, and has the store the membership names."""
        return is_working(self.answers.get(node_id)) and node_id not in self.strangers

    @property
    def strangers(self) -> list[str]:
        """Members that came back with another store than the membership names: they lost what they had promised."""
        found = []
        for member in self.members:
            answer = self.answers.get(member.id)
            if answer is not None and answer.store_id and member.node.store_id not in (None, answer.store_id):
                found.append(member.id)
        return found


def is_working(answer: NodeStatus | None) -> bool:
    """Whether a node answers and can do its part."""
    return answer is not None and not answer.fatal and not answer.needs_rejoin


def verdict(survey: Survey) -> tuple[str, str]:
    """(state, sentence): ``healthy``, ``degraded``, ``no leader``, ``no quorum`` or ``not initialized``."""
    if not survey.members:
        return "not initialized", f"{survey.asked.id} belongs to no cluster yet"
    working, needed, voters = survey.quorum()
    if working < needed:
        gone = _listed([m.id for m in survey.members if m.voter and not survey.counts(m.id)])
        strange = "".join(f"; {node_id} lost its store" for node_id in survey.strangers)
        return "no quorum", f"{working} of {voters} voters answer, {needed} needed; missing: {gone}{strange}"
    if survey.leader is None:
        return "no leader", f"{working} of {voters} voters answer, an election is under way"
    troubles = _troubles(survey)
    spare = working - needed
    tolerates = f"{working} of {voters} voters answer, tolerates {spare} more {'failure' if spare == 1 else 'failures'}"
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
        elif member.id in survey.strangers:
            troubles.append(f"{member.id} lost its store and needs to rejoin: raftkit member rejoin {member.id}")
    if survey.is_joint:
        troubles.append("a membership change is under way")
    return troubles


def _listed(names: list[str], word: str = "") -> str:
    if word and len(names) > 1:
        return f"{', '.join(names[:-1])} {word} {names[-1]}"
    return ", ".join(names) or "none"


def next_step(survey: Survey) -> str | None:
    """What an operator does about the verdict; None where nothing needs doing."""
    state, _ = verdict(survey)
    if state == "not initialized":
        return "begin a cluster: raftkit cluster init ID=URL ID=URL ID=URL"
    if state == "no leader":
        return "look again in a second: an election takes no longer"
    gone = [member.id for member in survey.members if survey.answers.get(member.id) is None]
    if state == "no quorum":
        voters = [member.id for member in survey.members if member.voter and member.id in gone]
        if not voters and survey.strangers:
            return "start a voter with the data it had; if a majority lost it for good: raftkit recover"
        return f"start {_listed(voters, 'or')}" if voters else "repair the nodes that have stopped"
    rejoin = [status.id for status in survey.reachable if status.needs_rejoin or status.id in survey.strangers]
    if rejoin:
        return f"raftkit member rejoin {rejoin[0]}"
    return f"start {_listed(gone, 'and')}" if gone else None


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
    return peer.lag if peer is not None and peer.matching is not None else None  # nothing is known of a silent one


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
