"""Every fault has its row, every row its tests, and every test named exists."""

from __future__ import annotations

import re

import pytest
from named_tests import REFERENCE, ROOT, missing

PAGE = ROOT / "docs" / "faults.md"
ROWS = {"D": 18, "R": 11, "G": 12}


def rows() -> dict[str, list[str]]:
    """Number of the fault, and the cells of its row."""
    lines = (line for line in PAGE.read_text().splitlines() if re.match(r"\| [A-Z]\d+ ", line))
    return {line.split()[1]: [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines}


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_every_fault_has_a_row_with_words_and_tests(kind: str) -> None:
    found = {number: cells for number, cells in rows().items() if number.startswith(kind)}
    assert list(found) == [f"{kind}{number}" for number in range(1, ROWS[kind] + 1)]
    for number, cells in found.items():
        assert len(cells) == 3, number
        assert all(cells), number
        assert REFERENCE.search(cells[2]), f"no test shows {number}"


def test_every_test_that_shows_a_fault_exists() -> None:
    assert not missing(PAGE)
