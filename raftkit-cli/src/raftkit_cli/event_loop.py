"""Which event loop a node runs on. uvloop is quicker where it is installed; nothing needs it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, TypeAlias, cast

LoopChoice: TypeAlias = Literal["auto", "asyncio", "uvloop"]
LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]
CHOICES: tuple[LoopChoice, ...] = ("auto", "asyncio", "uvloop")
INSTALL = "pip install 'raftkit-http[fast]'"


def loop_factory(choice: LoopChoice) -> LoopFactory | None:
    """What makes the loop; None: asyncio itself.

    Raises: ConfigError if uvloop was asked for by name and cannot be had.
    """
    from raftkit_core.errors import ConfigError

    if choice == "asyncio":
        return None
    problem = _why_not()
    if problem is None:
        try:
            return cast(LoopFactory, import_module("uvloop").new_event_loop)
        except ImportError as error:  # installed for another Python, or broken
            problem = f"uvloop cannot be imported: {error}"
    if choice == "auto":
        return None
    raise ConfigError(problem, hint=INSTALL if problem == _MISSING else "leave out --loop uvloop")


_MISSING = "uvloop is not installed"


def _why_not() -> str | None:
    if sys.platform == "win32" or sys.implementation.name != "cpython":
        return "uvloop is for CPython on Unix"
    return _MISSING if find_spec("uvloop") is None else None
