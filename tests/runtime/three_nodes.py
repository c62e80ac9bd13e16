"""A cluster of three: its nodes by name, and how far one is."""

from __future__ import annotations

from raftkit_core.raft import Raft

ALL = ("n1", "n2", "n3")


def others(leader: Raft) -> list[str]:
    return [node_id for node_id in ALL if node_id != leader.id]


def last_index(raft: Raft) -> int:
    return raft.metrics().value.last_log_index or 0
