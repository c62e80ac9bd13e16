"""``raftkit --help`` is quick because it imports nothing it does not show."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raftkit_cli.main import Root

HEAVY = {"aiohttp", "redis", "aiosqlite", "rich", "msgspec", "raftkit_core", "pluggy", "asyncio", "platformdirs"}

PROGRAM = """
import sys
from raftkit_cli.main import cli
try:
    cli.main({arguments!r})
except SystemExit:
    pass
print("MODULES", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def _imported(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(arguments=list(arguments))], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--version",), ("nosuchoption", "--help")])
def test_the_front_page_imports_nothing_of_weight(arguments: tuple[str, ...]) -> None:
    unwanted = HEAVY if arguments[0] != "nosuchoption" else {"aiohttp", "redis", "aiosqlite", "rich"}
    assert not _imported(*arguments) & unwanted


def test_help_of_a_verb_imports_no_driver() -> None:
    assert not _imported("kv", "put", "--help") & {"aiohttp", "redis", "aiosqlite", "rich"}


def test_the_line_on_the_front_page_belongs_to_the_verb() -> None:
    import importlib

    for target, line in Root.lazy.values():
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert command.get_short_help_str(limit=100).rstrip(".") == line.rstrip(".")
