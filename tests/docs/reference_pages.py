"""Writes the generated parts of ``docs/``: the command line, the settings and the errors.

    uv run python tests/docs/reference_pages.py --write

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the test beside this file compares.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec

from raftkit_cli.exit_codes import EXIT_CODES, exit_code_of
from raftkit_cli.failures import HINTS
from raftkit_cli.main import cli
from raftkit_core.config import Config
from raftkit_core.errors import ERRORS_BY_CODE

ROOT = Path(__file__).resolve().parents[2]
PART = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    """Every command of the tree, parents first, by its path below ``raftkit``."""
    # With the command's own settings: click remembers the help option that it makes, and with it whether -h is one.
    context = click.Context(command, info_name=" ".join(("raftkit", *path)), **command.context_settings)
    yield path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, name
            yield from commands(child, (*path, name))


def render_cli() -> str:
    lines: list[str] = []
    for path, command, context in commands():
        title = " ".join(("raftkit", *path))
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["#" * (2 if len(path) < 2 else 3) + f" {title}", "", f"`{title} {usage}`".rstrip(), ""]
        if command.help:
            lines += [_paragraphs(command.help), ""]
        options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
        records = [record for option in options if (record := option.get_help_record(context))]
        records = [(names, text) for names, text in records if not names.endswith("--help")]
        if records:
            lines += ["| option | |", "|---|---|"]
            lines += [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in records]
            lines.append("")
    return "\n".join(lines)


def _paragraphs(text: str) -> str:
    """Help as Markdown: a paragraph under click's ``\\b`` keeps its lines."""
    shown = []
    for paragraph in text.replace("\f", "").strip().split("\n\n"):
        stripped = paragraph.strip()
        if stripped.startswith("\b"):
            shown.append("```\n" + "\n".join(line.strip() for line in stripped[1:].strip("\n").split("\n")) + "\n```")
        else:
            shown.append(" ".join(stripped.split()))
    return "\n\n".join(shown)


def render_settings() -> str:
    lines = ["| key | default |", "|---|---|"]
    for field in msgspec.structs.fields(Config):
        if field.name != "cluster":
            lines.append(f"| `{field.name}` | `{_shown(field.name, field.default)}` |")
    return "\n".join(lines) + "\n"


def _shown(name: str, value: object) -> str:
    if name == "snapshot_policy":
        return "bytes:64MiB"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{value // 1024**2}MiB"
    if isinstance(value, int) and name.endswith("_ms"):
        return f"{value}ms"
    return str(value)


def render_errors() -> str:
    lines = ["| code | class | exit | outcome | again? | meaning |", "|---|---|---|---|---|---|"]
    for code, kind in ERRORS_BY_CODE.items():
        again = "yes" if kind.default_retryable else ""
        meaning = " ".join((kind.__doc__ or "").split()).replace("``", "`")
        fields = (
            f"`{code}`",
            f"`{kind.__name__}`",
            str(exit_code_of(code)),
            kind.default_outcome,
            again,
            _cell(meaning),
        )
        lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines) + "\n"


def render_hints() -> str:
    lines = ["| code | exit | what to type or try next, unless the error says it better |", "|---|---|---|"]
    lines += [f"| `{code}` | {status} | {_cell(HINTS.get(code, ''))} |" for code, status in EXIT_CODES.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS: dict[str, Callable[[], str]] = {
    "cli": render_cli,
    "settings": render_settings,
    "errors": render_errors,
    "hints": render_hints,
}


def rendered(page: str) -> str:
    """``page`` with its generated parts as they should be."""
    return PART.sub(lambda part: f"{part[1]}\n{PARTS[part['name']]().strip()}\n\n{part[3]}", page)


def pages() -> list[Path]:
    return [path for path in sorted((ROOT / "docs").rglob("*.md")) if "<!-- generated: " in path.read_text()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the pages instead of only naming stale ones")
    write = parser.parse_args().write
    stale = [path for path in pages() if rendered(path.read_text()) != path.read_text()]
    for path in stale:
        print(("written: " if write else "stale: ") + str(path.relative_to(ROOT)))
        if write:
            path.write_text(rendered(path.read_text()))
    return 0 if write or not stale else 1


if __name__ == "__main__":
    sys.exit(main())
