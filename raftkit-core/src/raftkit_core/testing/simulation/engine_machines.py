"""The state machines of a ring: a digest of what was applied, and snapshots of it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from raftkit_core.engine.commands import Commit, InstallSnapshot
from raftkit_core.testing.simulation.engine_node import RingNode
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.types.entry import MEMBERSHIP, decode_membership
from raftkit_core.types.log_id import index_of, max_log_id
from raftkit_core.types.snapshot import SnapshotMeta

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.engine_ring import EngineRing


class RingMachines:
    """Applies at once; builds and installs take a while."""

    def __init__(self, ring: EngineRing) -> None:
        self.ring = ring

    def apply(self, each: RingNode, command: Commit) -> None:
        assert each.engine is not None
        # A snapshot may have been restored since the order was given.
        since = max(command.since, index_of(each.applied) + 1)
        if since != index_of(each.applied) + 1:
            raise InvariantBroken(f"S12 at {each.id}: applies {since} after {each.applied}")
        for index in range(since, command.upto.index + 1):
            entry = each.log[index]
            self.ring.invariants.acknowledged(each, each.disk.vote, entry.log_id)  # applied only when durable here
            each.digest = crc32(entry.payload, crc32(str(entry.log_id).encode(), each.digest))
            self.ring.invariants.applied(each, index, each.digest)
            if entry.kind == MEMBERSHIP and not decode_membership(entry.payload).is_joint:
                self.ring.seen["uniform membership applied"] += 1
        each.applied = max_log_id(each.applied, command.upto)
        each.engine.on_applied(command.upto, self.ring.clock(each))
        if each.engine.is_leader and index_of(each.applied) >= index_of(each.engine.noop_log_id):
            self.ring.invariants.wrote(index_of(each.applied))

    def build(self, each: RingNode) -> None:
        """The view is taken now, the bytes are published later."""
        applied, life = each.applied, each.life
        meta: SnapshotMeta | None = None
        if applied is not None and each.engine is not None:
            members = each.engine.state.membership
            held = members.effective if index_of(members.effective.log_id) <= applied.index else members.committed
            if index_of(held.log_id) <= applied.index:
                meta = SnapshotMeta(applied, held, f"{self.ring.scheduled:x}", sha256=f"{each.digest:x}")

        def publish() -> None:
            if each.life != life or each.engine is None:
                return
            current = each.disk.snapshot
            if meta is not None and (current is None or index_of(current.last_log_id) < index_of(meta.last_log_id)):
                self.ring.seen["snapshot built"] += 1
                self.ring.invariants.publishing(each, meta)
                each.disk.snapshot = meta
            each.engine.on_snapshot_built(meta, self.ring.clock(each))
            self.ring.carry_out(each)

        self.ring.after(self._work_delay(each) * 3, publish)

    def install(self, each: RingNode, command: InstallSnapshot) -> None:
        life = each.life
        self.ring.after(self._work_delay(each), lambda: self._install(each, life, command))

    def _install(self, each: RingNode, life: int, command: InstallSnapshot) -> None:
        if each.life != life or each.engine is None:
            return
        meta = command.meta
        assert meta.last_log_id is not None
        if meta.last_log_id.index <= index_of(each.applied):
            raise InvariantBroken(f"S24 at {each.id}: installs {meta.last_log_id} over {each.applied}")
        self.ring.invariants.publishing(each, meta)
        current = each.disk.snapshot
        if current is None or index_of(current.last_log_id) < index_of(meta.last_log_id):
            each.disk.snapshot = meta
        held = each.log.get(meta.last_log_id.index)
        if each.log and (held is None or held.log_id != meta.last_log_id):
            is_conflict = held is not None or any(
                known is not None and known[0] != entry.log_id
                for index, entry in each.log.items()
                for known in (self.ring.invariants.committed.get(index),)
            )
            self.ring.seen["snapshot over a conflicting tail" if is_conflict else "snapshot over a shorter log"] += 1
        self.ring.seen["snapshot installed"] += 1
        self.ring.spring("ambush_install", each)
        each.applied, each.digest = meta.last_log_id, int(meta.sha256, 16)
        self.ring.invariants.applied(each, index_of(meta.last_log_id), each.digest)
        each.committed = max_log_id(each.committed, meta.last_log_id)

        def tell() -> None:
            if each.life == life and each.engine is not None:
                each.engine.on_snapshot_installed(meta, command.request_id, self.ring.clock(each))
                self.ring.carry_out(each)

        self.ring.after(self._work_delay(each), tell)

    def _work_delay(self, each: RingNode) -> float:
        return 0.001 + self.ring.stream(f"machine {each.id}").random() ** 3 * self.ring.faults.machine_delay
