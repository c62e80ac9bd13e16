"""Mutants of leading: counting, committing, believing answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from raftkit_core.engine.commands import ReplicateSnapshot
from raftkit_core.engine.handlers import replication
from raftkit_core.engine.handlers.establish import EstablishHandler
from raftkit_core.engine.handlers.leader import LeaderHandler
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.engine.leader import Leader
from raftkit_core.engine.progress import ProgressEntry, ProgressState
from raftkit_core.engine.quorum import quorum_log_id
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.entry import BLANK
from raftkit_core.types.log_id import LogId, index_of


@mutant(
    "commit-of-earlier-term",
    "safety",
    "engine",
    "A leader commits what an earlier one proposed by counting copies (paper, figure 8).",
)
def _(patch: Patch) -> None:
    def try_commit(self: ReplicationHandler, leader: Leader, now: float) -> None:
        state = self._parts.state
        matching = {target: entry.matching for target, entry in leader.progress.items()}
        matching[self._parts.config.id] = state.io.flushed_log_id
        position = quorum_log_id(self._parts.effective.configs, matching)
        if position is not None and position.index > index_of(state.committed):
            self.commit_to(position)

    patch.set(ReplicationHandler, "try_commit", try_commit)


@mutant(
    "commit-minus-one",
    "safety",
    "engine",
    "An entry is committed with one copy less than a majority.",
)
def _(patch: Patch) -> None:
    def one_less(configs: Sequence[Sequence[str]], matching: Mapping[str, LogId | None]) -> LogId | None:
        lowest: list[LogId] = []
        for config in configs:
            reached = sorted((at for voter in config if (at := matching.get(voter)) is not None), reverse=True)
            needed = max(1, len(config) // 2)
            if len(reached) < needed:
                return None
            lowest.append(reached[needed - 1])
        return min(lowest, default=None)

    patch.set(replication, "quorum_log_id", one_less)


@mutant(
    "seed-progress-order",
    "safety",
    "engine",
    "The seed's incremental progress array: a voter above the committed position that advances again breaks its "
    "order (D01, openraft #1802).",
)
def _(patch: Patch) -> None:
    arrays: dict[int, dict[tuple[str, ...], list[list[Any]]]] = {}
    original = ReplicationHandler.try_commit

    def quorum(configs: Sequence[Sequence[str]], matching: Mapping[str, LogId | None]) -> LogId | None:
        """Per configuration an array kept sorted by moving up only what crosses the committed position."""
        lowest: LogId | None = None
        kept = arrays.setdefault(1, {})
        for config in configs:
            array = kept.setdefault(tuple(config), [[voter, None] for voter in config])
            majority = len(array) // 2
            for position, item in enumerate(array):
                new = matching.get(item[0])
                old, item[1] = item[1], new
                committed = array[majority][1] if position != majority else old
                if index_of(new) <= index_of(committed) or index_of(old) > index_of(committed):
                    continue  # the shortcut: already above, so nothing is moved
                while position > 0 and index_of(array[position - 1][1]) < index_of(new):
                    array[position - 1], array[position] = array[position], array[position - 1]
                    position -= 1
            reached: LogId | None = array[majority][1]
            if reached is None:
                return None
            lowest = reached if lowest is None or reached < lowest else lowest
        return lowest

    def try_commit(self: ReplicationHandler, leader: Leader, now: float) -> None:
        arrays[1] = arrays.setdefault(id(leader), {})
        original(self, leader, now)

    patch.set(replication, "quorum_log_id", quorum)
    patch.set(ReplicationHandler, "try_commit", try_commit)


@mutant(
    "own-log-before-flush",
    "safety",
    "engine",
    "A leader counts its own copy before that is on its disk.",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler.try_commit

    def try_commit(self: ReplicationHandler, leader: Leader, now: float) -> None:
        io = self._parts.state.io
        flushed, io.flushed_log_id = io.flushed_log_id, self._parts.state.log.last
        try:
            original(self, leader, now)
        finally:
            io.flushed_log_id = flushed

    patch.set(ReplicationHandler, "try_commit", try_commit)


@mutant(
    "leader-always-counts",
    "safety",
    "engine",
    "A leader counts itself although it is no voter any more.",
)
def _(patch: Patch) -> None:
    def quorum(configs: Sequence[Sequence[str]], matching: Mapping[str, LogId | None]) -> LogId | None:
        me = list(matching)[-1]  # the own position is put last
        return quorum_log_id([config if me in config else (*config[1:], me) for config in configs], matching)

    patch.set(replication, "quorum_log_id", quorum)


@mutant(
    "learners-count",
    "safety",
    "engine",
    "Whoever has the entry counts, voter or not.",
)
def _(patch: Patch) -> None:
    def quorum(configs: Sequence[Sequence[str]], matching: Mapping[str, LogId | None]) -> LogId | None:
        return quorum_log_id(
            [
                (*config, *[each for each in matching if each not in config])[: len(config) + 1][::-1][: len(config)]
                for config in configs
            ],
            matching,
        )

    patch.set(replication, "quorum_log_id", quorum)


@mutant(
    "joint-commit-by-one-config",
    "safety",
    "engine",
    "In a joint membership the first configuration commits alone (openraft §6 item 4).",
)
def _(patch: Patch) -> None:
    patch.set(replication, "quorum_log_id", lambda configs, matching: quorum_log_id(configs[:1], matching))


@mutant(
    "joint-commit-by-new-config",
    "safety",
    "engine",
    "In a joint membership the last configuration commits alone.",
)
def _(patch: Patch) -> None:
    patch.set(replication, "quorum_log_id", lambda configs, matching: quorum_log_id(configs[-1:], matching))


@mutant(
    "old-acks-count",
    "safety",
    "engine",
    "Answers of an earlier leadership of the same node count.",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler._entry_of

    def entry_of(self: ReplicationHandler, session: int, target: str, response: Any) -> ProgressEntry | None:
        leader = self._parts.leader
        return original(self, 0 if leader is None else leader.session, target, response)

    patch.set(ReplicationHandler, "_entry_of", entry_of)


@mutant(
    "progress-carried-over",
    "safety",
    "engine",
    "A new leader believes what it knew of its peers when it led before.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler._establish
    known: dict[tuple[int, str], LogId] = {}

    def establish(self: EstablishHandler, candidate: Any, now: float) -> None:
        original(self, candidate, now)
        leader = self._parts.leader
        assert leader is not None
        for target, entry in leader.progress.items():
            matching = known.get((id(self._parts), target))
            if matching is not None and entry.matching is None and matching.index <= self._parts.state.log.last_index:
                entry.matching = matching

    ack = ReplicationHandler._on_success

    def on_success(
        self: ReplicationHandler, leader: Leader, target: str, entry: Any, matching: Any, now: float
    ) -> None:
        ack(self, leader, target, entry, matching, now)
        if matching is not None:
            known[(id(self._parts), target)] = matching

    patch.set(EstablishHandler, "_establish", establish)
    patch.set(ReplicationHandler, "_on_success", on_success)


@mutant(
    "ack-falls",
    "safety",
    "engine",
    "An answer that was overtaken sets the matching position back.",
    equivalent="a lower matching position is true as well: it costs requests, and the next answer raises it "
    "again; the property tests of the progress (test_engine_progress) see it",
)
def _(patch: Patch) -> None:
    original = ProgressEntry.ack

    def ack(self: ProgressEntry, matching: LogId | None) -> bool:
        news = original(self, matching)
        self.matching = matching
        return news

    patch.set(ProgressEntry, "ack", ack)


@mutant(
    "acks-of-any-epoch",
    "safety",
    "engine",
    "Answers to requests that were given up count.",
    equivalent="an acknowledgement of this leadership stays true when its request was given up: only a peer "
    "that loses data can make it a lie, and such a store is retired (LogReversion)",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler.on_append_response

    def on_append(self: Any, session: int, target: str, epoch: int, *rest: Any) -> None:
        leader = self._parts.leader
        entry = None if leader is None else leader.progress.get(target)
        original(self, session, target, epoch if entry is None else entry.epoch, *rest)

    patch.set(ReplicationHandler, "on_append_response", on_append)


@mutant(
    "success-means-sent",
    "safety",
    "engine",
    "A success counts for everything that was sent, not for what it names.",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler._on_success

    def on_success(
        self: ReplicationHandler, leader: Leader, target: str, entry: Any, matching: Any, now: float
    ) -> None:
        if entry.state is ProgressState.PIPELINE and entry.next_index > 0:
            matching = self._parts.state.log.get(entry.next_index - 1) or matching
        original(self, leader, target, entry, matching, now)

    patch.set(ReplicationHandler, "_on_success", on_success)


@mutant(
    "heartbeat-acks-everything",
    "safety",
    "engine",
    "A heartbeat's success counts as an acknowledgement of the whole log.",
)
def _(patch: Patch) -> None:
    from raftkit_core.types.messages import Success

    original = ReplicationHandler.on_heartbeat_response

    def on_heartbeat(
        self: ReplicationHandler, session: int, target: str, seq: int, sent_at: float, response: Any, now: float
    ) -> None:
        entry = self._entry_of(session, target, response)
        if entry is not None and isinstance(response, Success) and entry.state is ProgressState.PIPELINE:
            entry.ack(self._parts.state.log.last)
            leader = self._parts.leader
            assert leader is not None
            self.try_commit(leader, now)
        original(self, session, target, seq, sent_at, response, now)

    patch.set(ReplicationHandler, "on_heartbeat_response", on_heartbeat)


@mutant(
    "replicate-before-vote-flush",
    "safety",
    "engine",
    "A new leader sends before its own vote is on the disk.",
)
def _(patch: Patch) -> None:
    original = Leader.__init__

    def init(self: Leader, **arguments: Any) -> None:
        arguments["vote_io"] = 0
        original(self, **arguments)

    patch.set(Leader, "__init__", init)


@mutant(
    "snapshot-before-vote-flush",
    "safety",
    "engine",
    "A new leader sends its snapshot before its own vote is on the disk.",
    equivalent="a leader's first message to anybody is a probe, which waits for its vote; a snapshot answers an answer",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler._send_snapshot

    def send(self: ReplicationHandler, leader: Leader, *rest: Any) -> None:
        before = self._parts.output.take()
        original(self, leader, *rest)
        for command in [*before, *self._parts.output.take()]:
            early = isinstance(command, ReplicateSnapshot)
            self._parts.output.push(msgspec.structs.replace(command, when=0) if early else command)

    patch.set(ReplicationHandler, "_send_snapshot", send)


@mutant(
    "no-blank-entry",
    "liveness",
    "engine",
    "A new leader proposes no entry of its own, so nothing earlier is ever committed.",
)
def _(patch: Patch) -> None:
    original = LeaderHandler.append

    def append(self: LeaderHandler, kind: int, payloads: list[bytes], now: float) -> LogId:
        leader = self._parts.leader
        if leader is not None and kind == BLANK:
            return leader.noop_log_id
        return original(self, kind, payloads, now)

    patch.set(LeaderHandler, "append", append)


@mutant(
    "ids-from-the-committed-end",
    "safety",
    "engine",
    "A leader numbers its first entry after what is committed.",
)
def _(patch: Patch) -> None:
    original = LeaderHandler.append

    def append(self: LeaderHandler, kind: int, payloads: list[bytes], now: float) -> LogId:
        state = self._parts.state
        leader = self._parts.leader
        assert leader is not None
        last = state.log.last
        is_new = last is not None and last.leader_id != leader.vote.leader_id
        if is_new and state.committed is not None and state.log.last_index > state.committed.index:
            state.log.truncate(state.committed.index + 1)
            state.membership.truncate(state.committed.index + 1)
        return original(self, kind, payloads, now)

    patch.set(LeaderHandler, "append", append)


@mutant(
    "leader-truncates-itself",
    "safety",
    "engine",
    "A leader drops uncommitted entries of earlier leaders when it begins.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler._establish

    def establish(self: EstablishHandler, candidate: Any, now: float) -> None:
        state = self._parts.state
        if state.log.last_index > index_of(state.committed):
            self._leader._log.truncate(index_of(state.committed) + 1, now)
        original(self, candidate, now)

    patch.set(EstablishHandler, "_establish", establish)


@mutant(
    "one-probe-for-ever",
    "liveness",
    "engine",
    "After a conflict the same probe is sent again (openraft §6 item 25).",
)
def _(patch: Patch) -> None:
    def conflict(self: ProgressEntry, index: int, last_log_index: int) -> None:
        self.inflight.clear()
        self.probed = True

    patch.set(ProgressEntry, "conflict", conflict)


@mutant(
    "purged-log-never-probed",
    "liveness",
    "engine",
    "Behind a log that is purged to its end nothing is sent, not even a snapshot (D04, openraft #1828).",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler._send_probe

    def send_probe(self: ReplicationHandler, leader: Leader, target: str, entry: ProgressEntry, now: float) -> None:
        log = self._parts.state.log
        if entry.probe_index() < log.first_index and log.first_index > log.last_index:
            return
        original(self, leader, target, entry, now)

    patch.set(ReplicationHandler, "_send_probe", send_probe)


@mutant(
    "no-probe-after-failure",
    "liveness",
    "engine",
    "After a failed request the peer is left alone.",
)
def _(patch: Patch) -> None:
    def on_failure(self: ReplicationHandler, session: int, target: str, epoch: int, now: float) -> None:
        pass

    patch.set(ReplicationHandler, "on_failure", on_failure)


@mutant(
    "commit-not-told",
    "liveness",
    "engine",
    "Peers hear of a commit only with the next entries, and heartbeats do not say.",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler.heartbeat

    def heartbeat(self: ReplicationHandler, now: float) -> None:
        before = self._parts.output.take()
        original(self, now)
        for command in [*before, *self._parts.output.take()]:
            is_new = command not in before and hasattr(command, "leader_commit")
            self._parts.output.push(msgspec.structs.replace(command, leader_commit=None) if is_new else command)

    patch.set(ReplicationHandler, "heartbeat", heartbeat)
    patch.set(ReplicationHandler, "_replicate_committed", lambda self, leader: None)
