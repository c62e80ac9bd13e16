"""Mutants of membership changes."""

from __future__ import annotations

from typing import Any

from raftkit_core.engine import engine as engine_module
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.handlers import membership as membership_module
from raftkit_core.engine.handlers.establish import EstablishHandler
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.engine.parts import EngineParts
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Membership, StoredMembership


@mutant(
    "no-joint-step",
    "safety",
    "engine",
    "A change of the voters takes one step, without a joint membership.",
)
def _(patch: Patch) -> None:
    original = membership_module.next_membership

    def next_membership(state: MembershipState, change: Any, **options: Any) -> Any:
        found = original(state, change, **options)
        if isinstance(found, Membership) and found.is_joint:
            return Membership.of(found.configs[-1:], found.nodes)
        return found

    patch.set(engine_module, "next_membership", next_membership)


@mutant(
    "two-changes-at-a-time",
    "safety",
    "engine",
    "A change is proposed while another is not committed.",
)
def _(patch: Patch) -> None:
    original = membership_module.next_membership

    def next_membership(state: MembershipState, change: Any, **options: Any) -> Any:
        return original(MembershipState(state.effective, state.effective), change, **options)

    patch.set(engine_module, "next_membership", next_membership)


@mutant(
    "change-before-own-blank",
    "safety",
    "engine",
    "A new leader changes the membership before anything of its own is committed (the single-server bug of 2015).",
)
def _(patch: Patch) -> None:
    original = Engine.handle_change_membership

    def handle(self: Engine, change: Any, **options: Any) -> Any:
        leader = self._parts.leader
        if leader is None:
            return original(self, change, **options)
        noop, leader.noop_log_id = leader.noop_log_id, self._parts.state.committed or leader.noop_log_id
        try:
            return original(self, change, **options)
        finally:
            leader.noop_log_id = noop

    patch.set(Engine, "handle_change_membership", handle)


@mutant(
    "membership-at-commit",
    "safety",
    "engine",
    "A membership is in force when it is committed instead of when it is appended.",
)
def _(patch: Patch) -> None:
    def effective(self: EngineParts) -> Membership:
        state = self.state.membership
        held = state.committed if state.committed.log_id is not None else state.effective
        return held.membership

    patch.set(EngineParts, "effective", property(effective))


@mutant(
    "membership-not-reverted",
    "safety",
    "engine",
    "A membership whose entry was truncated stays in force.",
)
def _(patch: Patch) -> None:
    original = MembershipState.truncate

    def truncate(self: MembershipState, since: int) -> bool:
        effective = self.effective
        result = original(self, since)
        self.effective = effective
        return result

    patch.set(MembershipState, "truncate", truncate)


@mutant(
    "membership-reverted-too-far",
    "safety",
    "engine",
    "A truncation takes the committed membership along.",
)
def _(patch: Patch) -> None:
    first: dict[int, StoredMembership] = {}
    append, original = MembershipState.append, MembershipState.truncate

    def remember(self: MembershipState, membership: StoredMembership) -> None:
        append(self, membership)
        first.setdefault(id(self), self.committed if self.committed.membership.configs else self.effective)

    def truncate(self: MembershipState, since: int) -> bool:
        result = original(self, since)
        if result and id(self) in first:
            self.effective = self.committed = first[id(self)]
        return result

    patch.set(MembershipState, "append", remember)
    patch.set(MembershipState, "truncate", truncate)


@mutant(
    "membership-kept-over-snapshot",
    "safety",
    "engine",
    "A node keeps its own membership although the installed snapshot is newer (D02, openraft #1808).",
)
def _(patch: Patch) -> None:
    def install(self: MembershipState, snapshot_last: LogId, membership: StoredMembership) -> None:
        if index_of(self.committed.log_id) < index_of(membership.log_id):
            self.committed = membership

    def replace(self: MembershipState, membership: StoredMembership) -> None:
        if self.effective.log_id is None:
            self.committed = self.effective = membership
        elif index_of(self.committed.log_id) < index_of(membership.log_id):
            self.committed = membership
            if index_of(self.effective.log_id) < index_of(membership.log_id):
                pass  # the effective one stays: it exists nowhere

    patch.set(MembershipState, "install", install)
    patch.set(MembershipState, "replace", replace)


@mutant(
    "removed-leader-stays",
    "liveness",
    "engine",
    "A leader that was removed leads on for ever.",
)
def _(patch: Patch) -> None:
    patch.set(Engine, "_is_removed", lambda self: False)


@mutant(
    "removed-leader-quits-at-once",
    "liveness",
    "engine",
    "A leader steps down as soon as its removal is appended (openraft §6 item 42).",
    equivalent="it costs an election and no safety: the entry is committed by the next leader; V1 allows that "
    "time, and the ported membership tests compare the orders",
)
def _(patch: Patch) -> None:
    patch.set(Engine, "_is_removed", lambda self: self._parts.config.id not in self._parts.effective.nodes)


@mutant(
    "removed-voter-does-not-campaign",
    "liveness",
    "engine",
    "A node stops campaigning as soon as its removal is appended, committed or not.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler.may_campaign

    def may_campaign(self: EstablishHandler, now: float) -> bool:
        return self._parts.is_voter and original(self, now)

    patch.set(EstablishHandler, "may_campaign", may_campaign)


@mutant(
    "new-voters-not-sent-to",
    "liveness",
    "engine",
    "A node that joins gets no stream.",
)
def _(patch: Patch) -> None:
    from raftkit_core.engine.handlers.replication import ReplicationHandler

    original = ReplicationHandler.rebuild

    def rebuild(self: ReplicationHandler, now: float) -> None:
        leader = self._leader()
        known = set(leader.progress)
        original(self, now)
        if known:
            for target in set(leader.progress) - known:
                del leader.progress[target]

    patch.set(ReplicationHandler, "rebuild", rebuild)
