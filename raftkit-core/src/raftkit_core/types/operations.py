"""Operations any node accepts and the leader carries out: their names, arguments and results (``Raft.call``)."""

from __future__ import annotations

import msgspec

from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import ChangeMembers, Membership, Node


class Write(msgspec.Struct, frozen=True, array_like=True, tag="write"):
    """Propose an encoded command. Result: :class:`WriteDone`."""

    body: bytes
    session: int = 0
    serial: int = 0
    acknowledged_floor: int = 0


class WriteDone(msgspec.Struct, frozen=True, array_like=True):
    """``body`` is the result, encoded by the machine's codec. A refusal travels as its error instead."""

    log_id: LogId
    body: bytes


class AddLearner(msgspec.Struct, frozen=True, array_like=True, tag="add_learner"):
    """Result: :class:`MembershipDone`."""

    node_id: NodeId
    node: Node
    blocking: bool = True
    bind: bool = True


class ChangeMembership(msgspec.Struct, frozen=True, array_like=True, tag="change_membership"):
    """Through a joint configuration where needed. Result: :class:`MembershipDone`."""

    change: ChangeMembers
    retain: bool = False
    force: bool = False


class TransferLeader(msgspec.Struct, frozen=True, array_like=True, tag="transfer_leader"):
    """``to`` None: the most up-to-date voter. Result: :class:`TransferDone`."""

    to: NodeId | None = None


class MembershipDone(msgspec.Struct, frozen=True, array_like=True):
    log_id: LogId
    membership: Membership


class TransferDone(msgspec.Struct, frozen=True, array_like=True):
    leader: NodeId


Operation = Write | AddLearner | ChangeMembership | TransferLeader
