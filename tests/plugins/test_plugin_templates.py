"""What ``raftkit plugins new`` writes: complete, compiling, and keeping the contract unchanged.

Built, installed and run as wheels they are in ``test_plugin_packages`` (marked ``process``).
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raftkit_cli.failures import CliError
from raftkit_cli.main import cli
from raftkit_cli.scaffold import KINDS, check_name, render, write_package
from raftkit_core import testing
from raftkit_core.testing.run_kit import run_kit, summary


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_complete_and_compiles(kind: str) -> None:
    rendered = render(kind, check_name("two-words"))
    for path, text in rendered.items():
        assert "$" not in text.replace("https://", ""), path
        assert "$" not in path
        if path.endswith(".py"):
            ast.parse(text, path)
    project = tomllib.loads(rendered["pyproject.toml"])
    assert project["project"]["name"] == "raftkit-two-words"
    assert project["project"]["entry-points"]["raftkit"] == {"two-words": "raftkit_two_words.plugin"}
    assert {"src/raftkit_two_words/py.typed", "README.md", "tests/test_conformance.py"} <= set(rendered)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_is_clean(kind: str, tmp_path: Path) -> None:
    write_package(tmp_path / "new", render(kind, check_name("tidy")))
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--line-length",
        "120",
        "--select",
        "E,F,W,UP,B,ASYNC",
    ]
    checked = subprocess.run(
        [*command, str(tmp_path / "new")], capture_output=True, text=True, timeout=150, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_conformance_test_is_about_six_lines() -> None:
    for kind in ("storage", "network"):
        text = render(kind, check_name("short"))["tests/test_conformance.py"]
        assert len([line for line in text.splitlines() if line.strip()]) <= 6


@pytest.mark.parametrize("name", ["", "Upper", "1st", "a--b", "a_b", "-a", "a/b", "../up", "x" * 60, "ünder"])
def test_what_can_be_no_name_is_refused(name: str) -> None:
    with pytest.raises(CliError) as refused:
        check_name(name)
    assert refused.value.hint


@pytest.mark.parametrize("name", ["sqlite", "raftkit-sqlite", "core", "memory", "kv"])
def test_names_of_raftkits_own_are_refused(name: str) -> None:
    with pytest.raises(CliError, match="raftkit's own"):
        check_name(name)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    runner = CliRunner()
    words = ["plugins", "new", "storage", "mine", "--dir", str(tmp_path)]
    assert runner.invoke(cli, words).exit_code == 0
    readme = tmp_path / "raftkit-mine" / "README.md"
    readme.write_text("my own words")
    assert runner.invoke(cli, words).exit_code == 9
    assert readme.read_text() == "my own words"


# --- Installed as an editable install would leave them ------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Write a package and its metadata where Python looks. Gives its module's name."""
    before = set(sys.modules)

    def install(kind: str, name: str) -> str:
        names = check_name(name)
        folder = tmp_path / names.distribution
        write_package(folder, render(kind, names))
        source = folder / "src"
        info = source / f"{names.module}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {names.distribution}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[raftkit]\n{name} = {names.module}.plugin\n")
        monkeypatch.syspath_prepend(str(source))
        known = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", str(source) if not known else f"{source}{os.pathsep}{known}")
        return names.module

    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _failures(kit: type[Any], **given: Any) -> list[str]:
    results = run_kit(type("Check", (kit,), given), only=lambda name: "ten_thousand" not in name)
    assert sum(result.outcome == "passed" for result in results) > 30, summary(results)
    return [f"{result.name}: {result.text}" for result in results if result.outcome == "failed"]


def test_the_storage_keeps_the_contract_through_power_losses_and_kills(installed: Callable[[str, str], str]) -> None:
    installed("storage", "demofile")
    assert _failures(testing.LogStorageConformance, url="demofile:n1.log", python_files=True) == []


def test_the_network_keeps_the_contract(installed: Callable[[str, str], str]) -> None:
    installed("network", "demotcp")
    assert _failures(testing.NetworkConformance, url="demotcp://127.0.0.1:0") == []


def test_the_network_listens_on_loopback_only_unless_told(installed: Callable[[str, str], str]) -> None:
    from raftkit_core.clock import SystemClock
    from raftkit_core.errors import ConfigError
    from raftkit_core.plugins import load_plugins
    from raftkit_core.types.adapter import AdapterContext

    installed("network", "demotcp")
    plugins, context = load_plugins(), AdapterContext("n1", clock=SystemClock())
    with pytest.raises(ConfigError, match="could act as a peer"):
        plugins.network("demotcp://0.0.0.0:7401", context)
    plugins.network("demotcp://0.0.0.0:7401?insecure=true&advertise=demotcp://n1:7401", context)
    api = plugins.network("demotcp://127.0.0.1:7401?client=http://127.0.0.1:8401", context)
    assert (api.advertised().peer, api.advertised().client) == ("demotcp://127.0.0.1:7401", "http://127.0.0.1:8401")


def test_check_runs_the_kit_on_everything_a_plugin_provides(installed: Callable[[str, str], str]) -> None:
    installed("storage", "demofile")
    result = CliRunner().invoke(cli, ["plugins", "check", "raftkit-demofile", "-k", "test_l3"])
    assert result.exit_code == 0, result.output
    assert "raftkit-conformance 1: storage demofile:check: " in result.output


def test_check_says_where_only_the_author_knows_the_commands(installed: Callable[[str, str], str]) -> None:
    installed("state-machine", "demobank")
    result = CliRunner().invoke(cli, ["plugins", "check", "demobank", "-k", "test_m1"])
    assert result.exit_code == 0, result.output
    assert "skipped" in result.output


def test_a_broken_plugin_of_a_third_party_cannot_stop_a_verb(
    installed: Callable[[str, str], str], tmp_path: Path
) -> None:
    module = installed("storage", "demofile")
    (tmp_path / "raftkit-demofile" / "src" / module / "plugin.py").write_text("raise SystemExit('gone')\n")
    listed = CliRunner().invoke(cli, ["plugins", "list"])
    assert listed.exit_code == 0
    assert "demofile is broken" in listed.output
    status = CliRunner().invoke(cli, ["status", "-e", "http://127.0.0.1:1", "--timeout", "1s"])
    assert status.exit_code == 4, status.output  # nobody answers there, and that is all
    check = CliRunner().invoke(cli, ["plugins", "check", "demofile"])
    assert check.exit_code == 9
