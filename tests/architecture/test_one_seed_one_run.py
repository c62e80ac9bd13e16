"""What would let chance into a simulation: core takes time and randomness as arguments, and keeps no order in a set."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CORE = Path(__file__).resolve().parents[2] / "raftkit-core/src/raftkit_core"
MAY = {
    "clock.py": {"time"},  # the one place
    "plugins/trace.py": {"time"},  # how long hooks took, for people
    "network/tokens.py": {"secrets", "time"},  # makes secrets and waits for a lock, at the command line
    "raft.py": {"random"},  # the default of an argument
    "assembly.py": {"random"},
    "runtime/opening.py": {"random"},  # the type of an argument
    "runtime/node_parts.py": {"random"},
}
SOURCES = {"time", "random", "secrets", "uuid", "datetime"}
CALLS = {"urandom", "getrandom", "as_completed"}
UNORDERED = re.compile(r"\b(?:frozen)?set\[(?:asyncio\.(?:Task|Future|Handle|TimerHandle)|Callable)")


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted(CORE.rglob("*.py")):
        name = path.relative_to(CORE).as_posix()
        if not name.startswith("testing/"):
            yield name, path.read_text()


def test_time_and_randomness_come_as_arguments() -> None:
    for name, text in modules():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Attribute):
                assert node.attr not in CALLS, f"{name}:{node.lineno} calls {node.attr}"
        assert imported & SOURCES <= MAY.get(name, set()), f"{name} imports {sorted(imported & SOURCES)}"


def test_random_is_used_through_an_instance() -> None:
    """``random.random()`` draws from a stream everybody shares."""
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "random", f"{name}:{node.lineno}: random.{node.attr}"


def test_tasks_and_callbacks_are_kept_in_order() -> None:
    """A set of objects is walked in the order of their addresses, which differs from process to process; so is the set
    that ``asyncio.wait`` gives."""
    for name, text in modules():
        assert not UNORDERED.search(text), f"{name}: keep them in a dict"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Await):
                call = node.value.value
                used = isinstance(call, ast.Call) and ast.unparse(call.func) == "asyncio.wait"
                assert not used, f"{name}:{node.lineno} uses the sets asyncio.wait gives"
