"""What can be done to a simulated cluster, and how bad its network and disks can be."""

from __future__ import annotations

from typing import Literal

import msgspec

ActionKind = Literal[
    "put", "put_once", "get", "lease_get", "cas", "delete", "abandon",
    "crash", "power_loss", "wipe", "pause", "partition", "isolate", "cut", "hold", "flap",
    "storm", "slow_disk", "hang_disk", "full_disk", "failing_disk", "rot",
    "transfer", "elect", "snapshot", "purge", "add", "remove", "swap",
    "depose", "deafen", "ambush_winner", "ambush_install", "set_wall",
]  # fmt: skip


class Action(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing done at ``at_s``, undone ``for_s`` later. ``node`` may be ``@leader``; ``pick`` decides what is
    open, the same way each time. An ambush waits ``for_s`` for what it is named after, and then breaks something at
    that very moment."""

    at_s: float
    kind: ActionKind
    node: str = ""
    for_s: float = 0.0
    pick: int = 0
    client: str = ""
    key: str = ""
    value: str = ""


class Weather(msgspec.Struct, frozen=True, omit_defaults=True):
    """The network outside of storms: shares of frames, and times in seconds."""

    latency: tuple[float, float] = (0.0005, 0.003)
    tail: float = 0.0
    loss: float = 0.0
    answer_loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    resets: float = 0.0
    bursts: float = 0.0


class Disks(msgspec.Struct, frozen=True, omit_defaults=True):
    """Disks outside of their faults. ``at_once`` is the share of writes that are finished when they return."""

    at_once: float = 0.5
    latency: tuple[float, float] = (0.0002, 0.01)
    atomic: bool = False
