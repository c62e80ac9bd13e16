"""Mutants around the engine: disks that lie, wires that deliver wrongly, machines that do not do as the log says."""

from __future__ import annotations

from typing import Any
from zlib import crc32

from raftkit_core.engine.commands import AppendInputEntries, DeleteConflictLog, PurgeLog, SaveVote
from raftkit_core.testing.simulation import engine_node
from raftkit_core.testing.simulation.engine_disks import RingDisks
from raftkit_core.testing.simulation.engine_machines import RingMachines
from raftkit_core.testing.simulation.engine_node import RingNode
from raftkit_core.testing.simulation.engine_requests import RingRequests
from raftkit_core.testing.simulation.engine_ring import EngineRing
from raftkit_core.testing.simulation.engine_wires import RingWires
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.log_id import index_of
from raftkit_core.types.messages import Success
from raftkit_core.types.vote import ZERO_VOTE

# --- disks ----------------------------------------------------------------------------------------------------------


@mutant(
    "disk-flushes-early",
    "safety",
    "engine",
    "A disk reports writes as durable before they are.",
)
def _(patch: Patch) -> None:
    original = EngineRing.carry_out

    def carry_out(self: EngineRing, each: RingNode) -> None:
        original(self, each)
        engine = each.engine
        if engine is not None and each.lane and engine.flushed_io < engine.state.io.last_io:
            engine.on_log_flushed(engine.state.io.last_io, self.clock(each))
            released = [command for _, command in each.parked]
            each.parked = []
            for command in released:
                self.orders.run(each, engine, command)
            original(self, each)

    patch.set(EngineRing, "carry_out", carry_out)


def _on_write(patch: Patch, change: Any) -> None:
    original = RingDisks.write

    def write(self: RingDisks, each: RingNode, command: Any) -> None:
        replacement = change(self.ring, each, command)
        if replacement is not None:
            original(self, each, replacement)

    patch.set(RingDisks, "write", write)


@mutant(
    "disk-loses-the-vote",
    "safety",
    "engine",
    "A disk reports a vote as written and has dropped it.",
)
def _(patch: Patch) -> None:
    def change(ring: EngineRing, each: RingNode, command: Any) -> Any:
        dropped = isinstance(command, SaveVote) and ring.stream(f"lie {each.id}").random() < 0.2
        return None if dropped else command

    _on_write(patch, change)


@mutant(
    "disk-forgets-the-vote",
    "safety",
    "engine",
    "A crash takes the vote, although it was flushed.",
)
def _(patch: Patch) -> None:
    original = RingNode.forget

    def forget(self: RingNode) -> None:
        original(self)
        if self.life > 1:
            self.disk.vote = ZERO_VOTE

    patch.set(RingNode, "forget", forget)


@mutant(
    "disk-loses-the-tail",
    "safety",
    "engine",
    "A crash takes the last entries, although they were flushed.",
)
def _(patch: Patch) -> None:
    original = RingNode.forget

    def forget(self: RingNode) -> None:
        original(self)
        for index in sorted(self.disk.entries)[-2:]:
            del self.disk.entries[index]

    patch.set(RingNode, "forget", forget)


@mutant(
    "disk-loses-the-first-write",
    "safety",
    "engine",
    "A disk drops the entries of one write in twenty and reports them as written.",
)
def _(patch: Patch) -> None:
    def change(ring: EngineRing, each: RingNode, command: Any) -> Any:
        dropped = isinstance(command, AppendInputEntries) and ring.stream(f"lie {each.id}").random() < 0.05
        return None if dropped else command

    _on_write(patch, change)


@mutant(
    "disk-keeps-the-truncated",
    "safety",
    "engine",
    "A truncation is forgotten: the old tail is back after a crash.",
)
def _(patch: Patch) -> None:
    _on_write(patch, lambda ring, each, command: None if isinstance(command, DeleteConflictLog) else command)


