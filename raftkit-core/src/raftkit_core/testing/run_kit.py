"""Running a kit without pytest's machinery: what ``raftkit plugins check`` does, and what proves the kit itself.

pytest must be installed (the cases use it), but nothing is collected: each case is run, one after the other, in a new
folder and a new event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from raftkit_core.testing.async_tests import in_a_loop
from raftkit_core.testing.conformance.kit import ConformanceKit, case_names, clause_of, quote

CASE_LIMIT_S = 60.0

Outcome = Literal["passed", "failed", "skipped"]


class CaseResult(msgspec.Struct, frozen=True):
    """One case. ``clause`` is what it proves, in words; ``text`` why it failed or was skipped."""

    name: str
    outcome: Outcome
    clause: str | None = None
    text: str = ""
    seconds: float = 0.0

    @property
    def case(self) -> str:
        """The name without its parameters."""
        return self.name.partition("[")[0]

    @property
    def number(self) -> str | None:
        """The clause's number: ``L4``."""
        return clause_of(self.name)


def run_kit(
    kit: type[ConformanceKit],
    *,
    only: Callable[[str], bool] = lambda name: True,
    told: Callable[[CaseResult], None] = lambda result: None,
) -> list[CaseResult]:
    """Run every case of ``kit``, each on an instance of its own. ``told`` hears of each as it ends."""
    results = []
    for name in case_names(kit):
        if only(name):
            for suffix, arguments in _variants(inspect.getattr_static(kit, name)):
                result = _run(kit, name, suffix, arguments)
                told(result)
                results.append(result)
    return results


def summary(results: Sequence[CaseResult]) -> str:
    """``118 passed, 3 skipped, 1 failed``."""
    counts = [(outcome, sum(result.outcome == outcome for result in results)) for outcome in _OUTCOMES]
    return ", ".join(f"{count} {outcome}" for outcome, count in counts if count or outcome == "passed")


_OUTCOMES: tuple[Outcome, ...] = ("passed", "skipped", "failed")


def _run(kit: type[ConformanceKit], name: str, suffix: str, arguments: dict[str, Any]) -> CaseResult:
    began = time.monotonic()
    outcome, text = _outcome(kit, name, arguments)
    return CaseResult(name + suffix, outcome, quote(kit, name), text, time.monotonic() - began)


def _outcome(kit: type[ConformanceKit], name: str, arguments: dict[str, Any]) -> tuple[Outcome, str]:
    instance = kit()
    case = getattr(instance, name)
    try:
        with tempfile.TemporaryDirectory(prefix="raftkit-check-") as folder, instance.in_folder(Path(folder)):
            if inspect.iscoroutinefunction(case):
                in_a_loop(_limited(case), virtual=_is_virtual(kit))(**arguments)
            else:
                case(**arguments)
    except pytest.skip.Exception as skipped:
        return "skipped", str(skipped.msg)
    except pytest.fail.Exception as failed:
        return "failed", str(failed.msg)
    except Exception as error:
        expected = next((mark for mark in getattr(case, "pytestmark", []) if mark.name == "xfail"), None)
        if expected is not None:
            return "skipped", str(expected.kwargs.get("reason", "expected to fail"))
        return "failed", _explained(error)
    return "passed", ""


def _limited(case: Callable[..., Any]) -> Callable[..., Any]:
    async def limited(**arguments: Any) -> None:
        async with asyncio.timeout(CASE_LIMIT_S):
            await case(**arguments)

    return limited


def _is_virtual(kit: type[ConformanceKit]) -> bool:
    return any(mark.name == "virtual_time" for mark in getattr(kit, "pytestmark", []))


def _explained(error: Exception) -> str:
    """The line of the case that failed, and the error: asserts are not rewritten here, so the line says what was."""
    frames = traceback.extract_tb(error.__traceback__)
    cases = [frame for frame in frames if "raftkit_core/testing/conformance" in frame.filename.replace("\\", "/")]
    frame = (cases or frames)[-1]
    told = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}: {told}"


def _variants(case: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A case's parameters, as ``pytest.mark.parametrize`` gives them."""
    marks = [mark for mark in getattr(case, "pytestmark", []) if mark.name == "parametrize"]
    for chosen in itertools.product(*(list(_values(*mark.args[:2])) for mark in marks)):
        arguments = {name: value for part in chosen for name, value in part.items()}
        shown = "-".join(_shown(value) for value in arguments.values())
        yield (f"[{shown}]" if arguments else ""), arguments


def _values(names: str | Sequence[str], values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for value in values:
        yield dict(zip(listed, [value] if len(listed) == 1 else value, strict=True))


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float | bool) else type(value).__name__
