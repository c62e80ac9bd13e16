"""The view a snapshot is written from, while the memory machine goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from raftkit_core.state_machine.kv_rules import Cell
from raftkit_core.state_machine.kv_stream import Row

Cells = dict[str, Cell]
"""Value and revision by key."""


class KvView:
    """Keys and cells as they were when it was made.

    Nothing is copied: whoever changes a cell has the view :meth:`keep` it before. A copy of a million references would
    hold everything up when it is made, and again at the garbage collections after.
    """

    __slots__ = ("__weakref__", "_before", "_cells", "_parts")

    def __init__(self, cells: Cells, parts: list[list[str]]) -> None:
        self._cells = cells
        self._parts = parts
        self._before: Cells = {}
        """What has changed since."""

    def keep(self, cells: Cells, keys: Iterable[str]) -> None:
        """``keys`` of ``cells`` are about to change."""
        if cells is not self._cells:
            return  # the machine was restored, and leaves what is seen here alone
        before = self._before
        for key in keys:
            if key not in before and (cell := cells.get(key)) is not None:
                before[key] = cell

    def rows(self) -> Iterator[Row]:
        """In the order of keys."""
        before, cells = self._before, self._cells
        for key in chain.from_iterable(self._parts):
            yield key, *(before.get(key) or cells[key])
