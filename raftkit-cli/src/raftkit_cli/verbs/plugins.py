"""``raftkit plugins``: what is installed, what it provides, what is broken about it; writing and proving one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation, VerbGroup, pass_invocation
from raftkit_cli.plugin_commands import chosen_plugins, loaded_plugins

if TYPE_CHECKING:
    from raftkit_core.plugins import PluginInfo

_KINDS = ("storage", "snapshots", "network", "clients", "state_machine")


@click.group(cls=VerbGroup, name="plugins", no_args_is_help=True)
def plugins() -> None:
    """What is installed and what it provides."""


@plugins.command("list")
@pass_invocation
def list_plugins(invocation: Invocation) -> None:
    """Every plugin: what it provides, where it comes from, whether it works."""
    loaded = loaded_plugins(invocation)
    loaded.load_all()
    found = loaded.plugins()
    data = {"plugins": [_fields(info) for info in found]}

    def human() -> None:
        rows = [row for info in found for row in _rows(info)]
        invocation.out.table(("NAME", "KIND", "PROVIDES", "FROM", "STATE"), rows)
        for info in found:
            if info.reason:
                invocation.out.line(f"{info.name} is {info.state}: {info.reason}")

    invocation.out.result("plugins.list", data, human)


@plugins.command("show")
@click.argument("name")
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """One plugin, by its name or its distribution."""
    loaded = loaded_plugins(invocation)
    loaded.load_all()
    info = _find(loaded.plugins(), name)

    def human() -> None:
        out = invocation.out
        out.line(f"{info.name}   {info.distribution} {info.version or ''}".rstrip())
        out.line(f"  module   {info.module}")
        out.line(f"  API      {info.api if info.api is not None else '-'}")
        out.line(f"  state    {info.state}" + (f": {info.reason}" if info.reason else ""))
        for kind in _KINDS:
            if getattr(info, kind):
                out.line(f"  {kind.replace('_', ' '):<8} {' '.join(getattr(info, kind))}")
        out.line(f"  hooks    {' '.join(info.hooks) or '-'}")

    invocation.out.result("plugins.show", _fields(info), human)


@plugins.command("trace")
@pass_invocation
def trace(invocation: Invocation) -> None:
    """Load every plugin and print each import and hook call.

    RAFTKIT_TRACE_PLUGINS=1 does the same for any other command, on standard error.
    """
    from raftkit_cli import hookspecs
    from raftkit_core import load_plugins
    from raftkit_core.plugins.trace import Trace, TraceStep

    steps: list[TraceStep] = []
    allow, disable = chosen_plugins(invocation)
    loaded = load_plugins(
        invocation.plugins, hookspecs=[hookspecs], allow=allow, disable=disable, trace=Trace(steps.append)
    )
    loaded.load_all()
    data = {
        "steps": [
            {
                "plugin": step.plugin,
                "step": step.step,
                "ms": round(step.seconds * 1000, 3),
                "result": step.result,
                "error": step.error,
            }
            for step in steps
        ]
    }

    def human() -> None:
        for step in steps:
            invocation.out.line(str(step))

    invocation.out.result("plugins.trace", data, human)


@plugins.command("new")
@click.argument("kind", type=click.Choice(("storage", "network", "state-machine")))
@click.argument("name")
@click.option(
    "--dir", "where", type=click.Path(path_type=Path, file_okay=False), help="Where to put it. [default: here]"
)
@pass_invocation
def new(invocation: Invocation, kind: str, name: str, where: Path | None) -> None:
    """Write a package of your own: raftkit-NAME, with a working adapter and its proof.

    \b
    raftkit plugins new storage lmdb
    pip install -e "raftkit-lmdb[test]" && pytest raftkit-lmdb
    """
    from raftkit_cli.scaffold import check_name, render, write_package

    names = check_name(name)
    folder = (where or Path()) / names.distribution
    rendered = render(kind, names)
    write_package(folder, rendered)
    data = {
        "kind": kind,
        "name": names.name,
        "distribution": names.distribution,
        "module": names.module,
        "directory": str(folder),
        "files": sorted(rendered),
    }

    def human() -> None:
        out = invocation.out
        out.line(f"{folder}: {len(rendered)} files of a {kind.replace('-', ' ')} that works")
        for path in sorted(rendered):
            out.line(f"  {path}")
        out.line(f'Next: pip install -e "{folder}[test]" && (cd {folder} && pytest)')
        for line in _try_it(kind, names.name, folder):
            out.line(f"      {line}")

    invocation.out.result("plugins.new", data, human)


def _try_it(kind: str, name: str, folder: Path) -> list[str]:
    if kind == "state-machine":
        return [f"python {folder}/examples/three_nodes.py"]
    return [f"raftkit demo --{kind} {name}:", f"raftkit plugins check {name}"]


@plugins.command("check")
@click.argument("target")
@click.option("-k", "only", metavar="TEXT", default="", help="Only cases with TEXT in their name.")
@click.option("--python-files", is_flag=True, help="All its writing goes through Python's os: simulate power losses.")
@pass_invocation
def check(invocation: Invocation, target: str, only: str, python_files: bool) -> None:
    """Run the conformance kit on an installed adapter, without writing a test.

    TARGET is a plugin, a distribution, or an adapter URL (storage, network, or a state machine's name). Storage begins
    empty in every case: a relative path is below a new folder each, any other URL must hold {case}, which stands for
    another name each. Exit 5 if a case fails. What was not tried is named with the reason.

    \b
    raftkit plugins check sqlite:n1.db
    raftkit plugins check "redis://127.0.0.1:6379/0?prefix={case}"
    """
    from raftkit_cli.plugin_check import check_target

    check_target(invocation, target, only, python_files=python_files)


def _find(found: list[PluginInfo], name: str) -> PluginInfo:
    wanted = name.replace("_", "-").lower()
    for info in found:
        if wanted in (info.name.replace("_", "-").lower(), info.distribution.replace("_", "-").lower()):
            return info
    known = ", ".join(sorted({info.name for info in found}))
    raise CliError("NOT_FOUND", f"no plugin is called {name!r}; known: {known}", hint="raftkit plugins list")


def _fields(info: PluginInfo) -> dict[str, Any]:
    provides = {kind: list(getattr(info, kind)) for kind in _KINDS}
    return {
        "name": info.name,
        "kinds": [kind for kind in _KINDS if provides[kind]],
        "distribution": info.distribution,
        "version": info.version,
        "module": info.module,
        "api": info.api,
        "state": info.state,
        "reason": info.reason,
        "provides": provides,
        "hooks": list(info.hooks),
    }


def _rows(info: PluginInfo) -> list[tuple[str, ...]]:
    """One row per kind; what belongs to the plugin as a whole stands in its first row only."""
    provided = [(kind.replace("_", " "), " ".join(getattr(info, kind))) for kind in _KINDS if getattr(info, kind)]
    if "raftkit_register_commands" in info.hooks:
        provided.append(("commands", ""))
    origin = f"{info.distribution} {info.version or ''}".strip()
    first, *others = provided or [("-", "-")]
    return [(info.name, *first, origin, info.state), *(("", *other, "", "") for other in others)]
