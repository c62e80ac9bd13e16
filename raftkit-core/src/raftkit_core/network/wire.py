"""Frames between peers: MessagePack, the same for every transport that ships with raftkit.

A frame is ``[kind, request_id, timeout_ms, body]``. Kinds 0 and 1 are answers (a result, an error) to the request with
that id; every other kind is a request, ``timeout_ms`` says how long its caller waits. ``body`` is the message.

An append has a body of its own, because nearly every byte on the wire is one::

    [vote, prev_log_id, leader_commit, lease_ms, runs]
    run = [first_log_id, time_ms, kind, [payload, …]]

Runs of entries of one leader, time and kind write these once: what was proposed together is one run. Indexes are
consecutive by construction.

Whatever comes in is hostile until decoded: every way in which bytes can be wrong is a :class:`FrameError`, and no other
exception leaves this module for what another node sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from raftkit_core.errors import ErrorInfo, PayloadTooLarge
from raftkit_core.network.frames import AppendBody
from raftkit_core.network.frames import Frame as Frame
from raftkit_core.network.frames import FrameError as FrameError
from raftkit_core.network.frames import Kind as Kind
from raftkit_core.network.frames import SnapshotOffer as SnapshotOffer
from raftkit_core.types.entry import MEMBERSHIP, Entries, Entry, decode_membership, proposed
from raftkit_core.types.entry_log import EntryLog
from raftkit_core.types.ids import INT_MAX, MAX_FRAME_BYTES, is_node_id
from raftkit_core.types.log_id import LogId, next_index
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    ForwardRequest,
    ForwardResponse,
    HeartbeatRequest,
    HelloRequest,
    HelloResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    Success,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta, is_snapshot_id
from raftkit_core.types.vote import LeaderId, Vote

T = TypeVar("T")

FrameBytes = bytes | memoryview
"""A frame as it came in. What is decoded of it has bytes of its own; only ``Frame.body`` is a part of it."""

FRAME_OVERHEAD_BYTES = 32
"""More than the array, kind, request id and timeout of a frame ever take."""
JOINED_BYTES_MIN = 2048
"""A body of this size is copied into its frame once; the encoder would copy it each time its buffer grows."""
TEXT_MAX = 4096
"""Longest name, address or message in a frame, in characters."""


_APPEND_ENTRIES = Kind.APPEND_ENTRIES
_NUMBERS = tuple(range(len(Kind)))
"""By kind: a plain number, which is encoded at once."""
CONTROL_KINDS = frozenset({Kind.HELLO, Kind.HEARTBEAT, Kind.VOTE, Kind.PRE_VOTE, Kind.TRANSFER_LEADER, Kind.READ_INDEX})
"""Small and urgent: the control lane."""
DATA_KINDS = frozenset({Kind.HELLO, Kind.APPEND_ENTRIES, Kind.FORWARD, Kind.SNAPSHOT_OFFSET})
"""Everything that may be large: the data lane."""


REQUEST_TYPES: dict[Kind, Any] = {
    Kind.HELLO: HelloRequest,
    Kind.APPEND_ENTRIES: AppendEntriesRequest,
    Kind.HEARTBEAT: HeartbeatRequest,
    Kind.VOTE: VoteRequest,
    Kind.PRE_VOTE: VoteRequest,
    Kind.TRANSFER_LEADER: TransferLeaderRequest,
    Kind.READ_INDEX: ReadIndexRequest,
    Kind.FORWARD: ForwardRequest,
    Kind.SNAPSHOT_OFFSET: InstallSnapshotRequest,
    Kind.INSTALL_SNAPSHOT: InstallSnapshotRequest,
}
ANSWER_TYPES: dict[Kind, Any] = {
    Kind.HELLO: HelloResponse,
    Kind.APPEND_ENTRIES: AppendEntriesResponse,
    Kind.HEARTBEAT: AppendEntriesResponse,
    Kind.VOTE: VoteResponse,
    Kind.PRE_VOTE: VoteResponse,
    Kind.TRANSFER_LEADER: TransferLeaderResponse,
    Kind.READ_INDEX: ReadIndexResponse,
    Kind.FORWARD: ForwardResponse,
    Kind.SNAPSHOT_OFFSET: SnapshotOffer,
    Kind.INSTALL_SNAPSHOT: InstallSnapshotResponse,
}

_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(Frame).decode
_decode_append = msgspec.msgpack.Decoder(AppendBody).decode
_error_decoder = msgspec.msgpack.Decoder(ErrorInfo)
_decode_request = {kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in REQUEST_TYPES.items()}
_decode_answer = {kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in ANSWER_TYPES.items()}
_REQUEST_KINDS = {int(kind): kind for kind in REQUEST_TYPES}
_UNDECODABLE = (msgspec.DecodeError, ValueError, RecursionError, OverflowError, MemoryError)
"""What garbage is to msgspec: text that is no UTF-8, deep nesting and absurd sizes are errors of Python's own."""


# --- Frames ---------------------------------------------------------------------------------------------------------


