"""The two memberships that matter: the committed one and the effective one (openraft.md §2.2).

A configuration is used as soon as its entry is appended, committed or not. At most one uncommitted membership entry may
exist, hence two slots are enough and a truncation can always go back.
"""

from __future__ import annotations

from raftkit_core.types.log_id import LogId, index_of, log_id_le, log_id_lt
from raftkit_core.types.membership import StoredMembership


class MembershipState:
    """``committed`` is never ahead of ``effective``."""

    __slots__ = ("committed", "effective")

    def __init__(self, committed: StoredMembership | None = None, effective: StoredMembership | None = None) -> None:
        self.committed = StoredMembership() if committed is None else committed
        self.effective = self.committed if effective is None else effective

    @property
    def is_settled(self) -> bool:
        """Whether the effective membership is committed."""
        return self.effective.log_id == self.committed.log_id

    def append(self, membership: StoredMembership) -> None:
        """A membership entry entered the log: the former effective one must have been committed by its leader."""
        assert log_id_lt(self.effective.log_id, membership.log_id), (
            f"membership {membership.log_id} does not follow {self.effective.log_id}"
        )
        self.committed = self.effective
        self.effective = membership

    def commit(self, committed: LogId | None) -> None:
        """The log is committed up to ``committed``."""
        if log_id_le(self.effective.log_id, committed):
            self.committed = self.effective

    def truncate(self, since: int) -> bool:
        """The log was cut at ``since``; says whether the effective membership went back to the committed one."""
        if self.effective.log_id is None or self.effective.log_id.index < since:
            return False
        assert index_of(self.committed.log_id) < since, f"truncation at {since} below committed {self.committed.log_id}"
        self.effective = self.committed
        return True

    def replace(self, membership: StoredMembership) -> None:
        """A snapshot replaced the whole log: its membership is all there is."""
        self.committed = self.effective = membership

    def install(self, snapshot_last: LogId, membership: StoredMembership) -> None:
        """A snapshot replaced the log up to ``snapshot_last``; what follows stays.

        Compare by index: the local entry may come from a conflicting leader. If the snapshot covers the effective
        entry, both become the snapshot's, or this node keeps a membership that exists nowhere (openraft #1808).
        """
        if snapshot_last.index >= index_of(self.effective.log_id):
            self.replace(membership)
        elif log_id_lt(self.committed.log_id, membership.log_id):
            self.committed = membership
