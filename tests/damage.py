"""Damage to what a disk in memory holds."""

from __future__ import annotations

from typing import Any


def damage_snapshot(disk: Any) -> None:
    """One bit of the published snapshot on ``disk`` is another one."""
    meta, data = disk.snapshot
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    disk.snapshot = (meta, bytes(changed))
