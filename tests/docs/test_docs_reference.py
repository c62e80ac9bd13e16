"""The pages that list something list all of it, as it is."""

from __future__ import annotations

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from raftkit_cli import hookspecs as cli_hookspecs
from raftkit_core.config_file import SECTIONS, parse_node_file
from raftkit_core.plugins import hookspecs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def _reference_pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_pages", Path(__file__).with_name("reference_pages.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference_pages()


@pytest.mark.parametrize("name", ["cli.md", "configuration.md", "errors.md"])
def test_generated_parts_are_up_to_date(name: str) -> None:
    page = (DOCS / name).read_text()
    assert "<!-- generated: " in page
    assert page == reference.rendered(page), "run: uv run python tests/docs/reference_pages.py --write"


def test_looking_at_every_command_changes_none(capsys: pytest.CaptureFixture[str]) -> None:
    """They are those of this process: what a look left behind, later tests would find."""
    seen = [path for path, _, _ in reference.commands()]
    assert ("kv", "get") in seen
    for path in ((), ("kv",), ("kv", "get"), ("node", "run")):
        with pytest.raises(SystemExit) as ended:
            reference.cli.main([*path, "-h"])
        assert ended.value.code == 0, path
    assert "Usage: raftkit kv get" in capsys.readouterr().out


def test_the_example_of_raftkit_toml_has_every_section_and_key_and_is_read() -> None:
    page = (DOCS / "configuration.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    tables = tomllib.loads(example)
    assert set(tables) == set(SECTIONS)
    for section, table in tables.items():
        if section != "raft":  # its keys stand in the generated table
            assert set(table) == set(SECTIONS[section].__struct_fields__), section
    file = parse_node_file(example)
    assert file.node_id == "n1"
    assert file.config().cluster == "demo"


def test_every_environment_variable_has_its_line() -> None:
    sources = "\n".join(path.read_text() for path in ROOT.glob("raftkit-*/src/**/*.py"))
    used = set(re.findall(r"_?RAFTKIT_[A-Z_]+", sources))
    described = set(re.findall(r"^\| `(_?RAFTKIT_[A-Z_]+)` \|", (DOCS / "configuration.md").read_text(), re.MULTILINE))
    assert described == used


def _hooks() -> dict[str, str]:
    found = {}
    for module in (hookspecs, cli_hookspecs):
        for name, spec in vars(module).items():
            if hasattr(spec, "raftkit_spec"):
                found[name] = f"{name}{inspect.signature(spec)}".replace("'", "")
    return found


def test_every_hook_has_a_heading_with_its_exact_signature() -> None:
    headings = re.findall(r"^## (raftkit_\w+\(.*)$", (DOCS / "hooks.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(_hooks().values())


def test_every_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("raftkit-*/README.md"), *DOCS.rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target, _ in LINK.findall(page.read_text())
        if target and not target.startswith(("http://", "https://")) and not (page.parent / target).exists()
    ]
    assert not broken


def test_the_index_names_every_page() -> None:
    index = (DOCS / "index.md").read_text()
    pages = [path.relative_to(DOCS) for path in DOCS.rglob("*.md") if "changelog.d" not in path.parts]
    assert not [str(page) for page in pages if page.name != "index.md" and f"({page})" not in index]
