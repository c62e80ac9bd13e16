"""What frames are made of (see :mod:`raftkit_core.network.wire`): their kinds, and the types they are decoded to."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from raftkit_core.types.entry import MEMBERSHIP
from raftkit_core.types.ids import MAX_ENTRY_BYTES, Natural
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import Vote


class FrameError(msgspec.DecodeError):
    """The bytes are no valid frame or message. The connection they came on must be closed."""


class Kind(IntEnum):
    """What a frame is. The numbers are the protocol: never reuse one."""

    ANSWER = 0
    ERROR = 1
    HELLO = 2
    APPEND_ENTRIES = 3
    HEARTBEAT = 4
    VOTE = 5
    PRE_VOTE = 6
    TRANSFER_LEADER = 7
    READ_INDEX = 8
    FORWARD = 9
    SNAPSHOT_OFFSET = 10
    INSTALL_SNAPSHOT = 11


class SnapshotOffer(msgspec.Struct, frozen=True, array_like=True):
    """Answer to SNAPSHOT_OFFSET: bytes already there, and what the stream must show to belong to this request."""

    offset: int
    ticket: str = ""


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One frame, its body not decoded yet."""

    kind: int
    request_id: Natural
    timeout_ms: Natural
    body: msgspec.Raw


_EntryKind = Annotated[int, msgspec.Meta(ge=0, le=MEMBERSHIP)]
_Payload = Annotated[bytes, msgspec.Meta(max_length=MAX_ENTRY_BYTES)]


class AppendedRun(msgspec.Struct, array_like=True, gc=False):
    """Entries of one leader, time and kind."""

    first: LogId
    time_ms: Natural
    kind: _EntryKind
    payloads: tuple[_Payload, ...]


class AppendBody(msgspec.Struct, array_like=True, gc=False):
    """The body of an append, as it is on the wire."""

    vote: Vote
    prev_log_id: LogId | None
    leader_commit: LogId | None
    lease_ms: Natural
    runs: list[AppendedRun]
