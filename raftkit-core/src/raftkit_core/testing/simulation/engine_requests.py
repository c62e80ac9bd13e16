"""What the nodes of a ring ask each other: the orders to send, as calls on its wires."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from raftkit_core.engine.commands import (
    Replicate,
    ReplicateSnapshot,
    SendHeartbeat,
    SendPreVote,
    SendTransferLeader,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import store_of
from raftkit_core.testing.simulation.engine_node import RingNode
from raftkit_core.types.ids import NodeId, RequestId
from raftkit_core.types.log_id import index_of
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    HeartbeatRequest,
    InstallSnapshotRequest,
    VoteResponse,
)

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.engine_ring import EngineRing

MAX_ENTRIES = 6
"""How many entries one request carries: an order of more becomes several."""


class RingRequests:
    """From an order to its calls, and from their answers back into the engine."""

    def __init__(self, ring: EngineRing) -> None:
        self.ring = ring

    def send_vote(self, each: RingNode, command: SendVote | SendPreVote) -> None:
        is_pre_vote = isinstance(command, SendPreVote)
        store_id = store_of(each.id)
        for target in command.targets:

            def handle(peer: Engine, request_id: RequestId, now: float) -> None:
                ask = peer.handle_pre_vote if is_pre_vote else peer.handle_vote
                ask(command.request, store_id, request_id, now)

            def answered(me: Engine, response: VoteResponse, target: NodeId = target) -> None:
                tell = me.on_pre_vote_response if is_pre_vote else me.on_vote_response
                tell(command.request.vote, target, response, self.ring.clock(each))

            self.ring.wires.call(each, target, command.request, handle, answered, is_pre_vote=is_pre_vote)

    def heartbeat(self, each: RingNode, command: SendHeartbeat) -> None:
        lease_ms = self.ring.config.leader_lease_ms
        for target, matching in command.peers:
            request = HeartbeatRequest(command.vote, matching, command.leader_commit, lease_ms)

            def handle(peer: Engine, request_id: RequestId, now: float, request: HeartbeatRequest = request) -> None:
                peer.handle_heartbeat(request, request_id, now)

            def answered(me: Engine, response: Any, target: NodeId = target) -> None:
                me.on_heartbeat_response(
                    command.session, target, command.seq, command.sent_at, response, self.ring.clock(each)
                )

            self.ring.wires.call(each, target, request, handle, answered)

    def replicate(self, each: RingNode, command: Replicate) -> None:
        """An order in requests of a few entries each, all at once: they may overtake each other."""
        prev, start = command.prev_log_id, index_of(command.prev_log_id) + 1

        def failed(me: Engine) -> None:
            me.on_replication_failed(command.session, command.target, command.epoch, self.ring.clock(each))

        while True:
            stop = min(command.last_index + 1, start + MAX_ENTRIES)
            entries = [each.log[index] for index in range(start, stop) if index in each.log]
            if len(entries) < stop - start:
                self.ring.seen["entries purged before they were sent"] += 1
                self.ring.after(0.02, partial(self._fail_later, each, each.life, failed))
                return
            request = AppendEntriesRequest(
                command.vote, prev, entries, command.leader_commit, self.ring.config.leader_lease_ms
            )

            def handle(
                peer: Engine, request_id: RequestId, now: float, request: AppendEntriesRequest = request
            ) -> None:
                peer.handle_append_entries(request, request_id, now)

            def answered(me: Engine, response: Any) -> None:
                me.on_replication_progress(
                    command.session,
                    command.target,
                    command.epoch,
                    command.seq,
                    command.sent_at,
                    response,
                    self.ring.clock(each),
                )
                if isinstance(response, Busy):
                    self.ring.after(0.05, partial(self._fail_later, each, each.life, failed))

            self.ring.wires.call(each, command.target, request, handle, answered, failed)
            if command.single or stop > command.last_index:
                return
            prev, start = entries[-1].log_id, stop

    def _fail_later(self, each: RingNode, life: int, failed: Callable[[Engine], None]) -> None:
        if each.life == life and each.engine is not None:
            failed(each.engine)
            self.ring.carry_out(each)

    def replicate_snapshot(self, each: RingNode, command: ReplicateSnapshot) -> None:
        meta = each.disk.snapshot
        assert meta is not None
        request = InstallSnapshotRequest(command.vote, meta)
        self.ring.wires.call(
            each,
            command.target,
            request,
            lambda peer, request_id, now: peer.handle_install_snapshot(request, request_id, now),
            lambda me, response: me.on_snapshot_sent(
                command.session,
                command.target,
                command.epoch,
                command.seq,
                command.sent_at,
                meta.last_log_id,
                response,
                self.ring.clock(each),
            ),
            lambda me: me.on_replication_failed(command.session, command.target, command.epoch, self.ring.clock(each)),
        )

    def hand_over(self, each: RingNode, command: SendTransferLeader) -> None:
        self.ring.wires.call(
            each,
            command.target,
            command.request,
            lambda peer, rid, now: peer.handle_transfer_request(command.request, rid, now),
            lambda me, answer: me.on_transfer_response(command.session, command.target, answer, self.ring.clock(each)),
            lambda me: me.on_transfer_response(command.session, command.target, None, self.ring.clock(each)),
        )
