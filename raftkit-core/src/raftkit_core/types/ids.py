"""Names of nodes and groups, and the identifiers that travel with them."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

import msgspec

INT_MAX = 2**63 - 1
"""The largest integer anything stored or sent may hold."""

Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
"""An integer as it may come in: decoders refuse others."""

NodeId: TypeAlias = str
"""1 to 63 of ``[A-Za-z0-9._-]``, starting with a letter or digit; compared as bytes. ``""`` is reserved for index 0."""

RequestId: TypeAlias = int
"""A caller that waits for an answer, as the engine knows it."""

IoId: TypeAlias = int
"""Position of a command in the ordered log lane. ``flushed(io_id)`` covers every position up to it; 0 is "nothing"."""

NODE_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")

DEFAULT_GROUP = "default"

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Protocol constant: no frame between peers is larger."""

MAX_ENTRY_BYTES = 16 * 1024 * 1024
"""Protocol constant: no entry is larger. ``Config.max_entry_bytes`` limits proposing only."""


def is_node_id(text: str) -> bool:
    """Whether ``text`` may name a node."""
    return NODE_ID_PATTERN.match(text) is not None
