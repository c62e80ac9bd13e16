"""``raftkit version``: what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distributions
from importlib.metadata import version as installed_version

import click

from raftkit_cli.options import Invocation, Verb, pass_invocation

PACKAGES = ("raftkit-core", "raftkit-cli", "raftkit-sqlite", "raftkit-redis", "raftkit-http")


def own_version() -> str:
    """The version of this package."""
    return _version_or_none("raftkit-cli") or "unknown"


def _version_or_none(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None


@click.command(cls=Verb, name="version")
@click.option("--all", "everything", is_flag=True, help="Also Python, the adapters and what they stand on.")
@pass_invocation
def version(invocation: Invocation, everything: bool) -> None:
    """Versions of raftkit and its parts."""
    packages = {name: _version_or_none(name) for name in (PACKAGES if everything else PACKAGES[:2])}
    data: dict[str, object] = {"version": own_version(), "packages": packages}
    if everything:
        import platform

        data["python"] = platform.python_version()
        data["platform"] = platform.platform()
        data["dependencies"] = _dependencies()
        data["engine"] = _engine()

    def human() -> None:
        if not everything:
            invocation.out.line(f"raftkit {own_version()}")
            return
        rows = [(name, found or "not installed") for name, found in packages.items()]
        rows += list(_dependencies().items())
        rows += [(name, str(data[name])) for name in ("python", "platform", "engine")]
        invocation.out.table(("PACKAGE", "VERSION"), rows)

    invocation.out.result("version", data, human)


def _engine() -> str:
    from raftkit_core.engine import COMPILED

    return "native code" if COMPILED else "pure Python"


def _dependencies() -> dict[str, str]:
    """What the installed packages require, by their metadata: no list of ours to go stale."""
    import re

    ours = set(PACKAGES)
    wanted: set[str] = set()
    found: dict[str, str] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        found[name] = distribution.version
        if name in ours:
            for requirement in distribution.requires or ():
                match = re.match(r"[A-Za-z0-9._-]+", requirement)
                if match is not None and "extra ==" not in requirement:
                    wanted.add(re.sub(r"[-_.]+", "-", match[0]).lower())
    return {name: found[name] for name in sorted(wanted - ours) if name in found}
