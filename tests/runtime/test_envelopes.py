"""The envelope of a plain command is put together, not encoded: byte by byte what encoding gives."""

from __future__ import annotations

from typing import Any, cast

import pytest

from raftkit_core.errors import BadCommand
from raftkit_core.runtime.envelopes import SHORT_BYTES, Envelopes
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.types.entry import ENVELOPE_VERSION, Envelope, decode_envelope, encode_envelope


@pytest.mark.parametrize("name", ["kv/1", "m" * 40 + "/1"])
def test_a_plain_envelope_is_what_encoding_gives_at_every_size(name: str) -> None:
    machine = KvStateMachine()
    machine.name = name  # type: ignore[misc]
    envelopes = Envelopes(machine, cast(Any, None), max_entry_bytes=1 << 20)
    for size in [*range(SHORT_BYTES + 3), 65_535, 65_536]:
        body = bytes([size % 251]) * size
        envelope = Envelope(ENVELOPE_VERSION, name, 0, 0, 0, body)
        assert envelopes.around(body) == encode_envelope(envelope), size
        assert decode_envelope(envelopes.around(body)) == envelope, size


def test_what_is_too_large_with_its_envelope_is_refused() -> None:
    envelopes = Envelopes(KvStateMachine(), cast(Any, None), max_entry_bytes=100)
    assert len(envelopes.around(b"x" * 88)) == 100
    with pytest.raises(BadCommand, match="101 bytes"):
        envelopes.around(b"x" * 89)
