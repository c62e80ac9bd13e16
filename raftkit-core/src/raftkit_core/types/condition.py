"""What must hold when a write is proposed (openraft main: write preconditions)."""

from __future__ import annotations

import msgspec

from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId


class WriteCondition(msgspec.Struct, frozen=True, kw_only=True):
    """Checked by the leader before the entry enters its log; None asks nothing.

    ``leader_id``: this very leadership, so that nothing was decided by another leader in between. ``last_log_id``: the
    log has not grown. ``membership_log_id``: the effective membership is the one the caller saw.
    """

    leader_id: LeaderId | None = None
    last_log_id: LogId | None = None
    membership_log_id: LogId | None = None
