"""What may be asked of a running node, and switched on it: ``raft.trigger()`` and ``raft.runtime_config()``."""

from __future__ import annotations

from collections.abc import Callable

from raftkit_core.engine.engine import Engine
from raftkit_core.runtime.messages import ExternalRequest, TransferLeaderTo
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.types.ids import NodeId

TRANSFER_TIMEOUT = 5.0


class Trigger:
    """Things to ask for now (openraft ``trigger()``)."""

    def __init__(self, core: RaftCore) -> None:
        self._core = core

    def elect(self) -> None:
        """Campaign. Nothing happens on a leader, a learner, or while votes are withheld."""
        self._do(lambda engine, now: engine.handle_elect(now))

    def heartbeat(self) -> None:
        self._do(lambda engine, now: engine.handle_trigger_heartbeat(now))

    def snapshot(self) -> None:
        self._do(lambda engine, now: engine.handle_trigger_snapshot())

    def purge_log(self, upto: int) -> None:
        """Purge up to index ``upto``, never beyond the snapshot, or what a durable machine has applied."""
        self._do(lambda engine, now: engine.handle_trigger_purge(upto, now))

    def transfer_leader(self, to: NodeId | None = None) -> None:
        self._core.ask(TRANSFER_TIMEOUT, lambda request_id: TransferLeaderTo(request_id, to))

    def _do(self, function: Callable[[Engine, float], None]) -> None:
        self._core.send(ExternalRequest(function))


class RuntimeConfig:
    """Switches that may change while the node runs (openraft ``runtime_config()``)."""

    def __init__(self, core: RaftCore) -> None:
        self._core = core

    def tick(self, on: bool) -> None:
        """Off: no elections and no heartbeats."""
        self._core.check_running()
        self._core.tick_enabled = on

    def heartbeat(self, on: bool) -> None:
        self._core.check_running()
        self._core.engine.config.enable_heartbeat = on

    def elect(self, on: bool) -> None:
        """Does not affect ``initialize`` and ``trigger().elect()``."""
        self._core.check_running()
        self._core.engine.config.enable_elect = on
