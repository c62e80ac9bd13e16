"""Operations any node accepts and the leader carries out: their names, arguments and results (``Raft.call``)."""

from __future__ import annotations

import msgspec

from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import ChangeMembers, Membership, Node
from raftkit_core.types.session import DEFAULT_TTL_MS, SessionRef, SessionSerial


class Write(msgspec.Struct, frozen=True, array_like=True, tag="write"):
    """Propose an encoded command, under a client session if ``once`` is given. Result: :class:`WriteDone`."""

    body: bytes
    once: SessionSerial | None = None


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


class LookAt(msgspec.Struct, frozen=True, array_like=True, tag="look_at"):
    """For any member, not just the leader: what it says about itself, and its events with a number above
    ``events_after``. Result: ``NodeReport``."""

    events_after: int = 0


class MembershipDone(msgspec.Struct, frozen=True, array_like=True):
    log_id: LogId
    membership: Membership


class TransferDone(msgspec.Struct, frozen=True, array_like=True):
    leader: NodeId


class OpenSession(msgspec.Struct, frozen=True, array_like=True, tag="open_session"):
    """Begin a client session. Result: :class:`SessionOpened`.

    ``nonce`` is the caller's own, of one opening: repeated after a lost answer it gives the same session while the same
    node leads. Without it, or under another leader, a lost answer leaves a session that expires.
    """

    ttl_ms: int = DEFAULT_TTL_MS
    nonce: str = ""


class KeepSession(msgspec.Struct, frozen=True, array_like=True, tag="keep_session"):
    """The client lives: its session lasts a time to live from the *send* of this on. Result: :class:`SessionKept`."""

    session: SessionRef


class CloseSession(msgspec.Struct, frozen=True, array_like=True, tag="close_session"):
    """End a session. Result: :class:`SessionClosed`, also if there is none."""

    session: SessionRef


class SessionOpened(msgspec.Struct, frozen=True, array_like=True):
    session: SessionRef
    ttl_ms: int


class SessionKept(msgspec.Struct, frozen=True, array_like=True):
    ttl_ms: int


class SessionClosed(msgspec.Struct, frozen=True, array_like=True):
    existed: bool


Operation = Write | AddLearner | ChangeMembership | TransferLeader | OpenSession | KeepSession | CloseSession | LookAt
