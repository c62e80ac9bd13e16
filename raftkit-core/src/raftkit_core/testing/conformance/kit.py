"""What every kit of the conformance suite shares: a folder per case, the clauses it quotes, the guard of its cases."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.testing.power import UnsyncedFiles
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.ids import DEFAULT_GROUP, NodeId

_CLAUSE_OF_NAME = re.compile(r"test_([a-z]\d+)_")
_CLAUSE_IN_DOC = re.compile(r"^\s*- \*\*([A-Z]\d+)\*\* (.+?)(?=^\s*- \*\*|^\s*$|\Z)", re.MULTILINE | re.DOTALL)


class PowerSwitch(Protocol):
    """How a case takes the power away from a store in this process."""

    def cut(self) -> None:
        """The power goes: whatever is not durable at this moment is lost."""
        ...

    def restore(self) -> None:
        """Called when the old handle is closed: from now on what was durable at the cut is there, and nothing else."""
        ...


class ConformanceKit:
    """Base of the kits. A kit is a class of pytest cases; a subclass named ``Test…`` says what to try them on.

    A case must not be replaced: mark the override ``xfail(reason=…)`` and every reader knows what the adapter cannot
    do. Methods that are no cases are for the subclass to give.
    """

    raftkit_kit = True
    """Tells raftkit's pytest plugin that the ``async def`` cases of this class are its to run."""
    interface: ClassVar[Any]
    """Whose docstring holds the clauses."""
    folder: Path
    """A new, empty folder per case. Adapters made from a ``url`` get it as their ``data_dir``."""
    python_files: bool = False
    """Set it if all writing goes to files below ``folder`` through Python's ``os``: then power losses are simulated."""

    @pytest.fixture(autouse=True)
    def _raftkit_folder(self, tmp_path: Path) -> Iterator[None]:
        with self.in_folder(tmp_path):
            yield

    @contextmanager
    def in_folder(self, folder: Path) -> Iterator[None]:
        """Run one case: pytest does it in a fixture, ``raftkit plugins check`` by itself."""
        self.folder = folder
        yield

    def context(self, node_id: NodeId = "n1", group: str = DEFAULT_GROUP) -> AdapterContext:
        """What adapters are made with and opened with."""
        return AdapterContext(node_id, clock=SystemClock(), group=group, data_dir=getattr(self, "folder", None))

    def power(self) -> AbstractContextManager[PowerSwitch]:
        """Watch the disk from now on, so that the power can be cut. Where nobody can, such cases are skipped."""
        if not self.python_files:
            pytest.skip("this adapter gives no way to cut the power (python_files, or power())")
        return UnsyncedFiles(self.folder)

    def test_no_case_of_the_kit_is_replaced_without_a_reason(self) -> None:
        """An adapter that replaces a case proves nothing: mark it ``xfail(reason=…)`` instead."""
        for name, kit in _cases(type(self)):
            for cls in type(self).__mro__:
                if cls is kit:
                    break
                if name in cls.__dict__ and not _is_excused(cls.__dict__[name]):
                    pytest.fail(
                        f"{cls.__name__}.{name} replaces a case of {kit.__name__}: keep the case, and mark an override "
                        "that cannot pass with @pytest.mark.xfail(reason='…')",
                        pytrace=False,
                    )


def clause_of(case: str) -> str | None:
    """``L4`` for ``test_l4_…``; None for a case of the whole contract."""
    found = _CLAUSE_OF_NAME.match(case)
    return None if found is None else found[1].upper()


def clauses_of(interface: Any) -> dict[str, str]:
    """The numbered clauses of an interface's docstring, each on one line."""
    text = inspect.getdoc(interface) or ""
    return {number: " ".join(clause.split()) for number, clause in _CLAUSE_IN_DOC.findall(text)}


def quote(kit: Any, case: str) -> str | None:
    """The clause that ``case`` of ``kit`` proves, in words: ``L4: …``."""
    clause = clause_of(case)
    text = clauses_of(kit.interface).get(clause) if clause is not None else None
    return None if text is None else f"{clause}: {text}"


def case_names(kit: type[ConformanceKit]) -> list[str]:
    """Every case of a kit, in the order they are written."""
    return list(dict.fromkeys(name for name, _ in _cases(kit)))


def _cases(kit: type[ConformanceKit]) -> Iterator[tuple[str, type[Any]]]:
    """Cases that belong to the toolkit, with the class that holds each."""
    for cls in reversed(kit.__mro__):
        if cls.__module__.startswith("raftkit_core.testing."):
            yield from ((name, cls) for name in cls.__dict__ if name.startswith("test_"))


def _is_excused(replacement: Any) -> bool:
    marks = getattr(replacement, "pytestmark", [])
    return any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)


def same_bytes(found: bytes, expected: bytes) -> bool:
    """Whether two contents are equal. Compared here and not in an ``assert``: on a difference pytest would explain it
    byte by byte where it runs in CI, which takes minutes for a container."""
    return found == expected
