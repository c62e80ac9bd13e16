"""The author's path from nothing to a running package, with wheels in an empty environment (about two minutes)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from clean_commands import run

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 240
OURS = ("core", "sqlite", "http", "cli")


class Workshop:
    """A folder with our wheels, and one environment that knows nothing of this checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.python = folder / "env" / "bin" / "python"

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Raises: AssertionError with all it said."""
        return run(*command, cwd=cwd or self.folder, seconds=STEP_S)

    def raftkit(self, *words: str) -> str:
        return self.run(self.python.parent / "raftkit", *words)

    def make(self, kind: str, name: str) -> Path:
        """Scaffold, build, install the wheel with what its tests need. Gives the package's folder."""
        self.raftkit("plugins", "new", kind, name, "--dir", str(self.folder))
        package = self.folder / f"raftkit-{name}"
        self.run("uv", "build", "-q", "--wheel", "-o", self.wheels, cwd=package)
        self.install(f"raftkit-{name}[test]")
        # Only the tests stay: what is tested is what was installed.
        shutil.rmtree(package / "src")
        return package

    def install(self, *requirements: str) -> None:
        self.run("uv", "pip", "install", "-q", "--python", self.python, "--find-links", self.wheels, *requirements)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    if shutil.which("uv") is None or sys.platform == "win32":
        pytest.skip("needs uv on PATH")
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    for name in OURS:
        made.run("uv", "build", "-q", "--wheel", "--package", f"raftkit-{name}", "-o", made.wheels, cwd=ROOT)
    made.run("uv", "venv", "-q", "--python", sys.executable, made.folder / "env")
    made.install("raftkit-cli[sqlite,http]")
    return made


def test_a_storage_is_built_installed_proved_and_survives_the_demo(workshop: Workshop) -> None:
    package = workshop.make("storage", "segments")
    assert " passed" in workshop.run(workshop.python, "-m", "pytest", "-q", cwd=package)
    assert "PASS" in workshop.raftkit("demo", "--storage", "segments:")
    assert "raftkit-conformance 1: storage segments:check" in workshop.raftkit(
        "plugins", "check", "segments", "-k", "_l4"
    )


def test_a_network_is_built_installed_proved_and_carries_the_demo(workshop: Workshop) -> None:
    package = workshop.make("network", "wires")
    assert " passed" in workshop.run(workshop.python, "-m", "pytest", "-q", cwd=package)
    assert "PASS" in workshop.raftkit("demo", "--network", "wires:")


def test_a_state_machine_is_built_installed_proved_and_its_example_runs(workshop: Workshop) -> None:
    package = workshop.make("state-machine", "ledger")
    assert " passed" in workshop.run(workshop.python, "-m", "pytest", "-q", cwd=package)
    told = workshop.run(workshop.python, "examples/three_nodes.py", package / "data", cwd=package)
    assert told.splitlines()[-1] == "nothing was lost"
    assert told.count("alice has 70, bob has 30") == 3
