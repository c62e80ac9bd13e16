"""``raftkit doctor``: what is wrong with an installation, its plugins, or the folder of a node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation, Verb, pass_invocation
from raftkit_cli.plugin_commands import loaded_plugins

if TYPE_CHECKING:
    from raftkit_core.plugins import DoctorFinding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(cls=Verb, name="doctor")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also look at a node's folder, or at the place where it shall be.",
)
@pass_invocation
def doctor(invocation: Invocation, data_dir: Path | None) -> None:
    """What is wrong here, and how to mend it.

    Looks over this installation, its plugins, and a node's folder. Nothing is changed. Plugins bring checks of their
    own. Exit 5 if anything is wrong; warnings alone are exit 0.
    """
    from raftkit_cli.health import examine

    found = examine(loaded_plugins(invocation), data_dir)
    data = {"findings": [_fields(name, finding) for name, finding in found]}
    errors = [finding for _, finding in found if finding.level == "error"]
    if invocation.out.as_json or not errors:
        if errors:
            raise _failure(errors, data)
        invocation.out.result("doctor", data, lambda: _show(invocation, found))
        return
    _show(invocation, found)
    raise _failure(errors, data)


def _failure(errors: list[DoctorFinding], data: dict[str, Any]) -> CliError:
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return CliError("CHECK_FAILED", f"{errors[0].message}{more}", hint=errors[0].hint, data=data)


def _show(invocation: Invocation, found: list[tuple[str, DoctorFinding]]) -> None:
    out = invocation.out
    for name, finding in found:
        level = out.style(f"{finding.level:<7}", _COLOURS[finding.level])
        out.line(f"{level}  {name}: {finding.message}")
        if finding.hint and finding.level != "ok":
            out.line(f"         Try:   {finding.hint}")


def _fields(name: str, finding: DoctorFinding) -> dict[str, Any]:
    return {"check": name, "level": finding.level, "message": finding.message, "hint": finding.hint}
