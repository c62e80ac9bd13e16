"""What an engine of a ring orders, each order by the part that carries it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from raftkit_core.engine.commands import (
    AppendInputEntries,
    BecomeLeader,
    BuildSnapshot,
    Command,
    Commit,
    ConfirmRead,
    DeleteConflictLog,
    InstallSnapshot,
    PurgeLog,
    QuitLeader,
    RebuildReplicationStreams,
    Replicate,
    ReplicateCommitted,
    ReplicateSnapshot,
    Respond,
    RetireStore,
    SaveLease,
    SaveVote,
    SendHeartbeat,
    SendPreVote,
    SendTransferLeader,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.simulation.engine_node import RingNode
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.types.entry import MEMBERSHIP
from raftkit_core.types.log_id import index_of

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.engine_ring import EngineRing


class RingOrders:
    """Runs one order that may run now. What waits for the lane never comes here before its time."""

    def __init__(self, ring: EngineRing) -> None:
        self.ring = ring

    def look_at_committed(self, each: RingNode, engine: Engine) -> None:
        """The engine may have committed more; what is not durable here is not applied yet."""
        committed = engine.state.committed
        if committed is not None and committed.index > index_of(each.committed):
            self.ring.invariants.committing(each, each.committed, committed)
            each.committed = committed

    def run(self, each: RingNode, engine: Engine, command: Command) -> None:
        match command:
            case AppendInputEntries(entries=entries):
                self.ring.invariants.appending(each, entries)
                each.log.update({entry.index: entry for entry in entries})
                each.lane.append(command)
                for entry in entries:
                    if entry.kind == MEMBERSHIP:
                        self.ring.seen["joint entered" if engine.effective.is_joint else "uniform membership"] += 1
            case DeleteConflictLog(since=since):
                self.ring.invariants.cutting(each)
                self.ring.seen["truncation"] += 1
                if any(entry.kind == MEMBERSHIP for index, entry in each.log.items() if index >= since):
                    self.ring.seen["membership reverted"] += 1
                each.log = {index: entry for index, entry in each.log.items() if index < since}
                each.lane.append(command)
            case PurgeLog(upto=upto):
                self.ring.seen["purge"] += 1
                if not any(index > upto.index for index in each.log):
                    self.ring.seen["purge of everything"] += 1
                each.log = {index: entry for index, entry in each.log.items() if index > upto.index}
                each.lane.append(command)
            case SaveVote() | SaveLease():
                each.lane.append(command)
            case SendVote():
                self.ring.invariants.campaigning(each, command.request, self.ring.clock(each))
                self.ring.seen["campaign"] += 1
                self.ring.requests.send_vote(each, command)
            case SendPreVote():
                self.ring.requests.send_vote(each, command)
            case Replicate():
                self.ring.invariants.leading(each, command.vote)
                self.ring.requests.replicate(each, command)
            case ReplicateSnapshot():
                self.ring.invariants.leading(each, command.vote)
                self.ring.requests.replicate_snapshot(each, command)
            case SendHeartbeat() | ConfirmRead():
                if command.session == engine.session:
                    self.ring.invariants.leading(each, command.vote)
                    self.ring.requests.heartbeat(each, command)
            case SendTransferLeader():
                self.ring.seen["hand-over asked for"] += 1
                self.ring.invariants.handing_over(each)
                self.ring.requests.hand_over(each, command)
            case BecomeLeader():
                self.ring.seen["election won"] += 1
                self._lead(each, command)
            case Commit():
                self.look_at_committed(each, engine)
                each.to_save = command.upto
                self.ring.machines.apply(each, command)
            case BuildSnapshot():
                self.ring.machines.build(each)
            case RetireStore(reason=reason):
                raise InvariantBroken(f"S17 at {each.id}: told that it lost writes, but no disk here does: {reason}")
            case InstallSnapshot():
                self.ring.machines.install(each, command)
            case Respond():
                self.ring.answers.respond(each, engine, command)
            case QuitLeader(reason=reason):
                self.ring.seen["leader removed" if "removed" in reason else "leader stepped down"] += 1
            case RebuildReplicationStreams():
                pass
            case ReplicateCommitted():
                raise AssertionError("the engine was asked for it at once")
            case _:
                assert_never(command)

    def _lead(self, each: RingNode, command: BecomeLeader) -> None:
        others = (other.engine for other in self.ring.nodes.values() if other is not each)
        if any(other is not None and other.is_leader for other in others):
            self.ring.seen["two leaders at a time"] += 1
        self.ring.invariants.established(each, command.vote)
        self.ring.spring("ambush_winner", each)
