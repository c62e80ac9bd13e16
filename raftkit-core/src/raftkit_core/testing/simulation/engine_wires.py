"""What lies between the nodes of a ring: delay, loss, repetition, cuts, and answers that come too late."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raftkit_core.engine.engine import Engine
from raftkit_core.testing.simulation.engine_node import Asked, RingNode
from raftkit_core.types.ids import NodeId, RequestId
from raftkit_core.types.messages import AppendEntriesRequest, Success

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.engine_ring import EngineRing

TIMEOUT = 0.4


class RingWires:
    """One request at a time, with one answer or one failure."""

    def __init__(self, ring: EngineRing) -> None:
        self.ring = ring

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        now = self.ring.now
        return (
            self.ring.mute.get(source, 0.0) > now
            or self.ring.deaf.get(target, 0.0) > now
            or any((source in group) != (target in group) for group, until in self.ring.parted if until > now)
        )

    def call(
        self,
        source: RingNode,
        target: NodeId,
        request: Any,
        handle: Callable[[Engine, RequestId, float], None],
        answered: Callable[[Engine, Any], None],
        failed: Callable[[Engine], None] | None = None,
        *,
        is_pre_vote: bool = False,
    ) -> None:
        """One request with one answer or one failure, delayed, perhaps lost, perhaps arriving twice."""
        life, done = source.life, [False]
        peer = self.ring.nodes[target]
        wire = self.ring.stream(f"wire {source.id} {target}")

        def conclude(then: Callable[[Engine], None] | None) -> None:
            if done[0] or source.life != life or source.engine is None:
                return
            if source.paused_until > self.ring.now:
                self.ring.after(source.paused_until - self.ring.now, lambda: conclude(then))
                return
            done[0] = True
            if then is not None:
                then(source.engine)
                self.ring.carry_out(source)

        def late(response: Any) -> None:
            if source.life == life and source.engine is not None and source.paused_until <= self.ring.now:
                answered(source.engine, response)
                self.ring.carry_out(source)

        def arrive() -> None:
            if peer.engine is None or self.is_cut(source.id, target):
                return
            if peer.paused_until > self.ring.now:
                self.ring.after(peer.paused_until - self.ring.now, arrive)
                return
            request_id = self.ring.next_request_id()
            peer.requests[request_id] = Asked(
                request, reply, self.ring.clock(peer), self.ring.now, peer.held, peer.engine.vote, is_pre_vote
            )
            handle(peer.engine, request_id, self.ring.clock(peer))
            self.ring.carry_out(peer)

        def reply(response: Any) -> None:
            if wire.random() < self.ring.faults.loss or self.is_cut(target, source.id):
                if isinstance(response, Success) and isinstance(request, AppendEntriesRequest) and request.entries:
                    self.ring.seen["answer lost after a durable write"] += 1
                return
            if wire.random() < self.ring.faults.late_answer and not isinstance(response, BaseException):
                self.ring.seen["answer after its caller gave up"] += 1
                self.ring.after(wire.uniform(0.4, 3.0), lambda: late(response))
            if isinstance(response, BaseException):
                self.ring.after(self._delay(wire), lambda: conclude(failed))
            else:
                self.ring.after(self._delay(wire), lambda: conclude(lambda engine: answered(engine, response)))

        is_lost, is_repeated = wire.random() < self.ring.faults.loss, wire.random() < self.ring.faults.repeat
        if not is_lost:
            self.ring.after(self._delay(wire), arrive)
        if is_repeated:
            self.ring.seen["message repeated"] += 1
            self.ring.after(5 * self._delay(wire), arrive)
        self.ring.after(TIMEOUT, lambda: conclude(failed))

    def _delay(self, wire: random.Random) -> float:
        return 0.001 + wire.random() ** 3 * self.ring.faults.delay
