"""The worked example of ``docs/simulation.md`` passes with raftkit's pytest plugin alone, and its table is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from raftkit_core.testing.simulation.rules import RULES, table

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def test_the_bank_is_tested_under_faults(tmp_path: Path) -> None:
    for name in ("bank.py", "test_bank.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "raftkit_core.testing.pytest_plugin", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_page_lists_every_rule_and_what_looks_at_it() -> None:
    assert table() in (ROOT / "docs" / "simulation.md").read_text()
    for rule in RULES.values():
        for who in rule.by:
            assert not who.startswith("tests/") or (ROOT / who).exists(), f"{rule.id}: {who}"
