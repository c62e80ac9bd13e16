"""What a plugin may give to ``raftkit doctor``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One thing a check found. ``hint`` says what to type or change."""

    level: Literal["ok", "warning", "error"]
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """A named check. ``run`` gets the node's ``data_dir`` (None: no node), may do IO and must end by itself."""

    name: str
    run: Callable[[Path | None], Iterable[DoctorFinding]]
