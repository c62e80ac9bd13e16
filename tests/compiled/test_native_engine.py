"""The engine as native code: built from the same source, and not to be told from the other by what it does.

Run with ``-m compiled -n 0``; without a C compiler all of it is skipped.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from raftkit_core import engine

from .conftest import ROOT, Wheel, run

pytestmark = [pytest.mark.compiled, pytest.mark.timeout(600)]

SOURCE = ROOT / "raftkit-core" / "src"
STRUCTS = {"raftkit_core/engine/commands", "raftkit_core/engine/inflight"}
"""Modules of msgspec Structs, native in their way already."""
NATIVE = {
    path.relative_to(SOURCE).with_suffix("").as_posix()
    for path in (SOURCE / "raftkit_core" / "engine").rglob("*.py")
    if path.stem != "__init__"
} - STRUCTS
DEFAULT = "not process and not soak and not faults and not fuzz"

WHERE = """
import importlib, json, sys
names = json.loads(sys.argv[1])
files = {name: importlib.import_module(name.replace("/", ".")).__file__ for name in names}
from raftkit_core.engine import COMPILED
print(json.dumps({"compiled": COMPILED, "files": files}))
"""

TRACES = """
import json
from raftkit_core.testing.simulation.engine_run import run_seed as on_engines
from raftkit_core.testing.simulation.engine_scenario import PROFILES
from raftkit_core.testing.simulation.runtime_run import run_seed as on_nodes
found = {f"{profile} {seed}": on_engines(seed, profile) for profile in PROFILES for seed in range(4)}
found |= {f"nodes {seed}": on_nodes(seed, seconds=3.0) for seed in range(2)}
print(json.dumps({name: [report.trace_hash, str(report.violation), report.steps] for name, report in found.items()}))
"""

MUTANT = """
from raftkit_core.errors import ConfigError
from raftkit_core.testing.simulation.mutants import applied
try:
    with applied("commit-minus-one"):
        pass
except ConfigError as error:
    print(error.hint)
"""


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_what_mypyc_does_otherwise_is_not_in_the_source(name: str) -> None:
    """What waits or yields within ``try`` may see an exception handled outside raised again; a cause is lost."""
    for node in ast.walk(ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Yield | ast.YieldFrom), node.lineno
        if isinstance(node, ast.Raise) and node.cause is not None:
            assert isinstance(node.cause, ast.Constant), f"line {node.lineno}: set __cause__, then raise"


def test_without_the_switch_the_wheel_is_pure(pure_wheel: Wheel) -> None:
    assert pure_wheel.tags == "py3-none-any"
    assert not pure_wheel.native


def test_with_it_the_wheel_holds_the_same_and_native_modules(pure_wheel: Wheel, native_wheel: Wheel) -> None:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert native_wheel.tags.startswith(f"{python}-{python}-")
    assert native_wheel.native == NATIVE | {"raftkit_core_engine__mypyc"}
    assert native_wheel.metadata == pure_wheel.metadata
    added = native_wheel.files - pure_wheel.files
    assert all(name.endswith((".so", ".pyd")) for name in added), added
    assert pure_wheel.files <= native_wheel.files


def test_every_typed_module_of_the_engine_runs_as_native_code(native_python: Path, tmp_path: Path) -> None:
    found = json.loads(run(native_python, "-c", WHERE, json.dumps(sorted(NATIVE | STRUCTS)), cwd=tmp_path))
    assert found["compiled"] is True
    files: dict[str, str] = found["files"]
    assert all("site-packages" in file for file in files.values())
    assert {name for name, file in files.items() if file.endswith((".so", ".pyd"))} == NATIVE
    assert not engine.COMPILED, "these tests compare it with the interpreted engine"


def test_the_engine_suite_passes_on_it(native_python: Path) -> None:
    words = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider")
    listed = run(sys.executable, *words, "--collect-only", "tests/engine")
    said = run(native_python, *words, "tests/engine").strip().splitlines()[-1]
    assert " passed" in said
    assert said.split()[0] == str(listed.count("::")), said


@pytest.mark.parametrize("suite", ["network", "state_machine", "runtime"])
def test_the_other_suites_pass_on_it(native_python: Path, suite: str) -> None:
    """But for what replaces a part of what is native code here, and says so (``interpreted``)."""
    words = ("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", f"not interpreted and {DEFAULT}")
    assert " passed" in run(native_python, *words, f"tests/{suite}")


def test_one_seed_is_one_trace_on_both(native_python: Path, tmp_path: Path) -> None:
    native = json.loads(run(native_python, "-c", TRACES, cwd=tmp_path))
    interpreted = json.loads(run(sys.executable, "-c", TRACES, cwd=tmp_path))
    assert native == interpreted
    assert all(violation == "None" for _, violation, _ in native.values())


def test_planted_bugs_say_that_they_need_the_other(native_python: Path, tmp_path: Path) -> None:
    assert "pure" in run(native_python, "-c", MUTANT, cwd=tmp_path)
