"""An environment of its own with a wheel whose engine is native code; skips with words where none can be built."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import clean_commands

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 300
SAME_AS_HERE = ("msgspec", "pluggy", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis")


def why_not() -> str | None:
    """What keeps this machine from compiling; None: nothing."""
    if sys.implementation.name != "cpython" or sys.platform == "win32":
        return "needs CPython and a Unix: the wheel for others is the pure one"
    if shutil.which("uv") is None:
        return "needs uv on PATH: pip install uv"
    compiler = str(sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"needs the C compiler {compiler}: apt-get install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "needs the headers of this Python: apt-get install python3-dev"
    return None


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Raises: AssertionError with all it said."""
    return clean_commands.run(*command, cwd=cwd, seconds=STEP_S, **variables)


class Wheel:
    """A wheel of raftkit-core."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.files = set(archive.namelist())
            name = next(name for name in self.files if name.endswith(".dist-info/METADATA"))
            self.metadata = archive.read(name)

    @property
    def tags(self) -> str:
        return self.path.stem.split("-", 2)[2]

    @property
    def native(self) -> set[str]:
        """Native modules in it, without what their names say of Python and platform."""
        return {name.split(".")[0] for name in self.files if name.endswith((".so", ".pyd"))}


def build(folder: Path, **variables: str) -> Wheel:
    run("uv", "build", "-q", "--no-sources", "--package", "raftkit-core", "-o", folder, **variables)
    (path,) = folder.glob("*.whl")
    return Wheel(path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="session")
def pure_wheel(folder: Path) -> Wheel:
    return build(folder / "pure")


@pytest.fixture(scope="session")
def native_wheel(folder: Path) -> Wheel:
    return build(folder / "native", RAFTKIT_COMPILE="1")


@pytest.fixture(scope="session")
def native_python(folder: Path, native_wheel: Wheel) -> Path:
    """The Python of an environment with the wheel, and with the tools of this one."""
    place = folder / "environment"
    python = place / "bin" / "python"
    run("uv", "venv", "-q", "--python", sys.executable, place)
    tools = [f"{name}=={version(name)}" for name in SAME_AS_HERE]
    run("uv", "pip", "install", "-q", "--python", python, native_wheel.path, *tools)
    return python