def encode_frame(kind: int, request_id: int, timeout_ms: int, body: bytes) -> bytes:
    """Put an encoded message in a frame. Raises: PayloadTooLarge."""
    if len(body) < JOINED_BYTES_MIN:
        return _encode((_NUMBERS[kind], request_id, timeout_ms, Raw(body)))
    if len(body) > MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES:
        raise PayloadTooLarge(f"a message of {len(body)} bytes does not fit a frame of {MAX_FRAME_BYTES} bytes")
    return frame_head(kind, request_id, timeout_ms) + body


def frame_head(kind: int, request_id: int, timeout_ms: int) -> bytes:
    """What stands before the body in a frame."""
    return _encode((_NUMBERS[kind], request_id, timeout_ms, None))[:-1]


def decode_frame(data: FrameBytes) -> Frame:
    """Raises: FrameError."""
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(data)} bytes is larger than {MAX_FRAME_BYTES}")
    try:
        return _decode_frame(data)
    except _UNDECODABLE as error:
        raise FrameError(f"not a valid frame: {error}") from None


def encode_answer_frame(request_id: int, message: Any) -> bytes:
    """An answer in its frame."""
    return _encode((0, request_id, 0, message))


def kind_of(data: bytes) -> int:
    """The kind of a frame that :func:`encode_frame` made, without decoding it."""
    return data[1]


def request_kind(kind: int) -> Kind:
    """The kind of a request frame. Raises: FrameError if it is none."""
    known = _REQUEST_KINDS.get(kind)
    if known is None:
        raise FrameError(f"{kind} is no kind of request")
    return known


# --- Messages -------------------------------------------------------------------------------------------------------


def encode_request(kind: Kind, message: Any) -> bytes:
    """The body of a request. Appends go through :class:`AppendEncoder` where several peers get the same one."""
    if kind is _APPEND_ENTRIES:
        return encode_append(message)
    return _encode(message)


def decode_request(kind: Kind, body: bytes | msgspec.Raw) -> Any:
    """Raises: FrameError."""
    if kind is _APPEND_ENTRIES:
        return decode_append(body)
    message = _guarded(_decode_request[kind], body)
    _QUICK_CHECKS.get(type(message), _check)(message)
    return message


def encode_answer(message: Any) -> bytes:
    return _encode(message)


def decode_answer(kind: Kind, body: bytes | msgspec.Raw) -> Any:
    """The answer to a request of ``kind``. Raises: FrameError."""
    try:
        message = _decode_answer[kind](body)
    except _UNDECODABLE as error:
        raise FrameError(f"not a valid frame: {error}") from None
    _QUICK_CHECKS.get(type(message), _check)(message)
    return message


def encode_error(info: ErrorInfo, max_bytes: int | None = None) -> bytes:
    """The body of an error answer, shortened until it fits ``max_bytes``: a lane for small frames stays one."""
    body = _encode(info)
    limit = TEXT_MAX
    while (max_bytes is not None and len(body) > max_bytes) or len(info.message) > limit:
        limit //= 2
        info = msgspec.structs.replace(
            info, message=info.message[:limit], hint=info.hint and info.hint[:limit], leader_node=None
        )
        body = _encode(info)
        if limit == 0:
            break
    return body


def decode_error(body: bytes | msgspec.Raw) -> ErrorInfo:
    """Raises: FrameError."""
    info = _guarded(_error_decoder.decode, body)
    _check(info)
    return info


# --- Appends --------------------------------------------------------------------------------------------------------


def encode_append(request: AppendEntriesRequest) -> bytes:
    """Raises: ValueError if the entries are not consecutive: ours must be."""
    entries = request.entries
    expected = next_index(request.prev_log_id)
    runs: list[tuple[LogId, int, int, Sequence[bytes]]] = []
    if type(entries) is Entries and entries.times is None:
        if entries.first.index != expected:
            raise ValueError(f"entry {entries.first} where index {expected} was due")
        runs.append((entries.first, entries.time_ms, entries.kind, entries.payloads))
    else:
        shared: tuple[LeaderId, int, int] | None = None
        payloads: list[bytes] = []
        for entry in entries:
            log_id = entry.log_id
            if log_id.index != expected:
                raise ValueError(f"entry {log_id} where index {expected} was due")
            expected += 1
            if (log_id.leader_id, entry.time_ms, entry.kind) != shared:
                shared = (log_id.leader_id, entry.time_ms, entry.kind)
                payloads = []
                runs.append((log_id, entry.time_ms, entry.kind, payloads))
            payloads.append(entry.payload)
    return _encode((request.vote, request.prev_log_id, request.leader_commit, request.lease_ms, runs))


