"""The tutorial ``docs/tutorial-adapter.md`` is done here, edit by edit, and ends where it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.scaffold import check_name, render, write_package

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorial-adapter.md").read_text()
FILES = dict(re.findall(r"^```py\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
STORAGE = "src/raftkit_shelf/log_storage.py"
LIMIT_S = 150

Tested = Callable[..., str]


class Package:
    """``raftkit-shelf`` as an editable install would leave it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_package(folder, render("storage", check_name("shelf")))
        info = folder / "src" / "raftkit_shelf-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raftkit-shelf\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[raftkit]\nshelf = raftkit_shelf.plugin\n")

    def write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text)

    def apply(self, diff: str) -> None:
        """Replace each run of ``-`` lines by the ``+`` lines after it; what is to go must stand there once."""
        path = self.folder / STORAGE
        text = path.read_text()
        for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)*)", diff, re.MULTILINE):
            before = "".join(line[1:] for line in old.splitlines(keepends=True))
            after = "".join(line[1:] for line in new.splitlines(keepends=True))
            place = re.compile("^" + re.escape(before), re.MULTILINE)
            assert len(place.findall(text)) == 1, f"{before!r} stands {len(place.findall(text))} times in {STORAGE}"
            text = place.sub(lambda _, after=after: after, text)
        path.write_text(text)

    def pytest(self, *arguments: str, fails: bool = False) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAFTKIT_", "PYTEST"))}
        environment["PYTHONPATH"] = str(self.folder / "src")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert (done.returncode == 1) is fails, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path / "raftkit-shelf")


def test_the_page_has_what_is_done_here() -> None:
    assert set(FILES) == {"src/raftkit_shelf/plugin.py", "tests/test_options.py"}
    assert len(DIFFS) == 4


@pytest.mark.parametrize(
    ("number", "cases", "clause"),
    [
        (0, ["test_l2_a_vote_survives_a_power_loss", "test_l2_entries_survive_a_power_loss"], "L2: Returning means"),
        (1, ["test_l4_the_first_entry_of_an_empty_log_has_index_zero"], "L4: "),
        (2, ["test_l7_after_a_failed_write_every_later_one_is_refused"], "L7: A failed write leaves"),
    ],
)
def test_each_mistake_fails_the_cases_of_its_clause(
    package: Package, number: int, cases: list[str], clause: str
) -> None:
    package.apply(DIFFS[number])
    told = package.pytest("-k", " or ".join(cases), fails=True)
    for case in cases:
        assert f"::{case}" in told
    assert clause in told


def test_the_option_works_and_the_kit_passes_with_it(package: Package) -> None:
    package.apply(DIFFS[3])
    for path, text in FILES.items():
        package.write(path, text)
    told = package.pytest("tests/test_options.py", "-k", "not ten_thousand and not kill_9")
    assert " passed" in told


def test_the_check_of_the_tutorial_is_one_the_doctor_takes(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    package.write("src/raftkit_shelf/plugin.py", FILES["src/raftkit_shelf/plugin.py"])
    monkeypatch.syspath_prepend(str(package.folder / "src"))
    from raftkit_core.plugins import load_plugins

    checks: list[Any] = [check for check in load_plugins().doctor_checks() if check.name.startswith("shelf")]
    assert [finding.level for check in checks for finding in check.run(None)] == ["ok"]
    for name in [name for name in sys.modules if name.startswith("raftkit_shelf")]:
        del sys.modules[name]
