"""Proposing: assigning log ids to what clients write (openraft.md §2.6)."""

from __future__ import annotations

from raftkit_core.engine.handlers.log import LogHandler
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.engine.handlers.server_state import ServerStateHandler, forward_to_leader
from raftkit_core.engine.handlers.vote import VoteHandler
from raftkit_core.engine.leader import Leader
from raftkit_core.engine.parts import EngineParts
from raftkit_core.errors import ConditionFailed, ForwardToLeader, Overloaded, QuorumNotEnough, RaftError
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.entry import payload_bytes, proposed
from raftkit_core.types.log_id import LogId


class LeaderHandler:
    def __init__(
        self,
        parts: EngineParts,
        log: LogHandler,
        vote: VoteHandler,
        replication: ReplicationHandler,
        server_state: ServerStateHandler,
    ) -> None:
        self._parts = parts
        self._log = log
        self._vote = vote
        self._replication = replication
        self._server_state = server_state

    def refusal(self, now: float, size_bytes: int = 0) -> RaftError | None:
        """Why nothing can be proposed now, or None. Every refusal is definite: nothing enters the log."""
        parts = self._parts
        leader = parts.leader
        if leader is None:
            return forward_to_leader(parts)
        if leader.transfer is not None:
            target = leader.transfer.target
            return ForwardToLeader(
                f"{parts.config.id} is handing leadership to {target}",
                leader=target,
                leader_node=parts.effective.nodes.get(target),
                hint=f"ask {target}, or try again in a moment",
            )
        if now >= leader.quorum_known_until:
            # The lease only grows while the membership stays: it is looked up again when what was known is over.
            leader.quorum_known_until = self._vote.quorum_lease_until(now)
            if now >= leader.quorum_known_until:
                return self.no_quorum(leader, now)
        if leader.uncommitted_bytes and leader.uncommitted_bytes + size_bytes > parts.config.max_uncommitted_bytes:
            return Overloaded(
                f"{leader.uncommitted_bytes} bytes wait to be committed; max_uncommitted_bytes is"
                f" {parts.config.max_uncommitted_bytes}",
                hint="wait for earlier writes before sending more",
            )
        return None

    def no_quorum(self, leader: Leader, now: float) -> QuorumNotEnough:
        """Who answers, and how many would have to."""
        parts = self._parts
        horizon = now - parts.config.leader_lease
        answering = {node for node, at in leader.acked_at.items() if at > horizon} | {parts.config.id}
        reached = [voter for voter in parts.effective.voter_ids if voter in answering]
        needed = " and ".join(str(len(config) // 2 + 1) for config in parts.effective.configs)
        return QuorumNotEnough(
            f"no quorum: {len(reached)} of {len(parts.effective.voter_ids)} voters answer ({', '.join(reached)}),"
            f" {needed} needed; nothing was written",
            hint="restart the missing nodes, or look at: raftkit status",
        )

    def append(self, kind: int, payloads: list[bytes], now: float) -> LogId:
        """Append ``payloads`` under this leader's own vote; gives the first log id.

        Ids come from the log's own end, not from a flushed or committed position: nothing is ever written twice.
        """
        parts = self._parts
        leader = parts.leader
        assert leader is not None, "only a leader proposes"
        state = parts.state
        first = LogId(leader.vote.leader_id, state.log.last_index + 1)
        entries = proposed(first, leader.time_ms(now, state.last_time_ms), kind, payloads)
        size_bytes = payload_bytes(entries)
        leader.uncommitted.append((first.index + len(payloads) - 1, size_bytes))
        leader.uncommitted_bytes += size_bytes
        memberships = self._log.append(entries, now)
        if not memberships:
            return first
        assert len(memberships) == 1, "a leader proposes one membership at a time"
        for membership in memberships:
            parts.state.membership.append(membership)
            self._server_state.refresh()
            self._replication.rebuild(now)
        return first

    def write(
        self, kind: int, payloads: list[bytes], now: float, condition: WriteCondition | None = None
    ) -> LogId | RaftError:
        """Propose a batch: one append, one round of replication. Gives the first log id, or the refusal of all."""
        refusal = self.refusal(now, sum(map(len, payloads)))
        if refusal is None and condition is not None:
            refusal = self._unmet(condition)
        if refusal is not None:
            return refusal
        first = self.append(kind, payloads, now)
        self._replication.initiate(now)
        return first

    def _unmet(self, condition: WriteCondition) -> ConditionFailed | None:
        """What a write was to depend on and is not so."""
        state = self._parts.state
        leader = self._parts.leader
        assert leader is not None, "a refusal comes first"
        checks = (
            ("the leader", condition.leader_id, leader.vote.leader_id),
            ("the last log id", condition.last_log_id, state.log.last),
            ("the membership", condition.membership_log_id, state.membership.effective.log_id),
        )
        for what, wanted, found in checks:
            if wanted is not None and wanted != found:
                return ConditionFailed(f"{what} is {found}, not {wanted}; nothing was written", hint="look again first")
        return None
