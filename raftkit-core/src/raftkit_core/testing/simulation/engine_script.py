"""What can be done to a ring of engines, and how bad its wires and disks can be."""

from __future__ import annotations

from typing import Literal

import msgspec

ActionKind = Literal[
    "write", "read", "lease_read", "change", "transfer", "elect", "snapshot", "purge",
    "crash", "pause", "cut", "mute", "deafen", "part", "ambush_winner", "ambush_install",
]  # fmt: skip


class Faults(msgspec.Struct, frozen=True):
    """How bad wires and disks are. Probabilities are per message; delays are the worst, in seconds."""

    loss: float = 0.06
    repeat: float = 0.04
    delay: float = 0.04
    disk_delay: float = 0.05
    late_flush: float = 0.02
    """An older completion of a flush is reported once more, after a newer one."""
    late_answer: float = 0.01
    """An answer comes (once more) when its caller has long given up."""
    machine_delay: float = 0.04
    """How long publishing or restoring a snapshot takes."""


NO_FAULTS = Faults(loss=0.0, repeat=0.0, late_answer=0.0)


class Action(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing done to the ring. ``pick`` decides what is open (which node, which voters), the same way each time.

    An ambush waits ``for_s`` for what it is named after, and then breaks something at that very moment. A ``part`` with
    a ``node`` puts it on a side of ``count`` nodes.
    """

    at_s: float
    kind: ActionKind
    node: str = ""
    count: int = 0
    for_s: float = 0.0
    pick: int = 0
