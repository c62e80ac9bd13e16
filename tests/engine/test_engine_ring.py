"""Engines in a seeded ring: nothing but a seed decides, and after every step the disks are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from raftkit_core.engine.commands import Respond
from raftkit_core.engine.handlers import replication
from raftkit_core.engine.handlers.following import FollowingHandler
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.engine.handlers.vote import VoteHandler
from raftkit_core.engine.leader import Leader
from raftkit_core.engine.quorum import quorum_log_id
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.testing.simulation.engine_ring import EngineRing, Faults
from raftkit_core.types.entry import Entry
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.messages import VoteRequest

SEEDS_PER_TEST = 10
HARSH = {
    "loss": 0.15, "repeat": 0.15, "delay": 0.12, "disk_delay": 0.15, "crashes": 0.5, "cuts": 0.3, "changes": 1.0
}  # fmt: skip


def ring(seed: int, **faults: float) -> EngineRing:
    """Three to five voters, sometimes with a spare; a quarter of the seeds in single-term mode."""
    return EngineRing(seed, voters=3 + seed % 3, spares=seed % 2, single_term=seed % 4 == 0, faults=Faults(**faults))


@pytest.mark.parametrize("first", range(0, 60, SEEDS_PER_TEST))
def test_faults_break_no_invariant_and_the_cluster_recovers(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        cluster = ring(seed)
        cluster.run(6.0)
        cluster.settle()


@pytest.mark.parametrize("first", range(1000, 1040, SEEDS_PER_TEST))
def test_many_faults_break_no_invariant_and_the_cluster_recovers(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        cluster = ring(seed, **HARSH)
        cluster.run(6.0)
        cluster.settle()


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        (132, {}),  # a joint membership was left by an entry only the removed held: nobody was elected again
        (50, HARSH),  # a restarted node that forgot its committed index died of a snapshot
    ],
)
def test_a_seed_that_once_failed_passes(seed: int, faults: dict[str, float]) -> None:
    cluster = ring(seed, **faults)
    cluster.run(8.0)
    cluster.settle()


def test_a_healthy_ring_elects_once_and_commits_everything() -> None:
    cluster = EngineRing(1, voters=5, spares=0, faults=Faults(loss=0, repeat=0, crashes=0, cuts=0, changes=0))
    cluster.run(4.0)
    leader = cluster.settle()
    assert len(cluster.invariants.leaders) == 1
    assert index_of(leader.state.committed) > 100


def test_one_seed_is_one_run() -> None:
    def trace(seed: int) -> tuple[int, int, str]:
        cluster = ring(seed, **HARSH)
        cluster.run(5.0)
        return cluster.steps, cluster.writes, cluster.describe()

    assert trace(7) == trace(7)
    assert trace(7) != trace(8)


# --- the ring sees ---------------------------------------------------------------------------------------------------


def commits_what_an_earlier_leader_proposed(patch: pytest.MonkeyPatch) -> None:
    """The paper's figure 8: only the own term may be counted."""

    def try_commit(self: ReplicationHandler, leader: Leader, now: float) -> None:
        state = self._parts.state
        matching = {target: entry.matching for target, entry in leader.progress.items()}
        matching[self._parts.config.id] = state.io.flushed_log_id
        position = quorum_log_id(self._parts.effective.configs, matching)
        if position is not None and position.index > index_of(state.committed):
            self.commit_to(position)

    patch.setattr(ReplicationHandler, "try_commit", try_commit)


