"""Pages that name tests in their tables: what is named there, and what exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "raftkit-core/src/raftkit_core/testing"
REFERENCE = re.compile(r"`((?:tests|conformance)/[\w/]+\.py)::(test_\w+)`")
"""``conformance/…`` is the public kit."""


@cache
def names_in(path: str) -> set[str]:
    """The tests of a file, those in classes included."""
    file = (KIT if path.startswith("conformance/") else ROOT) / path
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def missing(page: Path) -> list[str]:
    """Tests that ``page`` names and nobody wrote, and references that are not written as such."""
    text = page.read_text()
    named = REFERENCE.findall(text)
    wrong = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    if len(named) != text.count("::test_"):
        wrong.append("a reference that is not written as `path::test_name`")
    return wrong
