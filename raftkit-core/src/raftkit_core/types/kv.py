"""Commands, queries and results of the logical machine ``kv/1`` (kv, sqlite-kv, redis-kv: one vocabulary)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

KV_MACHINE = "kv/1"

MAX_KEY_BYTES = 4096
"""A longer key (in UTF-8) is a ``BadCommand``."""

Key: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_BYTES)]
"""What decoding checks of a key: no key of more characters has few enough bytes."""
Revision: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Put(msgspec.Struct, frozen=True, tag="put", array_like=True, gc=False):
    """Set ``key``. ``if_revision`` must be its revision (0: it must not exist); None: whatever it is."""

    key: Key
    value: bytes
    if_revision: Revision | None = None


class Delete(msgspec.Struct, frozen=True, tag="delete", array_like=True, gc=False):
    """Remove ``key``; removing an absent key changes nothing."""

    key: Key
    if_revision: Revision | None = None


class CompareAndSet(msgspec.Struct, frozen=True, tag="cas", array_like=True, gc=False):
    """Set ``value`` if the key holds ``expected`` (None: the key does not exist)."""

    key: Key
    expected: bytes | None
    value: bytes


KvCommand: TypeAlias = Put | Delete | CompareAndSet


class Get(msgspec.Struct, frozen=True):
    """Query: a :class:`KeyValue`, or None."""

    key: str


class ListKeys(msgspec.Struct, frozen=True):
    """Query: :class:`KeyValue` of keys with ``prefix``, ordered as UTF-8 bytes, after ``after``, at most ``limit``.

    With ``max_bytes`` the last one is that with which keys and values have as many bytes, or more.
    """

    prefix: str = ""
    limit: int = 1000
    after: str | None = None
    max_bytes: int | None = None


class KeyValue(msgspec.Struct, frozen=True, kw_only=True):
    """A key and its value. ``revision`` is the log index of its last change."""

    key: str
    value: bytes
    revision: int


class KvEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a key, as a watch gives it. ``value`` None: the key was deleted.

    ``revision`` is the log index of the change, ``previous_revision`` that of the one before (0: the key was absent).
    """

    key: str
    value: bytes | None
    revision: int
    previous_revision: int = 0


class WriteResult(msgspec.Struct, frozen=True, gc=False):
    """What became of a change: its log index, and the key's revision before it (0: it did not exist)."""

    revision: int
    previous_revision: int = 0
    changed: bool = True
