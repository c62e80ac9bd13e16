"""Every ``raftkit`` command in README.md and the docs exists, with its options; the README's session really runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from raftkit_cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("raftkit-*/README.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md"),
]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```(?:console|)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:uv run )?raftkit [a-z][^`]*)`")


def command_lines(page: Path) -> list[str]:
    """What a reader would type: lines of shell blocks that are raftkit commands, and commands in running text."""
    text = page.read_text()
    lines = [line.removeprefix("$ ").strip() for block in SHELL.findall(text) for line in block.split("\n")]
    lines += [" ".join(found.split()) for found in INLINE.findall(SHELL.sub("", text))]
    typed = [part.strip() for line in lines for part in line.split("&&")]
    typed = [line.removeprefix("uv run ").partition("  #")[0] for line in typed]
    return [line for line in typed if line.startswith("raftkit ")]


TYPED = [(page, line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), TYPED, ids=[f"{page.name}: {line}" for page, line in TYPED])
def test_the_command_exists(page: Path, line: str) -> None:
    words = [word for word in shlex.split(line.replace("\\", "")) if word not in ("…", "raftkit")]
    command: click.Command = cli
    context = click.Context(cli, info_name="raftkit", **cli.context_settings)
    known = {option for parameter in cli.params for option in (*parameter.opts, *parameter.secondary_opts)}
    position = 0
    while isinstance(command, click.Group) and position < len(words) and not words[position].startswith("-"):
        child = command.get_command(context, words[position])
        assert child is not None, f"{line}: there is no {words[position]}"
        # With its own settings: click keeps the help option that it makes, and with it whether -h is one.
        context = click.Context(child, info_name=words[position], parent=context, **child.context_settings)
        command = child
        known |= {option for parameter in child.get_params(context) for option in parameter.opts}
        position += 1
    options = {word.partition("=")[0] for word in words if word.startswith("-") and word not in ("-", "--")}
    assert options <= known | {"--help"}, f"{line}: unknown {options - known}"


@pytest.mark.process
@pytest.mark.timeout(180)
def test_the_session_of_the_readme_runs(tmp_path: Path) -> None:
    session = next(block for block in CONSOLE.findall((ROOT / "README.md").read_text()) if "raftkit local up" in block)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAFTKIT_")}
    environment |= {"RAFTKIT_CONFIG_DIR": str(tmp_path / "config"), "RAFTKIT_LOCAL_DIR": str(tmp_path / "cluster")}

    def raftkit(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raftkit_cli", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            cwd=tmp_path,
        )

    try:
        for line in session.strip().split("\n"):
            words = shlex.split(line.removeprefix("$ uv run raftkit "))
            if words == ["local", "up"]:
                words += ["--base-port", str(free_ports(3))]
            done = raftkit(*words)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert json.loads(raftkit("local", "ps", "--json").stdout)["ok"]
    finally:
        raftkit("local", "down")


def free_ports(count: int) -> int:
    """The first of ``count`` neighbouring ports that are free now."""
    import socket
    from contextlib import ExitStack

    for first in range(21000, 60000, 97):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")
