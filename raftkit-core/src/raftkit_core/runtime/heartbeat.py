"""Heartbeats: a lane of their own, so that no append and no snapshot ever delays them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftkit_core.engine.commands import SendHeartbeat
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.runtime.messages import HeartbeatAnswered, Notification
from raftkit_core.runtime.peer_calls import PeerCalls
from raftkit_core.runtime.peers import PeerTable
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.types.ids import NodeId
from raftkit_core.types.messages import HeartbeatRequest

MAX_INFLIGHT = 32
"""Heartbeats in flight to one peer; further ones are dropped: the next tick or read round repeats them."""


class HeartbeatSender:
    """Sends the engine's heartbeats, commit notices and read rounds; failures only mean that nothing was heard."""

    def __init__(
        self,
        *,
        peers: PeerTable,
        stalls: StallDetector,
        notify: Callable[[Notification], None],
        lease_ms: int,
        timeout: float,
    ) -> None:
        self._stalls = stalls
        self._peers = peers
        self._notify = notify
        self._lease_ms = lease_ms
        self._timeout = timeout
        self._calls: dict[NodeId, PeerCalls] = {}

    def send(self, command: SendHeartbeat, client_of: Callable[[NodeId], RaftNetwork | None]) -> None:
        """To every peer of ``command``."""
        for target, _ in command.peers:
            self.send_to(target, command, client_of)

    def send_to(
        self, target: NodeId, command: SendHeartbeat, client_of: Callable[[NodeId], RaftNetwork | None]
    ) -> None:
        """To one peer of ``command``."""
        client = client_of(target)
        calls = self._calls.get(target)
        if calls is None:
            calls = self._calls[target] = PeerCalls(self._stalls)
        if client is None or len(calls) >= MAX_INFLIGHT:
            return
        matching = dict(command.peers)[target]
        reverted = dict(command.reverted).get(target)
        request = HeartbeatRequest(command.vote, matching, command.leader_commit, self._lease_ms, reverted)
        calls.start(client, "heartbeat", request, self._timeout, self._answered, (command, target))

    def _answered(self, sent: tuple[SendHeartbeat, NodeId], error: BaseException | None, answer: Any) -> None:
        command, target = sent
        if error is not None:
            self._peers.failed(target, error)
            return
        self._peers.succeeded(target)
        self._notify(HeartbeatAnswered(command, target, answer))

    def sweep(self, now: float) -> None:
        """Give up calls the transport should have ended long ago."""
        for calls in self._calls.values():
            calls.sweep(now)

    def close(self) -> None:
        """Nobody waits for answers any more."""
        calls, self._calls = self._calls, {}
        for pending in calls.values():
            pending.cancel()
