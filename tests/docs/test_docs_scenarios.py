"""Every upstream scenario has its row, and every row a test that exists and runs in the modes it names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scenarios.md"
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
FUNCTIONS = re.compile(r"\((\d+) functions\)")
LATER = "Later upstream additions"


def _rows() -> list[tuple[str, list[str]]]:
    """Section and cells of every row."""
    found: list[tuple[str, list[str]]] = []
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| Upstream"):
            found.append((section, [cell.strip() for cell in line.strip("|").split("|")]))
    return found


@cache
def _tests_of(path: str) -> dict[str, str]:
    """Name and source, decorators included, of every test in a file."""
    source = (ROOT / path).read_text()
    return {
        node.name: "\n".join([*map(ast.unparse, node.decorator_list), ast.unparse(node)])
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_all_114_functions_of_81_files_have_a_row() -> None:
    upstream = [(section, cells[0]) for section, cells in _rows() if section != LATER]
    counts = [FUNCTIONS.search(name) for _, name in upstream]
    assert len(set(upstream)) == 81
    assert sum(1 if count is None else int(count[1]) for count in counts) == 114


def test_no_row_has_an_empty_cell() -> None:
    assert not [cells for _, cells in _rows() if len(cells) != 5 or not all(cells)]


def test_every_test_named_exists() -> None:
    named = REFERENCE.findall(PAGE.read_text())
    assert not [f"{path}::{name}" for path, name in named if name not in _tests_of(path)]
    assert not [cells for _, cells in _rows() if not REFERENCE.search(cells[3])]


def test_a_row_that_names_both_modes_is_shown_in_both() -> None:
    assert {cells[2] for _, cells in _rows()} == {"both", "any"}
    for _, cells in _rows():
        if cells[2] == "both":
            sources = [_tests_of(path)[name] for path, name in REFERENCE.findall(cells[3])]
            assert any("both_modes" in text or "single_term_leader=True" in text for text in sources), cells[1]
