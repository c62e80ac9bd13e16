"""Observers of a running node. They are told, never asked, and nothing they do can reach the core."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from raftkit_core.types.ids import NodeId
    from raftkit_core.types.membership import StoredMembership
    from raftkit_core.types.metrics import ServerState
    from raftkit_core.types.snapshot import SnapshotMeta

log = logging.getLogger("raftkit.instrument")


class Instrument:
    """Override what you want to see. Called in the node's event loop: return at once, hand slow work to somebody else.

    An exception is logged the first time, counted from then on, and otherwise ignored.
    """

    def on_server_state(self, state: ServerState) -> None:
        """The node's role changed to ``state``."""

    def on_leader_change(self, leader: NodeId | None, term: int) -> None:
        """``leader`` leads in ``term``, as far as this node knows; None: nobody is known to."""

    def on_membership(self, membership: StoredMembership) -> None:
        """The effective membership changed; it may not be committed yet."""

    def on_snapshot(self, meta: SnapshotMeta) -> None:
        """A snapshot was published: built here, or received."""

    def on_storage_stall(self, seconds: float) -> None:
        """A log write has been under way for ``seconds``. Told once per write that is late."""

    def on_plugin_stall(self, name: str, seconds: float) -> None:
        """Plugin code, ``name`` as in ``KvStateMachine.apply``, blocked the event loop for ``seconds``, or is awaited
        for ``seconds`` and has not finished."""

    def on_fatal(self, error: BaseException) -> None:
        """The node has stopped for good because of ``error``."""

    def trace(self, step: str) -> None:
        """The node passed ``step`` of a write: ``RaftCore.write``, ``CommandRunner.append_input_entries``,
        ``CommandRunner.commit`` or ``RaftCore.applied``. Overriding it costs speed."""


class StepTimer(Protocol):
    """Who is told how long a step of plugin code took."""

    @property
    def now(self) -> Callable[[], float]: ...

    def ran(self, plugin: object, method: str, started: float) -> None: ...


_METHODS = (
    "on_server_state",
    "on_leader_change",
    "on_membership",
    "on_snapshot",
    "on_storage_stall",
    "on_plugin_stall",
    "on_fatal",
    "trace",
)


class Instruments(Instrument):
    """Tells several instruments, each safely. ``is_tracing`` says whether anybody listens to ``trace``.

    ``errors`` counts what they raised, by instrument, method and type of exception; one of each is logged.
    """

    def __init__(self, instruments: Iterable[Instrument] = ()) -> None:
        self.errors: Counter[tuple[str, str, str]] = Counter()
        self._listeners: dict[str, tuple[Callable[..., Any], ...]] = dict.fromkeys(_METHODS, ())
        self.is_tracing = False
        self.timer: StepTimer | None = None
        """Named are the observers that block, once a node has put its own in here."""
        for instrument in instruments:
            self.add(instrument)

    def add(self, instrument: Instrument) -> None:
        """Tell ``instrument`` too, from now on. Only methods it overrides are ever called."""
        for name in _METHODS:
            method = getattr(instrument, name, None)
            if callable(method) and getattr(method, "__func__", method) is not getattr(Instrument, name):
                self._listeners[name] = (*self._listeners[name], method)
        self.is_tracing = bool(self._listeners["trace"])

    def on_server_state(self, state: ServerState) -> None:
        self._tell("on_server_state", state)

    def on_leader_change(self, leader: NodeId | None, term: int) -> None:
        self._tell("on_leader_change", leader, term)

    def on_membership(self, membership: StoredMembership) -> None:
        self._tell("on_membership", membership)

    def on_snapshot(self, meta: SnapshotMeta) -> None:
        self._tell("on_snapshot", meta)

    def on_storage_stall(self, seconds: float) -> None:
        self._tell("on_storage_stall", seconds)

    def on_plugin_stall(self, name: str, seconds: float) -> None:
        self._tell("on_plugin_stall", name, seconds)

    def on_fatal(self, error: BaseException) -> None:
        self._tell("on_fatal", error)

    def trace(self, step: str) -> None:
        if self.is_tracing:
            self._tell("trace", step)

    def _tell(self, name: str, *arguments: object) -> None:
        for method in self._listeners[name]:
            started = 0.0 if self.timer is None else self.timer.now()
            try:
                method(*arguments)
            except Exception as error:  # whatever it is, it is not the core's
                self._count(method, name, error)
            if self.timer is not None and name != "on_plugin_stall":
                self.timer.ran(getattr(method, "__self__", method), name, started)

    def _count(self, method: Callable[..., Any], name: str, error: Exception) -> None:
        owner = type(getattr(method, "__self__", method)).__qualname__
        kind = (owner, name, type(error).__qualname__)
        self.errors[kind] += 1
        if self.errors[kind] == 1:
            log.warning("instrument %s.%s failed; counted from now on", owner, name, exc_info=error)