def commits_with_one_vote_less_than_a_quorum(patch: pytest.MonkeyPatch) -> None:
    def one_less(configs: Sequence[Sequence[str]], matching: Mapping[str, LogId | None]) -> LogId | None:
        lowest: list[LogId] = []
        for config in configs:
            reached = sorted((at for voter in config if (at := matching.get(voter)) is not None), reverse=True)
            needed = max(1, len(config) // 2)
            if len(reached) < needed:
                return None
            lowest.append(reached[needed - 1])
        return min(lowest, default=None)

    patch.setattr(replication, "quorum_log_id", one_less)


def counts_the_own_log_before_it_is_flushed(patch: pytest.MonkeyPatch) -> None:
    original = ReplicationHandler.try_commit

    def try_commit(self: ReplicationHandler, leader: Leader, now: float) -> None:
        io = self._parts.state.io
        flushed, io.flushed_log_id = io.flushed_log_id, self._parts.state.log.last
        try:
            original(self, leader, now)
        finally:
            io.flushed_log_id = flushed

    patch.setattr(ReplicationHandler, "try_commit", try_commit)


def grants_before_the_vote_is_flushed(patch: pytest.MonkeyPatch) -> None:
    original = VoteHandler.handle_vote_request

    def handle(self: VoteHandler, request: VoteRequest, store_id: str, request_id: int, now: float) -> None:
        original(self, request, store_id, request_id, now)
        commands = self._parts.output.take()
        for command in commands:
            early = isinstance(command, Respond) and command.when > 0
            self._parts.output.push(msgspec.structs.replace(command, when=0) if early else command)

    patch.setattr(VoteHandler, "handle_vote_request", handle)


def acknowledges_before_the_entries_are_flushed(patch: pytest.MonkeyPatch) -> None:
    original = FollowingHandler._answer

    def answer(self: FollowingHandler, request_id: int, response: Any, entries_io: int = 0) -> None:
        original(self, request_id, response, 0)

    patch.setattr(FollowingHandler, "_answer", answer)


def deletes_everything_after_prev(patch: pytest.MonkeyPatch) -> None:
    """§6 item 2: also what is here already, and committed."""

    def take(self: FollowingHandler, entries: list[Entry], now: float) -> None:
        self._truncate(entries[0].index, now)
        for held in self._log.append(entries, now)[-2:]:
            self._parts.state.membership.append(held)

    patch.setattr(FollowingHandler, "_take", take)


def commits_what_the_leader_did_not_verify(patch: pytest.MonkeyPatch) -> None:
    """§6 item 3."""

    def commit(self: FollowingHandler, leader_commit: LogId | None) -> None:
        state = self._parts.state
        upto = state.log.get(min(index_of(leader_commit), state.log.last_index))
        if upto is not None and upto.index > index_of(state.committed):
            self._replication.commit_to(upto)

    patch.setattr(FollowingHandler, "_commit", commit)


def applies_before_it_is_flushed(patch: pytest.MonkeyPatch) -> None:
    original = ReplicationHandler.apply_durable

    def apply(self: ReplicationHandler) -> None:
        io = self._parts.state.io
        flushed, io.flushed_log_id = io.flushed_log_id, self._parts.state.log.last
        try:
            original(self)
        finally:
            io.flushed_log_id = flushed

    patch.setattr(ReplicationHandler, "apply_durable", apply)


def votes_for_a_shorter_log(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VoteHandler, "compared_log_id", lambda self: None)


def takes_any_log_for_its_own(patch: pytest.MonkeyPatch) -> None:
    """A prev log id is not compared: logs no longer match."""
    patch.setattr(RaftState, "has_log_id", lambda self, log_id: log_id.index <= self.log.last_index)


MUTANTS = [
    commits_what_an_earlier_leader_proposed,
    commits_with_one_vote_less_than_a_quorum,
    counts_the_own_log_before_it_is_flushed,
    grants_before_the_vote_is_flushed,
    acknowledges_before_the_entries_are_flushed,
    deletes_everything_after_prev,
    commits_what_the_leader_did_not_verify,
    applies_before_it_is_flushed,
    votes_for_a_shorter_log,
    takes_any_log_for_its_own,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_ring_catches(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A known bug put back on purpose breaks an invariant within a few seeds (``InvariantBroken``: seen on the disks;
    any other ``AssertionError``: the engine itself stopped)."""
    mutant(monkeypatch)
    for seed in range(150):
        try:
            cluster = ring(seed, **HARSH)
            cluster.run(6.0)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__} survived")
