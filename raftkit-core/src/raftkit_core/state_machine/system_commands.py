"""Commands of the system machine: the body of an entry addressed to ``system/1``."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from raftkit_core.types.decoding import strictly
from raftkit_core.types.session import MAX_SERIAL, MAX_TTL_MS, MIN_TTL_MS

SessionId = Annotated[int, msgspec.Meta(ge=1, le=MAX_SERIAL)]


class OpenSession(msgspec.Struct, frozen=True, array_like=True, tag="session_open"):
    """Result: the session's id, which is the entry's index; or ``TooManySessions``."""

    ttl_ms: Annotated[int, msgspec.Meta(ge=MIN_TTL_MS, le=MAX_TTL_MS)]


class CloseSession(msgspec.Struct, frozen=True, array_like=True, tag="session_close"):
    """Result: whether there was such a session."""

    session: SessionId


class ExpireSessions(msgspec.Struct, frozen=True, array_like=True, tag="session_expire"):
    """Proposed by a leader with a valid lease that heard nothing of them for their time to live. Result: how many."""

    sessions: tuple[SessionId, ...]


SystemCommand: TypeAlias = OpenSession | CloseSession | ExpireSessions

_encoder = msgspec.msgpack.Encoder()
_decode = strictly(msgspec.msgpack.Decoder(SystemCommand, strict=True).decode)


def encode_system_command(command: SystemCommand) -> bytes:
    return _encoder.encode(command)


def decode_system_command(body: bytes) -> SystemCommand:
    """Raises: msgspec.DecodeError."""
    command: SystemCommand = _decode(body)
    return command


def encode_system_result(result: object) -> bytes:
    return _encoder.encode(result)


def decode_system_result(body: bytes) -> object:
    return msgspec.msgpack.decode(body)
