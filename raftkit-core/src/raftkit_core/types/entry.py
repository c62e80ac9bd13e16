"""Log entries: what is replicated, and the envelope around an application's command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import count, repeat
from operator import attrgetter
from typing import Any, Literal, cast, overload

import msgspec

from raftkit_core.types.decoding import strictly
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership

BLANK = 0
"""Kind: nothing to apply; the first entry of every leader."""
NORMAL = 1
"""Kind: an :class:`Envelope` with a command for a state machine."""
MEMBERSHIP = 2
"""Kind: a :class:`Membership`."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One log entry.

    ``time_ms`` is *cluster time*: 0 at initialize, then the leader's last entry plus its own monotonic time. It never
    falls and stops while nobody leads; it is not wall time.
    """

    log_id: LogId
    time_ms: int
    kind: int
    payload: bytes

    @property
    def index(self) -> int:
        return self.log_id.index


class Entries(Sequence[Entry]):
    """Consecutive entries of one leader and one kind: mostly what was proposed together. Equal to a list of the same
    entries; not to be changed.

    An :class:`Entry` is made when somebody asks for it, and most never are: log, frames and state machines go by the
    ``payloads``. ``times`` is the cluster time of each, None where all were proposed at ``time_ms``, which is the last
    one's in any case.
    """

    __slots__ = ("_only", "first", "kind", "last", "payloads", "size_bytes", "time_ms", "times")

    def __init__(
        self, first: LogId, time_ms: int, kind: int, payloads: Sequence[bytes], times: Sequence[int] | None = None
    ) -> None:
        self.first = first
        self.time_ms = time_ms
        self.kind = kind
        # The garbage collector leaves a tuple of bytes alone once it has seen it, but looks at a list again and again.
        self.payloads = payloads = tuple(payloads)
        self.times = times
        self._only: Entry | None = None
        length = len(payloads)
        assert times is None or len(times) == length, f"{len(times)} times for {length} payloads"
        if length == 1:
            self.last = first
            self.size_bytes = len(payloads[0])
        else:
            assert length, "no entries have no log id"
            self.last = LogId(first.leader_id, first.index + length - 1)
            self.size_bytes = sum(map(len, payloads))

    def __len__(self) -> int:
        return len(self.payloads)

    def __iter__(self) -> Iterator[Entry]:
        payloads, first = self.payloads, self.first
        if len(payloads) == 1:
            return iter((self[0],))
        log_ids = map(LogId, repeat(first.leader_id), count(first.index))
        return map(Entry, log_ids, times_of(self), repeat(self.kind), payloads)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Entry]: ...

    def __getitem__(self, at: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self.payloads))
            return list(self)[at] if step != 1 else self.part(start, stop) if start < stop else []
        entry = self._only
        if entry is not None and -1 <= at <= 0:
            return entry
        payload = self.payloads[at]
        place = at if at >= 0 else at + len(self.payloads)
        first = self.first
        log_id = first if place == 0 else LogId(first.leader_id, first.index + place)
        entry = Entry(log_id, self.time_ms if self.times is None else self.times[at], self.kind, payload)
        if len(self.payloads) == 1:
            self._only = entry
        return entry

    def part(self, start: int, stop: int) -> Entries:
        """As the slice, which must not be empty."""
        first, times = self.first, self.times
        if times is not None:
            times = times[start:stop]
        return Entries(
            LogId(first.leader_id, first.index + start),
            self.time_ms if times is None else times[-1],
            self.kind,
            self.payloads[start:stop],
            times,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entries | list):
            return NotImplemented
        return len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def times_of(entries: Entries) -> Iterable[int]:
    """The cluster time of each."""
    return repeat(entries.time_ms, len(entries.payloads)) if entries.times is None else entries.times


def proposed(first: LogId, time_ms: int, kind: int, payloads: Sequence[bytes]) -> Sequence[Entry]:
    """What is proposed together: of one payload a list, which is quicker to handle than an :class:`Entries` of one."""
    if len(payloads) == 1:
        return [Entry(first, time_ms, kind, payloads[0])]
    return Entries(first, time_ms, kind, payloads)


def ends_of(entries: Sequence[Entry]) -> tuple[LogId, LogId]:
    """The first and the last log id."""
    if type(entries) is Entries:
        return entries.first, entries.last
    return entries[0].log_id, entries[-1].log_id


def payload_bytes(entries: Sequence[Entry]) -> int:
    """Bytes of payload in ``entries``."""
    if type(entries) is Entries:
        return entries.size_bytes
    if len(entries) == 1:
        return len(entries[0].payload)
    return sum(map(len, map(_payload, entries)))


def payloads_of(entries: Sequence[Entry]) -> Sequence[bytes]:
    """The payloads of ``entries``, in order."""
    if type(entries) is Entries:
        return entries.payloads
    if len(entries) == 1:
        return [entries[0].payload]
    return list(map(_payload, entries))


def last_log_id(entries: Sequence[Entry]) -> LogId:
    """The log id of the last of ``entries``, which are some."""
    return entries.last if type(entries) is Entries else entries[-1].log_id


def indexes_of(entries: Sequence[Entry]) -> Sequence[int]:
    """The indexes of ``entries``, in order."""
    if type(entries) is Entries:
        return range(entries.first.index, entries.last.index + 1)
    return list(map(_index, entries))


_payload = attrgetter("payload")
_index = attrgetter("log_id.index")


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The payload of a normal entry: which machine, which client session, and the encoded command.

    ``session`` 0 means none. ``serial`` numbers the writes of a session; every result up to ``acknowledged_floor`` may
    be forgotten.
    """

    version: int
    machine: str
    session: int
    serial: int
    acknowledged_floor: int
    body: bytes


