"""Every Python block of README.md and ``docs/``, and every example, runs.

Each in a process and folder of its own; fixed ports are replaced by free ones. A block that cannot run here says so,
and why, in the line above it: ``*Not run by the tests: …*``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from raftkit_core.testing.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"\*Not run by the tests: .+\*\s*\Z")
ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")
LIMIT_SECONDS = 150


def pages() -> list[Path]:
    return [
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def blocks(language: str) -> list[tuple[str, str]]:
    """``(page:line, text)`` of every fenced block in ``language``."""
    found = []
    for page in pages():
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match["language"] == language and not NOT_RUN.search(text[: match.start()].rstrip("\n")):
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{page.relative_to(ROOT)}:{line}", textwrap.dedent(match["body"])))
    return found


def with_free_ports(program: str) -> str:
    """Every ``127.0.0.1:PORT`` of the program on a port that is free now."""
    used = sorted(set(ADDRESS.findall(program)))
    free = dict(zip(used, free_ports(len(used)), strict=True))
    return ADDRESS.sub(lambda found: f"127.0.0.1:{free[found[1]]}", program)


def run(program: str, folder: Path) -> str:
    path = folder / "program.py"
    path.write_text(with_free_ports(program))
    done = subprocess.run(
        [sys.executable, "-W", "error", path.name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(EXAMPLES)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PYTHON = blocks("python")


@pytest.mark.parametrize("program", [text for _, text in PYTHON], ids=[where for where, _ in PYTHON])
def test_the_block_runs(program: str, tmp_path: Path) -> None:
    run(program, tmp_path)


def test_the_readme_has_both_embedding_programs() -> None:
    programs = "\n".join(text for where, text in PYTHON if where.startswith("README.md"))
    assert 'storage="memory:"' in programs
    assert 'storage="sqlite:' in programs
    assert "http://" in programs


def test_the_durable_program_of_the_readme_counts_on_after_a_restart(tmp_path: Path) -> None:
    (program,) = [text for where, text in PYTHON if where.startswith("README.md") and "sqlite:" in text]
    assert "start number 1;" in run(program, tmp_path)
    assert "start number 2;" in run(program, tmp_path)
