"""The five packages agree with each other, and keep away from what they promised to keep away from."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import raftkit_core

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("raftkit-*/pyproject.toml"))
ADAPTERS = ["http", "redis", "sqlite"]
FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile"}


def project(package: Path) -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    return table


def test_there_are_five_packages_with_one_version() -> None:
    assert [package.name for package in PACKAGES] == [
        "raftkit-cli",
        "raftkit-core",
        "raftkit-http",
        "raftkit-redis",
        "raftkit-sqlite",
    ]
    assert len({project(package)["version"] for package in PACKAGES}) == 1


def test_everybody_requires_the_core_of_this_minor_version() -> None:
    version = project(PACKAGES[0])["version"]
    minor = ".".join(str(version).split(".")[:2])
    for package in PACKAGES:
        metadata = project(package)
        extras = metadata.get("optional-dependencies", {})
        assert isinstance(extras, dict)
        required = [*metadata["dependencies"], *(one for extra in extras.values() for one in extra)]  # type: ignore[misc]
        ours = [one for one in required if one.startswith("raftkit-")]
        assert package.name == "raftkit-core" or any(one.startswith("raftkit-core") for one in ours)
        assert all(one.endswith(f"~={minor}.0") for one in ours), ours


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(ROOT.glob("raftkit-*/src/**/*.py")):
        yield path, ast.parse(path.read_text())


def test_nothing_pickles_or_evaluates() -> None:
    found = []
    for path, tree in sources():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.func.id}()")
            found += [
                f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"  # type: ignore[attr-defined]
                for name in names
                if name.partition(".")[0] in FORBIDDEN_MODULES
            ]
    assert not found


def test_every_package_is_typed_and_has_a_readme() -> None:
    for package in PACKAGES:
        name = package.name.replace("-", "_")
        assert (package / "src" / name / "py.typed").exists()
        assert len((package / "README.md").read_text().split("\n")) > 8, package.name


def test_public_names_of_the_core_are_the_stored_ones() -> None:
    stored = Path(__file__).with_name("public_names.txt").read_text().split()
    assert list(raftkit_core.__all__) == stored, "a name that goes or comes is a decision: change the list with it"


def imported_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.rpartition("MODULES")[2].split()}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_plugin_module_of_an_adapter_is_light(adapter: str) -> None:
    heavy = {"aiohttp", "redis", "aiosqlite", "sqlite3", "prometheus_client", "asyncio", "click", "rich"}
    assert not imported_by(f"import raftkit_{adapter}.plugin") & heavy


def test_hookimpl_costs_pluggy_and_nothing_of_weight() -> None:
    modules = imported_by("from raftkit_core import hookimpl")
    assert "pluggy" in modules
    assert not modules & {"msgspec", "asyncio", "click", "aiohttp", "sqlite3"}


@pytest.mark.parametrize("package", ["core", *ADAPTERS, "cli"])
def test_importing_a_package_loads_no_driver(package: str) -> None:
    assert not imported_by(f"import raftkit_{package}") & {"aiohttp", "redis", "aiosqlite", "rich", "prometheus_client"}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    machine = re.compile("|".join(["/ro" + "ot/", "/ho" + "me/[a-z]", "/wo" + "rk/", "/Us" + "ers/[a-z]"]))
    registry = re.compile("|".join(["pypi\\." + "org", "python" + "hosted", "index-" + "url", "registry\\." + "npmjs"]))
    found = []
    for path in tracked_files():
        text = path.read_text(errors="replace")
        for line_number, line in enumerate(text.split("\n"), 1):
            if machine.search(line) or registry.search(line):
                found.append(f"{path.relative_to(ROOT)}:{line_number}: {line.strip()[:80]}")
    assert not found


def test_no_page_tells_anybody_to_install_somebody_elses_package() -> None:
    wrong = re.compile("pip in" + r"stall (?:-\S+ )*['\"]?raftkit(?![-\w])")
    assert not [
        str(path.relative_to(ROOT)) for path in tracked_files() if wrong.search(path.read_text(errors="replace"))
    ]


def test_the_top_level_holds_what_it_should_and_nothing_else() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    files = {
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "pyproject.toml",
        ".gitignore",
    }
    assert top == files | {package.name for package in PACKAGES} | {"tests", "docs", ".ci"}
