"""Log entries: what is replicated, and the envelope around an application's command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count, repeat
from operator import attrgetter
from typing import Any, Literal, cast

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


class Entries(list[Entry]):
    """Consecutive entries proposed together: one leader, one cluster time, one kind. Equal to the list it is; not to be
    changed.

    What was known when it was made need not be found out again, entry by entry, at every station of its way:
    ``size_bytes`` of payload, and the ``payloads`` themselves.
    """

    __slots__ = ("payloads", "size_bytes")

    def __init__(self, first: LogId, time_ms: int, kind: int, payloads: list[bytes]) -> None:
        self.payloads = payloads
        if len(payloads) == 1:
            self.append(Entry(first, time_ms, kind, payloads[0]))
            self.size_bytes = len(payloads[0])
            return
        log_ids = map(LogId, repeat(first.leader_id), count(first.index))
        super().__init__(map(Entry, log_ids, repeat(time_ms), repeat(kind), payloads))
        self.size_bytes = sum(map(len, payloads))


def payload_bytes(entries: Sequence[Entry]) -> int:
    """Bytes of payload in ``entries``."""
    if type(entries) is Entries:
        return entries.size_bytes
    return sum(map(len, map(_payload, entries)))


_payload = attrgetter("payload")


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
