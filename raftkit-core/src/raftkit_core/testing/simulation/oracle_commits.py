"""The oracle on committing and applying: S5, S6, S12, S15."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec

from raftkit_core.state_machine.system import SYSTEM_MACHINE
from raftkit_core.testing.simulation.oracle_records import OracleRecords
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.types.entry import NORMAL, Entry, decode_envelope
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Membership
from raftkit_core.types.vote import LeaderId, Vote


class CommitRules(OracleRecords):
    """What is committed is told by leaders, and by whoever saves or applies it."""

    def _commit_told(self, leader: NodeId, vote: Vote, commit: LogId) -> None:
        """A leader tells others what is committed. S5, S6."""
        if self._commit_told_last == (leader, commit):
            return
        self._commit_told_last = (leader, commit)
        self._told_index = max(self._told_index, commit.index)
        known = self.committed.get(commit.index)
        if known is not None:
            if known.log_id != commit:
                self.breach("S6", leader, f"commits {commit}, elsewhere {known.log_id} is committed")
            return
        self._check_quorum(leader, vote.leader_id, commit)

    def _check_quorum(self, leader: NodeId, leader_id: LeaderId, commit: LogId) -> None:
        """S5: an entry of the leader's own term, durable on a quorum."""
        if commit.leader_id != leader_id:
            if not self._committed_by_its_own(commit, leader):
                self.breach("S5", leader, f"{leader_id} commits {commit} of another leader")
            # A quorum held it then; a store of that quorum may be lost by now, and its node come back empty.
        elif not self._is_held(leader, commit, self._holders(leader, commit)):
            holders = self._holders(leader, commit)
            members = self._effective(leader)
            self.breach("S5", leader, f"commits {commit}, durable only at {holders} of {members.configs}")
        for node in self._disks:
            entry = self._disks[node].entry_at(commit.index)
            if entry is not None and entry.log_id == commit:
                for index in range(self.committed_index + 1, commit.index + 1):
                    below = self._disks[node].entry_at(index)
                    if below is not None:
                        self._committed(leader, below)
                return

    def _holders(self, leader: NodeId, commit: LogId) -> list[NodeId]:
        """Who holds an entry of ``leader`` durably, or said so to it."""
        return [
            node
            for node, disk in self._disks.items()
            if disk.holds(commit)
            or (node != leader and self.acks.get(node, {}).get(commit.leader_id, -1) >= commit.index)
        ]

    def _is_held(self, leader: NodeId, commit: LogId, holders: list[NodeId]) -> bool:
        """Whether these are a quorum. A membership may have been appended since the commit."""
        governing = self._governing(self._disks[leader], commit.index)
        return self._effective(leader).is_quorum(holders) or (governing is not None and governing.is_quorum(holders))

    def _takes_for_committed(self, node: NodeId, upto: LogId) -> None:
        """``node`` takes ``upto`` for committed, and nobody was told of that yet: only who leads, or led before it was
        restarted, may be the first. S5."""
        if upto.index <= self._told_index:
            return
        led = [leader_id for leader_id, leader in self.leaders.items() if leader == node]
        if upto.leader_id.node_id == node and upto.leader_id not in self.leaders:
            led.append(upto.leader_id)  # a single voter speaks to nobody
        for leader_id in led:
            for own in self._ends_of(leader_id, upto):
                if self._is_held(node, own, self._holders(node, own)):
                    return
        self.breach("S5", node, f"takes {upto} for committed, which no leader told it, nor a quorum if it led itself")

    def _ends_of(self, leader_id: LeaderId, since: LogId) -> Iterator[LogId]:
        """``since`` if it is of the leader's own, and up to where else nodes hold what it wrote: one of these is where
        a quorum ends."""
        if since.leader_id == leader_id:
            yield since
        for disk in self._disks.values():
            for entry in reversed(disk.entries):
                if entry.log_id.index <= since.index or entry.log_id.leader_id < leader_id:
                    break
                if entry.log_id.leader_id == leader_id:
                    yield entry.log_id
                    break

    def _committed_by_its_own(self, commit: LogId, leader: NodeId) -> bool:
        """Whether a quorum said to the leader that proposed ``commit`` that it holds it: that leader committed it, and
        may have had no time to say so."""
        proposer = commit.leader_id
        sayers = [node for node in self._disks if self.said.get((node, proposer), -1) >= commit.index]
        members = self._governing(self._disks[leader], commit.index)
        return members is not None and members.is_quorum([*sayers, proposer.node_id])

    @staticmethod
    def _governing(disk: SimDisk, index: int) -> Membership | None:
        """The membership in force at ``index`` in the log on ``disk``."""
        for log_id, members in reversed(disk.memberships):
            if index_of(log_id) <= index:
                return members
        return None if disk.snapshot is None else disk.snapshot[0].membership.membership

    def _committed(self, node: NodeId, entry: Entry) -> None:
        """``node`` takes ``entry`` for committed. S6: for ever, and everywhere."""
        index = entry.log_id.index
        known = self.committed.get(index)
        if known is None:
            self.committed[index] = entry
            self.committed_under[index] = self._disks[node].held_vote.leader_id
            self.committed_index = max(self.committed_index, index)
            self.sessions.follow(self.committed)
        elif known is not entry and known != entry:
            self.breach("S6", node, f"commits {entry.log_id}, elsewhere {known.log_id} is committed")

    def applying(self, node: NodeId, before: int, log: Sequence[Entry], results: Mapping[int, Any]) -> None:
        """The machine of ``node``, which stood at index ``before``, applied ``log``. S6, S12, S15.

        What lies between is allowed to be what machines never see: blank and membership entries.
        """
        disk = self._disks[node]
        if any(entry.log_id.index not in self.committed for entry in log):
            self._takes_for_committed(node, log[-1].log_id)
        for index in range(before + 1, log[0].log_id.index):
            skipped = disk.entry_at(index) or self.committed.get(index)
            if skipped is not None:
                self._committed(node, skipped)
                if not _may_skip(skipped):
                    self.breach("S12", node, f"skips {skipped.log_id}")
        expected = max(before + 1, log[0].log_id.index)
        digest = self._digest_at(before)
        if digest is not None:
            self.digests.setdefault(expected - 1, digest)
        for entry in log:
            at = entry.log_id
            index = at.index
            if index != expected:
                self.breach("S12", node, f"applies {at} where {expected} was due")
            expected = index + 1
            if not disk.holds(at):
                self.breach("S15", node, f"applies {at}, which is not on its disk")
            self._committed(node, entry)
            if entry.kind == NORMAL:
                self.sessions.applied(node, entry, index in results)
            if digest is None:
                continue
            if index in results:
                result = results[index]
                shown = str(result) if isinstance(result, Exception) else repr(result)
                digest = crc32(shown.encode(), crc32(entry.payload, digest))
            first = self.digests.setdefault(index, digest)
            if first != digest:
                self.breach("S12", node, f"its results up to {at} differ from those of another node")
        self._trace.event("apply", node, log[-1].log_id, f"{log[-1].log_id} {digest}")

    def _digest_at(self, index: int) -> int | None:
        """What was applied up to ``index``; blank and membership entries change nothing. None: nobody saw it applied,
        as when a crash came between a transaction and its answer."""
        while index >= 0 and index not in self.digests:
            entry = self.committed.get(index)
            if entry is None or not _may_skip(entry):
                return None
            index -= 1
        return self.digests.get(index, 0)

    def applied(self, node: NodeId, at: LogId, state: str | None) -> None:
        """The machine of ``node`` stands at ``at`` in ``state`` (a digest). S12, S24."""
        if state is None:
            return
        first = self.states.setdefault(at.index, state)
        if first != state:
            self.breach("S12", node, f"its state at {at} differs from that of another node")

    def system_applied(self, node: NodeId, at: LogId, state: int) -> None:
        """The system machine of ``node`` (sessions, cluster time) stands at ``at`` in ``state``. S12."""
        if self.system_states.setdefault(at.index, state) != state:
            self.breach("S12", node, f"its sessions or its cluster time at {at} differ from those of another node")


def _may_skip(entry: Entry) -> bool:
    """Whether the user's machine may never see ``entry``: it is no command, one of the system machine, one of a
    session, which may have been carried out before, or unreadable."""
    if entry.kind != NORMAL:
        return True
    try:
        envelope = decode_envelope(entry.payload)
    except (msgspec.MsgspecError, ValueError):
        return True
    return envelope.machine == SYSTEM_MACHINE or envelope.session != 0