@mutant(
    "disk-forgets-the-purge",
    "safety",
    "engine",
    "A purge removes the entries and forgets how far it went.",
)
def _(patch: Patch) -> None:
    original = RingNode.forget

    def forget(self: RingNode) -> None:
        original(self)
        self.disk.purged = None

    patch.set(RingNode, "forget", forget)


@mutant(
    "disk-purges-too-much",
    "safety",
    "engine",
    "A purge takes one entry too many.",
)
def _(patch: Patch) -> None:
    original = RingDisks.write

    def write(self: RingDisks, each: RingNode, command: Any) -> None:
        original(self, each, command)
        if isinstance(command, PurgeLog):
            each.disk.entries.pop(command.upto.index + 1, None)

    patch.set(RingDisks, "write", write)


@mutant(
    "disk-writes-out-of-order",
    "safety",
    "engine",
    "A crash keeps a later write and loses an earlier one.",
)
def _(patch: Patch) -> None:
    original = EngineRing.crash

    def crash(self: EngineRing, each: RingNode, for_s: float, pick: int) -> None:
        if len(each.lane) > 1:
            each.lane.popleft()
            pick = _all_of(len(each.lane))
        original(self, each, for_s, pick)

    patch.set(EngineRing, "crash", crash)


def _all_of(count: int) -> int:
    """A pick with which a crash keeps the whole lane of ``count`` writes."""
    import random

    return next(pick for pick in range(10_000) if random.Random(pick).randrange(count + 1) == count)


@mutant(
    "disk-changes-an-entry",
    "safety",
    "engine",
    "One entry in two hundred comes back from the disk with other bytes.",
)
def _(patch: Patch) -> None:
    import msgspec

    original = engine_node.load_state

    def load(each: RingNode) -> Any:
        for index, entry in each.disk.entries.items():
            if crc32(f"{each.id} {index}".encode()) % 200 == 0 and entry.kind == 1:
                each.disk.entries[index] = msgspec.structs.replace(entry, payload=entry.payload + b"!")
        return original(each)

    from raftkit_core.testing.simulation import engine_ring

    patch.set(engine_ring, "load_state", load)


@mutant(
    "disk-saves-committed-too-far",
    "safety",
    "engine",
    "The committed position is saved as the end of the log.",
)
def _(patch: Patch) -> None:
    original = RingDisks.write

    def write(self: RingDisks, each: RingNode, command: Any) -> None:
        original(self, each, command)
        each.disk.committed = each.disk.last_log_id

    patch.set(RingDisks, "write", write)


# --- wires ----------------------------------------------------------------------------------------------------------


@mutant(
    "wire-answers-for-others",
    "safety",
    "engine",
    "One answer in ten is credited to another peer.",
)
def _(patch: Patch) -> None:
    import msgspec

    from raftkit_core.testing.builders import store_of

    original = RingWires.call

    def call(
        self: RingWires,
        source: RingNode,
        target: str,
        request: Any,
        handle: Any,
        answered: Any,
        *rest: Any,
        **options: Any,
    ) -> None:
        claimed = store_of(target)

        def credited(engine: Any, response: Any) -> None:
            answered(engine, msgspec.structs.replace(response, store_id=claimed))

        wire = self.ring.stream(f"lie {source.id}")
        others = [each for each in self.ring.nodes if each != source.id]
        if wire.random() < 0.1 and hasattr(request, "prev_log_id"):
            original(self, source, wire.choice(others), request, handle, credited, *rest, **options)
        else:
            original(self, source, target, request, handle, answered, *rest, **options)

    patch.set(RingWires, "call", call)


@mutant(
    "wire-invents-grants",
    "safety",
    "engine",
    "A lost vote request counts as a grant.",
)
def _(patch: Patch) -> None:
    from raftkit_core.testing.builders import store_of
    from raftkit_core.types.messages import VoteResponse

    original = RingRequests.send_vote

    def send_vote(self: RingRequests, each: RingNode, command: Any) -> None:
        original(self, each, command)
        life = each.life
        for target in command.targets:

            def granted(target: str = target) -> None:
                if each.life == life and each.engine is not None:
                    answer = VoteResponse(store_of(target), command.request.vote, True, None)
                    each.engine.on_vote_response(command.request.vote, target, answer, self.ring.clock(each))
                    self.ring.carry_out(each)

            if self.ring.stream(f"lie {each.id}").random() < 0.3:
                self.ring.after(0.3, granted)

    patch.set(RingRequests, "send_vote", send_vote)


