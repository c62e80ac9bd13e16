"""Every rule has its row, every row its tests, and every test named exists."""

from __future__ import annotations

import re

import msgspec
from named_tests import REFERENCE, ROOT, missing

from raftkit_core.config import Config
from raftkit_core.runtime.wait import Wait

PAGE = ROOT / "docs" / "rules.md"
HEADER = re.compile(r"\| (openraft|design rule|message) \|")


def _rows() -> list[tuple[str, list[str]]]:
    """Section and cells of every row of every table."""
    found: list[tuple[str, list[str]]] = []
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and not HEADER.match(line):
            found.append((section, [cell.strip() for cell in line.strip("|").split(" | ")]))
    return found


def _section(name: str) -> str:
    return "\n".join(" | ".join(cells) for section, cells in _rows() if section == name)


def test_no_row_is_empty() -> None:
    rows = _rows()
    assert len(rows) > 180
    for section, cells in rows:
        assert len(cells) == (2 if section.startswith("Design rules") and "may leave" not in section else 3), cells
        assert all(cells), cells
        assert REFERENCE.search(cells[-1]), f"no test shows {cells[0]}"


def test_every_test_that_shows_a_rule_exists() -> None:
    assert not missing(PAGE)


def test_every_setting_openraft_has_and_every_condition_of_wait_has_a_row() -> None:
    settings = _section("openraft 0.9.22: `Config`")
    ours = {field.name for field in msgspec.structs.fields(Config)}
    shared = {name for name in re.findall(r"`(\w+)`", settings) if name in ours}
    assert {"cluster", "heartbeat_interval_ms", "purge_batch_size", "enable_tick"} <= shared
    conditions = _section("openraft 0.9.22: metrics and `Wait`")
    assert not [name for name in vars(Wait) if not name.startswith("_") and f"`{name}" not in conditions]


def test_all_eight_changes_and_all_rows_of_what_may_leave_when_are_there() -> None:
    rows = _rows()
    assert sum(section == "openraft 0.9.22: `ChangeMembers`" for section, _ in rows) == 8
    assert sum(section == "Design rules: what may leave when" for section, _ in rows) == 10