def decode_append(body: bytes | msgspec.Raw) -> AppendEntriesRequest:
    """Entries come out with consecutive indexes after ``prev_log_id`` and growing leader ids. Raises: FrameError."""
    try:
        raw = _decode_append(body)
    except _UNDECODABLE as error:
        raise FrameError(f"not a valid frame: {error}") from None
    prev, commit = raw.prev_log_id, raw.leader_commit
    ours = raw.vote.leader_id
    _check_leader_id(ours)
    if commit is not None and commit.leader_id != ours:
        _check_leader_id(commit.leader_id)
    leader: LeaderId | None = None
    expected = 0
    if prev is not None:
        expected, leader = prev.index + 1, prev.leader_id
        if leader != ours:
            _check_leader_id(leader)
    entries: Sequence[Entry] = []
    joined: EntryLog | None = None
    for run in raw.runs:
        first, payloads = run.first, run.payloads
        if first.index != expected or not payloads:
            raise FrameError(f"a run of {len(payloads)} entries starts at {first.index}, {expected} was due")
        if first.leader_id != leader:
            _check_leader_id(first.leader_id)
            if leader is not None and first.leader_id < leader:
                raise FrameError(f"entries of {first.leader_id} after entries of {leader}")
            leader = first.leader_id
        if run.kind == MEMBERSHIP:
            for payload in payloads:
                _guarded(decode_membership, payload)  # it counts as soon as it is in the log: it must be one
        expected += len(payloads)
        together = proposed(first, run.time_ms, run.kind, payloads)
        if not entries:
            entries = together
            continue
        if joined is None:
            entries = joined = EntryLog(entries)
        joined.extend(together)
    if joined is not None:
        entries = joined[:]
    if expected > INT_MAX:
        raise FrameError("an index is out of range")
    return AppendEntriesRequest(raw.vote, prev, entries, commit, raw.lease_ms)


class AppendEncoder:
    """Remembers the newest encoded append by request object, so that one append is encoded once for all peers."""

    def __init__(self) -> None:
        self._newest: AppendEntriesRequest | None = None
        self._body = b""

    def encode(self, request: AppendEntriesRequest) -> bytes:
        """The body of ``request``. Raises: ValueError if its entries are not consecutive."""
        if request is not self._newest:
            self._body = encode_append(request)
            self._newest = request
        return self._body

    def clear(self) -> None:
        """Forget it, and the memory it holds."""
        self._newest = None
        self._body = b""


# --- Strictness -----------------------------------------------------------------------------------------------------


def _guarded(decode: Callable[[Any], T], data: Any) -> T:
    """Raises: FrameError where ``decode`` raises one of the ways in which bytes can be wrong."""
    try:
        return decode(data)
    except _UNDECODABLE as error:
        raise FrameError(f"not a valid frame: {error}") from None


_is_known_node_id = lru_cache(maxsize=1024)(is_node_id)  # the same few ids come in every message


def _check_log_id(log_id: LogId | None) -> None:
    """:func:`_check` for what every message holds; its integers are checked by their types."""
    if log_id is not None:
        _check_leader_id(log_id.leader_id)


@lru_cache(maxsize=1024)  # the same few come in every message; what is wrong is never kept
def _check_leader_id(leader_id: LeaderId) -> None:
    if leader_id.node_id and not _is_known_node_id(leader_id.node_id):
        raise FrameError(f"{leader_id.node_id[:80]!r} is no node id")


def _check_success(answer: Success) -> None:
    if len(answer.store_id) > TEXT_MAX:
        _check(answer.store_id)
    _check_log_id(answer.matching)


def _check_heartbeat(request: HeartbeatRequest) -> None:
    _check_leader_id(request.vote.leader_id)
    _check_log_id(request.prev_log_id)
    _check_log_id(request.leader_commit)
    _check(request.lease_ms)
    _check(request.reverted_store_id)


_QUICK_CHECKS: dict[type, Callable[[Any], None]] = {
    Success: _check_success,
    HeartbeatRequest: _check_heartbeat,
    LogId: _check_log_id,
    LeaderId: _check_leader_id,
    Vote: lambda vote: _check_leader_id(vote.leader_id),
}
"""What comes with every write says field by field what is to be checked; the general way costs three times as much."""


def _check(value: Any) -> None:
    """What types cannot say: ints in [0, 2**63), node ids and snapshot ids well formed, no endless names."""
    quick = _QUICK_CHECKS.get(type(value))
    if quick is not None:
        quick(value)
        return
    if value is None or type(value) is bool or type(value) is bytes:
        return
    if type(value) is int:
        if not 0 <= value <= INT_MAX:
            raise FrameError(f"integer {value} is not in [0, 2**63)")
    elif type(value) is str:
        if len(value) > TEXT_MAX:
            raise FrameError(f"a text of {len(value)} characters is longer than {TEXT_MAX}")
    elif isinstance(value, msgspec.Struct):
        if isinstance(value, Membership) and (problem := value.problem()) is not None:
            raise FrameError(problem)
        if isinstance(value, SnapshotMeta) and not is_snapshot_id(value.snapshot_id):
            raise FrameError(f"{value.snapshot_id[:80]!r} is no snapshot id")
        if isinstance(value, HelloRequest | HelloResponse) and not (is_node_id(value.node_id) and value.group):
            raise FrameError(f"a hello from node {value.node_id[:80]!r} of group {value.group[:80]!r}")
        for name in value.__struct_fields__:
            _check(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key)
            _check(item)
    else:
        raise FrameError(f"a {type(value).__name__} has no place in a frame")
