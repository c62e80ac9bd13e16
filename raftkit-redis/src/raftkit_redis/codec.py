"""How a log, a vote, an identity and a state look in Redis: MessagePack behind a checksum, and nothing else.

Every value starts with the CRC-32 of *where it belongs* and its content, so that damage, a swapped value and a
misplaced list element are all found when read. There is no default for an unreadable one: it is a ``StorageCorrupt``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TypeVar

import msgspec

from raftkit_core.errors import StorageCorrupt
from raftkit_core.types.decoding import strictly
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.vote import Vote

FORMAT = 1
"""Version of everything this package writes into Redis; pinned by a golden test."""

_CRC_BYTES = 4
_REVISION_BYTES = 8

_encoder = msgspec.msgpack.Encoder()
_entry_decoder = strictly(msgspec.msgpack.Decoder(Entry).decode)
_vote_decoder = strictly(msgspec.msgpack.Decoder(Vote).decode)
_log_id_decoder = strictly(msgspec.msgpack.Decoder(LogId).decode)
_membership_decoder = strictly(msgspec.msgpack.Decoder(StoredMembership).decode)
_identity_decoder = strictly(msgspec.msgpack.Decoder(StoreIdentity).decode)

T = TypeVar("T")


def encode_entry(entry: Entry) -> bytes:
    """Checksum over index and content, then the entry."""
    body = _encoder.encode(entry)
    return zlib.crc32(body, zlib.crc32(entry.log_id.index.to_bytes(8, "big"))).to_bytes(_CRC_BYTES, "big") + body


def decode_entry(blob: bytes, index: int) -> Entry:
    """The entry at ``index``.

    Raises: StorageCorrupt if the checksum, the encoding or the index inside does not fit.
    """
    body = blob[_CRC_BYTES:]
    found = zlib.crc32(body, zlib.crc32(index.to_bytes(8, "big")))
    if found != int.from_bytes(blob[:_CRC_BYTES], "big"):
        raise _damaged("log", f"entry {index}", "its checksum does not fit")
    try:
        entry = _entry_decoder(body)
    except msgspec.DecodeError as error:
        raise _damaged("log", f"entry {index}", str(error)) from error
    if entry.log_id.index != index:
        raise _damaged("log", f"entry {index}", f"it says it is entry {entry.log_id.index}")
    return entry


def peek_log_id(blob: bytes) -> LogId | None:
    """The log id of an entry whose index is not known beforehand; None for no entry."""
    return _entry_decoder(blob[_CRC_BYTES:]).log_id if blob else None


def encode_vote(vote: Vote) -> bytes:
    return _seal("vote", vote)


def decode_vote(blob: bytes) -> Vote | None:
    """None for "never voted", which is the empty value, not an absent one."""
    return _unseal("vote", blob, _vote_decoder)


def encode_log_id(field: str, log_id: LogId) -> bytes:
    return _seal(field, log_id)


def decode_log_id(field: str, blob: bytes) -> LogId | None:
    return _unseal(field, blob, _log_id_decoder)


def encode_identity(identity: StoreIdentity) -> bytes:
    return _seal("identity", identity)


def decode_identity(blob: bytes) -> StoreIdentity | None:
    return _unseal("identity", blob, _identity_decoder)


def encode_membership(membership: StoredMembership) -> bytes:
    return _seal("membership", membership)


def decode_membership(blob: bytes) -> StoredMembership | None:
    return _unseal("membership", blob, _membership_decoder)


def encode_cell(key: bytes, value: bytes, revision: int) -> bytes:
    """Revision (8 bytes), checksum over key, revision and value, then the value."""
    head = revision.to_bytes(_REVISION_BYTES, "big")
    return head + zlib.crc32(value, zlib.crc32(key, zlib.crc32(head))).to_bytes(_CRC_BYTES, "big") + value


def decode_cell(key: bytes, blob: bytes) -> tuple[bytes, int]:
    """Value and revision. Raises: StorageCorrupt."""
    head, crc = blob[:_REVISION_BYTES], blob[_REVISION_BYTES : _REVISION_BYTES + _CRC_BYTES]
    value = blob[_REVISION_BYTES + _CRC_BYTES :]
    if zlib.crc32(value, zlib.crc32(key, zlib.crc32(head))) != int.from_bytes(crc, "big"):
        raise _damaged("state machine", f"the cell of key {key!r}", "its checksum does not fit")
    return value, int.from_bytes(head, "big")


def revision_of(blob: bytes) -> int:
    """The revision of a cell, or of its first bytes: unchecked, since the checksum covers the value too."""
    return int.from_bytes(blob[:_REVISION_BYTES], "big")


def encode_record(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(_CRC_BYTES, "big") + value


def decode_record(key: bytes, blob: bytes) -> bytes:
    """Raises: StorageCorrupt."""
    value = blob[_CRC_BYTES:]
    if zlib.crc32(value, zlib.crc32(key)) != int.from_bytes(blob[:_CRC_BYTES], "big"):
        raise _damaged("state machine", f"the record {key!r}", "its checksum does not fit")
    return value


def _seal(field: str, value: object) -> bytes:
    body = _encoder.encode(value)
    return zlib.crc32(body, zlib.crc32(field.encode())).to_bytes(_CRC_BYTES, "big") + body


def _unseal(field: str, blob: bytes, decode: Callable[[bytes], T]) -> T | None:
    if not blob:
        return None
    body = blob[_CRC_BYTES:]
    if zlib.crc32(body, zlib.crc32(field.encode())) != int.from_bytes(blob[:_CRC_BYTES], "big"):
        raise _damaged(field, f"the stored {field}", "its checksum does not fit")
    try:
        return decode(body)
    except msgspec.DecodeError as error:
        raise _damaged(field, f"the stored {field}", str(error)) from error


def _damaged(subject: str, what: str, why: str) -> StorageCorrupt:
    return StorageCorrupt(
        f"{what} in Redis is damaged: {why}",
        subject=subject,
        verb="read",
        hint="nothing was changed; restore this node from a backup, or remove it from the cluster and add it anew",
    )
