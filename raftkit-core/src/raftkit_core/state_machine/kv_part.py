"""What one applied batch leaves to those who watch keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.types.entry import Entry, decode_envelope, payloads_of
from raftkit_core.types.kv import KvCommand

_CODEC = KvCodec()


class KvPart(msgspec.Struct, eq=False):
    """Commands of one applied batch."""

    last: int
    entries: Sequence[Entry]
    results: Sequence[Any]
    size_bytes: int
    _commands: list[KvCommand] | None = None

    def commands(self) -> list[KvCommand]:
        """Decoded for the first reader."""
        if self._commands is None:
            self._commands = _CODEC.decode_commands([decode_envelope(each).body for each in payloads_of(self.entries)])
        return self._commands
