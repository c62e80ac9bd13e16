"""Builds the engine as native modules when ``RAFTKIT_COMPILE=1`` is set; without it the wheel is pure Python.

Same source, same version: mypyc compiles the typed modules of ``raftkit_core/engine`` (docs/accelerators.md). Their
``.py`` files stay in the wheel beside the native ones; Python prefers the latter.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "RAFTKIT_COMPILE"
TOOLS = ["mypy==2.4.1", "setuptools>=77"]
"""What compiles. The engine's own imports must be there too, so that their types are known."""
INTERPRETED = "msgspec.Struct"
"""A module that defines Structs stays as it is: their metaclass is native code already, and mypyc would drop the
keywords of their classes, ``frozen`` among them."""
GROUP = "raftkit_core_engine"
"""Name of the one shared library that holds the code of all compiled modules."""


class CompiledEngine(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        if not _is_wanted():
            return []
        runtime: list[str] = self.metadata.core.dependencies
        return [*TOOLS, *runtime]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Also for an editable installation, which has nothing to compile: its source may change."""
        if self.target_name != "wheel" or version == "editable" or not _is_wanted():
            return
        if platform.python_implementation() != "CPython":
            raise RuntimeError(f"{SWITCH} needs CPython; the pure wheel runs everywhere: unset {SWITCH}")
        self._place = tempfile.mkdtemp(prefix="raftkit-engine-")
        for library in compile_engine(Path(self.root) / "src", Path(self._place)):
            build_data["force_include"][str(library)] = library.relative_to(self._place).as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_place"):
            shutil.rmtree(self._place)


def _is_wanted() -> bool:
    return os.environ.get(SWITCH, "") not in ("", "0")


def modules(source: Path) -> list[str]:
    """What is compiled, relative to ``source``."""
    return [
        path.relative_to(source).as_posix()
        for path in sorted((source / "raftkit_core" / "engine").rglob("*.py"))
        if path.name != "__init__.py" and INTERPRETED not in path.read_text(encoding="utf-8")
    ]


def compile_engine(source: Path, place: Path) -> list[Path]:
    """Compile the engine of ``source`` in the empty folder ``place``; gives the native modules, placed as packages."""
    shutil.copytree(source / "raftkit_core", place / "raftkit_core", ignore=shutil.ignore_patterns("__pycache__"))
    # In a process of its own: the compiler reads and writes in the current folder.
    subprocess.run([sys.executable, __file__, *modules(source)], cwd=place, check=True)
    shutil.rmtree(place / "build")
    return sorted(path for path in place.rglob("*") if path.suffix in (".so", ".pyd"))


def _compile_here(names: list[str]) -> None:
    from mypyc.build import mypycify
    from setuptools import setup

    options = ["--config-file=", "--strict", "--follow-imports=silent", *names]
    extensions = mypycify(options, group_name=GROUP, opt_level="3", debug_level="0")
    setup(name=GROUP, packages=[], ext_modules=extensions, script_args=["--quiet", "build_ext", "--inplace"])


if __name__ == "__main__":
    _compile_here(sys.argv[1:])
