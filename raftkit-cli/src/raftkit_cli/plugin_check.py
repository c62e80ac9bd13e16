"""``raftkit plugins check``: which kits fit what is installed, and what came of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.output import is_terminal
from raftkit_cli.plugin_commands import loaded_plugins

if TYPE_CHECKING:
    from raftkit_core.plugins import LoadedPlugins
    from raftkit_core.testing.conformance.kit import ConformanceKit
    from raftkit_core.testing.run_kit import CaseResult

KIT_VERSION = 1
_CHECKED = ("storage", "snapshots", "network", "state_machine")


def check_target(invocation: Invocation, target: str, only: str, *, python_files: bool = False) -> None:
    """Run every kit that fits ``target``. Raises: CliError if a case failed, or there is none to run."""
    _require_pytest()
    from raftkit_core.testing.run_kit import run_kit, summary

    checks = _checks(loaded_plugins(invocation), target)
    results: dict[str, list[CaseResult]] = {}
    for (kind, url), kit in checks.items():
        invocation.out.note(f"{kind.replace('_', ' ')} {url}")
        kit.python_files = python_files and kind == "storage"
        progress = _progress(invocation)
        results[f"{kind} {url}"] = run_kit(kit, only=lambda name: only in name, told=progress)
    if not any(results.values()):
        raise CliError(
            "USAGE", f"no case has {only!r} in its name", hint=f"raftkit plugins check {target} -v names all"
        )
    failed = [result for cases in results.values() for result in cases if result.outcome == "failed"]
    data = {
        "target": target,
        "kit": KIT_VERSION,
        "passed": not failed,
        "checks": [
            {"what": what, "summary": summary(cases), "cases": [_fields(case) for case in cases]}
            for what, cases in results.items()
        ],
    }

    verdicts = [f"raftkit-conformance {KIT_VERSION}: {what}: {summary(cases)}" for what, cases in results.items()]
    if failed:
        told = "\n".join(
            f"{result.name}\n    {result.clause or 'the contract as a whole'}\n    {result.text}" for result in failed
        )
        raise CliError(
            "CHECK_FAILED",
            "\n".join([f"{len(failed)} cases failed", told, *verdicts]),
            hint="each case is a test of raftkit_core.testing.conformance: read it there, or run it alone with -k",
            data=data,
        )

    def human() -> None:
        for (what, cases), verdict in zip(results.items(), verdicts, strict=True):
            invocation.out.line(verdict)
            for line in _not_tried(cases, can_cut_power=what.startswith("storage ") and not python_files):
                invocation.out.line(line)

    invocation.out.result("plugins.check", data, human)


def _not_tried(cases: list[CaseResult], *, can_cut_power: bool) -> list[str]:
    """What was left out, and why: a pass says nothing about it."""
    reasons: dict[str, set[str]] = {}
    for case in cases:
        if case.outcome == "skipped":
            reasons.setdefault(case.text, set()).add(case.number or "the contract as a whole")
    lines = [f"  not tried  {reason} ({', '.join(sorted(clauses))})" for reason, clauses in sorted(reasons.items())]
    if can_cut_power and any("cut the power" in reason for reason in reasons):
        lines.append("  Where all writing goes through Python's os, --python-files tries power losses too.")
    return lines


def _fields(case: CaseResult) -> dict[str, Any]:
    return {
        "name": case.name,
        "clause": case.number,
        "outcome": case.outcome,
        "text": case.text,
        "seconds": round(case.seconds, 3),
    }


def _progress(invocation: Invocation) -> Callable[[CaseResult], None]:
    """A line per case where a person looks or asks for it (``-v``); failures always."""

    def told(result: CaseResult) -> None:
        if result.outcome == "failed" or invocation.out.verbose or is_terminal(sys.stderr):
            invocation.out.note(f"  {result.outcome:<7} {result.name}")

    return told


def _require_pytest() -> None:
    from importlib.util import find_spec

    if find_spec("pytest") is None:
        raise CliError(
            "CONFIG",
            "the conformance kit needs pytest, which is not installed",
            hint='pip install "raftkit-core[testing]"',
        )


def _checks(plugins: LoadedPlugins, target: str) -> dict[tuple[str, str], type[ConformanceKit]]:
    """The kits to run: of everything a plugin provides, or of what one URL names.

    Raises: CliError (nothing fits), PluginError (the plugin is broken, the URL cannot be read).
    """
    plugins.load_all()
    wanted = target.replace("_", "-").lower()
    for info in plugins.plugins():
        if wanted in (info.name.replace("_", "-").lower(), info.distribution.replace("_", "-").lower()):
            if info.state == "broken":
                raise CliError("BROKEN_PLUGIN", f"{info.name} is broken: {info.reason}", hint="raftkit plugins trace")
            provided = [(kind, scheme) for kind in _CHECKED for scheme in getattr(info, kind) if scheme != "import"]
            found = {(kind, _url(kind, scheme)): _kit(kind, _url(kind, scheme)) for kind, scheme in provided}
            if found:
                return found
    from raftkit_core.plugins import AdapterUrl

    url = AdapterUrl.parse(target)
    kinds = [kind for kind in _CHECKED if plugins.try_find(kind, url.scheme) is not None]  # type: ignore[arg-type]
    if not kinds:
        raise CliError(
            "NOT_FOUND",
            f"no plugin, distribution or adapter is called {url.scheme!r}",
            hint="raftkit plugins list; install it first, for one of your own: pip install -e .",
        )
    if kinds[0] in ("storage", "snapshots") and "{case}" not in target and (url.host or url.path.startswith("/")):
        raise CliError(
            "CONFIG",
            f"{url} is one place for all cases, and what is there already would be overwritten",
            hint=f"write a relative path ({url.scheme}:check), or {{case}} where each case shall have another name",
        )
    return {(kind, target): _kit(kind, target) for kind in kinds[:1]}


def _url(kind: str, scheme: str) -> str:
    """A URL to try an adapter of this scheme with, in a folder of its own or on a free port."""
    if kind == "network":
        return "memory:check" if scheme == "memory" else f"{scheme}://127.0.0.1:0"
    return scheme if kind == "state_machine" else f"{scheme}:check"


def _kit(kind: str, url: str) -> type[ConformanceKit]:
    from raftkit_core import testing

    base = {
        "storage": testing.LogStorageConformance,
        "snapshots": testing.SnapshotStorageConformance,
        "network": testing.NetworkConformance,
        "state_machine": testing.StateMachineConformance,
    }[kind]
    given: dict[str, Any] = {"url": url, "__module__": __name__}
    if "{case}" in url:
        given["url"] = property(lambda kit: url.replace("{case}", kit.folder.name))
    if kind == "state_machine":
        given |= _commands_of(base)
    return type("Check", (base,), given)


def _commands_of(base: type[Any]) -> dict[str, Any]:
    """The kit's own commands are those of kv/1; what another machine takes, only its author knows."""

    def checked(kit: Any, made: Any, example: Any) -> Any:
        import pytest

        from raftkit_core.errors import BadCommand

        codec = kit.opener()().codec
        try:
            codec.decode_command(codec.encode_command(example))
        except BadCommand:
            pytest.skip("this machine has commands of its own: give them in a test (StateMachineConformance.commands)")
        return made

    def commands(kit: Any, count: int) -> Any:
        made = base.commands(kit, count)
        return checked(kit, made, made[0])

    def refusal(kit: Any) -> Any:
        made = base.refusal(kit)
        return checked(kit, made, made[1])

    return {"commands": commands, "refusal": refusal}
