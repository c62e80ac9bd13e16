"""Every network fault and every threat has its row, every row its defence and its tests, and each test exists."""

from __future__ import annotations

import re

import pytest
from named_tests import REFERENCE, ROOT, missing

PAGE = ROOT / "docs" / "security.md"
ROWS = {"N": range(9, 18), "T": range(1, 30)}


def rows() -> dict[str, list[str]]:
    lines = (line for line in PAGE.read_text().splitlines() if re.match(r"\| [NT]\d+ ", line))
    return {line.split()[1]: [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines}


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_every_row_is_there_with_its_defence_and_a_test(kind: str) -> None:
    found = {number: cells for number, cells in rows().items() if number.startswith(kind)}
    assert list(found) == [f"{kind}{number}" for number in ROWS[kind]]
    for number, cells in found.items():
        assert len(cells) == 3, number
        assert all(cells), number
        assert REFERENCE.search(cells[2]), f"no test shows {number}"


def test_every_test_that_shows_a_defence_exists() -> None:
    assert not missing(PAGE)


def test_what_no_test_can_show_is_a_procedure() -> None:
    procedure = PAGE.read_text().partition("\n## Dependencies\n")[2]
    assert "pip-audit" in procedure
