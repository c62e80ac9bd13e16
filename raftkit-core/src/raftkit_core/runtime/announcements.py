"""What observers are told of a node: its role, its vote, who leads, its membership, each when it has changed."""

from __future__ import annotations

import logging

from raftkit_core.engine.engine import Engine
from raftkit_core.instrument import Instruments
from raftkit_core.types.log_id import LogId
from raftkit_core.types.metrics import ServerState

log = logging.getLogger("raftkit.runtime")


class Announcements:
    """Knows what was said last."""

    def __init__(self, engine: Engine, instruments: Instruments) -> None:
        self.revision = -1
        """Of the state that was looked at last: nothing has changed while the state has this one."""
        self._engine = engine
        self._instruments = instruments
        self._role: tuple[ServerState, str | None, int] | None = None
        self._membership: LogId | None = None

    def tell(self) -> None:
        """Tell observers what changed: the role, the vote (the leader follows from both) or the membership."""
        engine = self._engine
        state = engine.state
        self.revision = state.revision
        role = (state.server_state, engine.known_leader, state.vote.term)
        if role != self._role:
            before, self._role = self._role, role
            if before is None or before[0] is not role[0]:
                log.info("node %s is %s in term %d", engine.config.id, role[0].value, role[2])
                self._instruments.on_server_state(role[0])
            if before is None or before[1:] != role[1:]:
                self._instruments.on_leader_change(role[1], role[2])
        membership = state.membership.effective
        if membership.log_id != self._membership:
            self._membership = membership.log_id
            self._instruments.on_membership(membership)
