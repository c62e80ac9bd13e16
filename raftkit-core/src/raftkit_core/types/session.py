"""Client sessions: what names one, and what a write under it carries.

A write under a session has one effect, however often it is sent: the cluster remembers its result under its *serial*
until the client acknowledges it by a greater *floor*.
"""

from __future__ import annotations

import re

import msgspec

MIN_TTL_MS = 1000
MAX_TTL_MS = 24 * 60 * 60 * 1000
DEFAULT_TTL_MS = 30_000
MAX_SERIAL = 2**53 - 1
"""JSON numbers carry no more."""

_TOKEN = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,15})")


class SessionRef(msgspec.Struct, frozen=True, array_like=True):
    """``id`` is the log index of the entry that opened the session. It means nothing without its cluster: another one,
    or this one after ``recover``, may have opened another session there."""

    cluster_id: str
    id: int

    @property
    def token(self) -> str:
        """As text, for headers and JSON."""
        return f"{self.cluster_id}-{self.id}"

    @classmethod
    def parse(cls, token: str) -> SessionRef:
        """Raises: ValueError."""
        found = _TOKEN.fullmatch(token)
        if found is None or int(found[2]) > MAX_SERIAL:
            raise ValueError("a session is 32 hex digits of its cluster, '-' and a number")
        return cls(found[1], int(found[2]))


class SessionSerial(msgspec.Struct, frozen=True, array_like=True):
    """What makes a write repeatable. Serials begin with 1; every result up to ``acknowledged_floor`` may be forgotten,
    and a write at or below it is not carried out any more."""

    session: SessionRef
    serial: int
    acknowledged_floor: int = 0