ENVELOPE_VERSION = 1

_envelope_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_membership_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decode_membership = strictly(msgspec.msgpack.Decoder(Membership).decode)


encode_envelope: Callable[[Envelope], bytes] = _envelope_encoder.encode


def envelope_head(machine: str) -> bytes:
    """What the envelope of a command for ``machine`` begins with, if there is no session; its body, as ``encode_body``
    gives it, is the rest."""
    return _envelope_encoder.encode(Envelope(ENVELOPE_VERSION, machine, 0, 0, 0, b""))[: -len(encode_body(b""))]


encode_body: Callable[[bytes], bytes] = _envelope_encoder.encode


decode_envelope: Callable[[bytes], Envelope] = strictly(_envelope_decoder.decode)
"""Raises: ``msgspec.DecodeError`` if the payload is not an envelope."""


@cache
def plain_decoder(machine: str) -> Callable[[bytes], Envelope]:
    """As :data:`decode_envelope`, for envelopes of ``machine`` without a session and for no others: to decode many. It
    raises all of ``DECODE_ERRORS``."""
    fields: list[tuple[str, Any]] = [(field.name, field.type) for field in msgspec.structs.fields(Envelope)]
    known = {"machine": Literal[machine], "session": Literal[0]}  # which costs no text to be made
    plain = msgspec.defstruct(
        "PlainEnvelope",
        [(name, known.get(name, type_)) for name, type_ in fields],
        array_like=True,
        frozen=True,
        gc=False,
    )
    return cast(Callable[[bytes], Envelope], msgspec.msgpack.Decoder(plain).decode)


def encode_membership(membership: Membership) -> bytes:
    """Canonical bytes: equal memberships encode equally in every process."""
    return _membership_encoder.encode(membership)


def decode_membership(payload: bytes) -> Membership:
    """Raises: ``msgspec.DecodeError`` if ``payload`` is not a membership, or one that nobody could have made."""
    membership = _decode_membership(payload)
    problem = membership.problem()
    if problem is not None:
        raise msgspec.DecodeError(problem)
    return membership
