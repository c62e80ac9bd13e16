"""``raftkit plugins show, trace, check`` and the traces of other verbs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from raftkit_core import hookimpl

CARELESS = """
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage

DISKS = {}

class Careless(MemoryLogStorage):
    def __init__(self, context):
        super().__init__(DISKS.setdefault(context.data_dir, MemoryDisk()))

    def _check_batch(self, batch):
        pass
"""


class _Broken:
    """A plugin from a later raftkit."""

    raftkit_api = 99

    @hookimpl
    def raftkit_register_storage(self, registry: Any) -> None:
        raise AssertionError("must not be called")


def test_show_tells_everything_about_one_plugin(raftkit: Any) -> None:
    data = raftkit.json("plugins", "show", "raftkit-sqlite")["data"]
    assert (data["name"], data["api"], data["state"]) == ("sqlite", 1, "active")
    assert "sqlite" in data["provides"]["storage"]
    assert "raftkit_register_storage" in raftkit("plugins", "show", "sqlite").stdout


def test_show_of_a_stranger_lists_what_is_known(raftkit: Any) -> None:
    document = raftkit.json("plugins", "show", "nonsense", code=3)
    assert "core" in document["error"]["message"]


def test_trace_tells_each_import_and_each_hook_call(raftkit: Any) -> None:
    steps = raftkit.json("plugins", "trace")["data"]["steps"]
    assert any(step["step"] == "import raftkit_core.plugins.builtin" for step in steps)
    registered = [step["result"] for step in steps if step["step"] == "raftkit_register_storage"]
    assert any("storage:memory" in result for result in registered)


def test_the_environment_traces_any_verb_on_standard_error(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTKIT_TRACE_PLUGINS", "1")
    result = raftkit("status", "--json")
    assert "raftkit_register_clients -> clients:fake" in result.stderr
    assert "raftkit_register_clients" not in result.stdout


def test_check_of_a_right_adapter_is_a_line_that_can_be_quoted(raftkit: Any) -> None:
    result = raftkit("plugins", "check", "sqlite:n1.db", "-k", "test_l5")
    assert result.exit_code == 0
    assert "raftkit-conformance 1: storage sqlite:n1.db: " in result.stdout
    assert "failed" not in result.stdout


def test_check_of_a_wrong_adapter_exits_5_and_quotes_the_clause(
    raftkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "careless_storage.py").write_text(CARELESS)
    monkeypatch.syspath_prepend(str(folder))
    words = ("plugins", "check", "import:careless_storage:Careless", "-k", "test_l4")
    result = raftkit(*words)
    assert result.exit_code == 5
    assert "L4: ``entries[0].index`` is the last index plus one" in result.stderr
    document = raftkit.json(*words, code=5)
    failed = [case for case in document["data"]["checks"][0]["cases"] if case["outcome"] == "failed"]
    assert {case["clause"] for case in failed} == {"L4"}


def test_check_names_what_it_did_not_try_and_tries_power_losses_when_told_that_it_can(
    raftkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that never syncs passes every case that only kills the process."""
    example = (Path(__file__).parents[2] / "docs/examples/onefile_storage.py").read_text()
    (tmp_path / "hasty_storage.py").write_text(re.sub(r"os\.fsync\(.*\)", "pass", example))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("plugins", "check", "onefile:n1.log", "-k", "test_l2_entries_survive_a_power_loss")
    raftkit.plugins = (importlib.import_module("hasty_storage"),)
    result = raftkit(*words)
    assert result.exit_code == 0
    assert "not tried  this adapter gives no way to cut the power" in result.stdout
    assert "(L2)" in result.stdout
    assert "--python-files" in result.stdout
    assert "L2: Returning means durable" in raftkit(*words, "--python-files").stderr


def test_check_of_no_case_is_no_pass(raftkit: Any) -> None:
    error = raftkit.json("plugins", "check", "sqlite", "-k", "nonsense", code=2)["error"]
    assert error["message"] == "no case has 'nonsense' in its name"


def test_check_never_writes_to_a_place_that_may_hold_something(raftkit: Any, tmp_path: Path) -> None:
    document = raftkit.json("plugins", "check", f"sqlite://{tmp_path}/n1.db", code=9)
    assert "{case}" in document["error"]["hint"]
    assert not (tmp_path / "n1.db").exists()
    raftkit.json("plugins", "check", f"sqlite://{tmp_path}/{{case}}.db", "-k", "test_l3_truncating")
    assert len(list(tmp_path.glob("raftkit-check-*.db"))) > 3


def test_check_of_nothing_says_what_to_do(raftkit: Any) -> None:
    document = raftkit.json("plugins", "check", "nonsense:", code=3)
    assert "pip install -e ." in document["error"]["hint"]


def test_a_plugin_of_a_later_api_is_broken_with_words_and_stops_nothing(raftkit: Any) -> None:
    from raftkit_core.errors import BrokenPlugin
    from raftkit_core.plugins import load_plugins

    with pytest.raises(BrokenPlugin, match="written for plugin API 99, this raftkit-core offers 1"):
        load_plugins([_Broken()])


def state_of(raftkit: Any, name: str, *words: str) -> str:
    listed = raftkit.json("plugins", "list", *words)["data"]["plugins"]
    return str(next(plugin["state"] for plugin in listed if plugin["name"] == name))


@pytest.mark.parametrize("table", ['disable = ["sqlite"]', 'allow = ["http"]'])
def test_a_configuration_chooses_plugins_for_every_verb(raftkit: Any, table: str) -> None:
    text = f"[plugins]\n{table}\n"
    Path("chosen.toml").write_text(text)
    assert state_of(raftkit, "sqlite") != "disabled"
    assert state_of(raftkit, "sqlite", "-c", "chosen.toml") == "disabled"
    Path("raftkit.toml").write_text(text)
    assert state_of(raftkit, "sqlite") == "disabled"
    assert "sqlite" not in {step["plugin"] for step in raftkit.json("plugins", "trace")["data"]["steps"]}


def test_the_environment_disables_plugins_too(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTKIT_DISABLE_PLUGINS", "sqlite")
    assert state_of(raftkit, "sqlite") == "disabled"