@mutant(
    "wire-cuts-batches-short",
    "safety",
    "engine",
    "A wire delivers part of the entries and reports all of them as taken.",
)
def _(patch: Patch) -> None:
    import msgspec

    from raftkit_core.engine.engine import Engine

    original = Engine.handle_append_entries

    def handle(self: Engine, request: Any, request_id: int, now: float) -> None:
        if len(request.entries) > 3:
            request = msgspec.structs.replace(request, entries=request.entries[:-1])
        original(self, request, request_id, now)

    def answered(
        self: Engine, session: int, target: str, epoch: int, seq: int, sent_at: float, response: Any, now: float
    ) -> None:
        entry = None if self.progress is None else self.progress.get(target)
        if entry is not None and isinstance(response, Success) and entry.inflight:
            last = self.log_id_at(entry.inflight[0].last_index)
            if last is not None and index_of(last) > index_of(response.matching):
                response = Success(response.store_id, last)
        progress(self, session, target, epoch, seq, sent_at, response, now)

    progress = Engine.on_replication_progress
    patch.set(Engine, "handle_append_entries", handle)
    patch.set(Engine, "on_replication_progress", answered)


@mutant(
    "wire-drops-the-last-entry",
    "safety",
    "engine",
    "Entries of a batch arrive in another order.",
)
def _(patch: Patch) -> None:
    import msgspec

    from raftkit_core.engine.engine import Engine

    original = Engine.handle_append_entries

    def handle(self: Engine, request: Any, request_id: int, now: float) -> None:
        if len(request.entries) > 2:
            request = msgspec.structs.replace(
                request, entries=[request.entries[1], request.entries[0], *request.entries[2:]]
            )
        original(self, request, request_id, now)

    patch.set(Engine, "handle_append_entries", handle)


# --- machines -------------------------------------------------------------------------------------------------------


@mutant(
    "machine-differs-by-node",
    "safety",
    "engine",
    "A machine's state depends on the node it runs on.",
)
def _(patch: Patch) -> None:
    original = RingMachines.apply

    def apply(self: RingMachines, each: RingNode, command: Any) -> None:
        if command.upto.index % 7 == 0:
            each.digest = crc32(each.id.encode(), each.digest)
        original(self, each, command)

    patch.set(RingMachines, "apply", apply)


@mutant(
    "machine-skips",
    "safety",
    "engine",
    "A machine leaves out an entry now and then.",
)
def _(patch: Patch) -> None:
    original = RingMachines.apply

    def apply(self: RingMachines, each: RingNode, command: Any) -> None:
        if self.ring.stream(f"lie {each.id}").random() < 0.01:
            each.applied = command.upto
            assert each.engine is not None
            each.engine.on_applied(command.upto, self.ring.clock(each))
            return
        original(self, each, command)

    patch.set(RingMachines, "apply", apply)


@mutant(
    "machine-applies-twice",
    "safety",
    "engine",
    "A machine applies the entries after its snapshot once more.",
)
def _(patch: Patch) -> None:
    original = RingMachines.apply

    def apply(self: RingMachines, each: RingNode, command: Any) -> None:
        if each.applied is not None and self.ring.stream(f"lie {each.id}").random() < 0.01:
            each.digest = crc32(b"again", each.digest)
        original(self, each, command)

    patch.set(RingMachines, "apply", apply)


@mutant(
    "snapshot-of-a-later-state",
    "safety",
    "engine",
    "A snapshot holds a state that is newer than it says.",
)
def _(patch: Patch) -> None:
    original = RingMachines.build

    def build(self: RingMachines, each: RingNode) -> None:
        digest, each.digest = each.digest, crc32(b"later", each.digest)
        original(self, each)
        each.digest = digest

    patch.set(RingMachines, "build", build)
