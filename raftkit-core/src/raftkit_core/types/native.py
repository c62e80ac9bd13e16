"""What the compiler of native code is told; nothing of it does anything in Python (docs/accelerators.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:
    Kind = TypeVar("Kind")

    def mypyc_attr(**_: Any) -> Callable[[Kind], Kind]:
        """``allow_interpreted_subclasses``: a class of native code that classes of plain Python are derived from."""
        return lambda decorated: decorated
