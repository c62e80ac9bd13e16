"""``raftkit plugins new``: a package from the templates in this wheel, complete, building and green at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from raftkit_cli.failures import CliError

KINDS = ("storage", "network", "state-machine")
TAKEN = {
    *("core", "sqlite", "redis", "rediss", "http", "https", "cli", "memory", "file", "import", "testing", "raftkit"),
    *("kv", "sqlite-kv", "redis-kv"),
}
"""Names that raftkit's own packages have, or that mean something else."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
_NAME_LENGTH_MAX = 40

_COMMON = {"common/pyproject.toml": "pyproject.toml", "common/gitignore": ".gitignore"}
_FILES: dict[str, dict[str, str]] = {
    "storage": {
        "storage/README.md": "README.md",
        "storage/init.py": "src/$module/__init__.py",
        "storage/plugin.py": "src/$module/plugin.py",
        "storage/claim.py": "src/$module/claim.py",
        "storage/log_storage.py": "src/$module/log_storage.py",
        "storage/test_conformance.py": "tests/test_conformance.py",
        "storage/test_damage.py": "tests/test_damage.py",
    },
    "network": {
        "network/README.md": "README.md",
        "network/init.py": "src/$module/__init__.py",
        "network/plugin.py": "src/$module/plugin.py",
        "network/settings.py": "src/$module/settings.py",
        "network/frames.py": "src/$module/frames.py",
        "network/network.py": "src/$module/network.py",
        "network/serving.py": "src/$module/serving.py",
        "network/test_conformance.py": "tests/test_conformance.py",
    },
    "state-machine": {
        "state-machine/README.md": "README.md",
        "state-machine/init.py": "src/$module/__init__.py",
        "state-machine/plugin.py": "src/$module/plugin.py",
        "state-machine/machine.py": "src/$module/machine.py",
        "state-machine/three_nodes.py": "examples/three_nodes.py",
        "state-machine/test_conformance.py": "tests/test_conformance.py",
    },
}
_DESCRIPTIONS = {
    "storage": "A durable Raft log for raftkit, in one file.",
    "network": "Peers of raftkit over plain TCP.",
    "state-machine": "A replicated state machine for raftkit.",
}
_TEST_DEPENDENCIES = {"storage": (), "network": (), "state-machine": ("raftkit-sqlite",)}


@dataclass(frozen=True)
class Names:
    """What ``NAME`` becomes: ``two-words`` is ``raftkit-two-words``, ``raftkit_two_words`` and ``TwoWords``."""

    name: str

    @property
    def distribution(self) -> str:
        return f"raftkit-{self.name}"

    @property
    def module(self) -> str:
        return "raftkit_" + self.name.replace("-", "_")

    @property
    def cls(self) -> str:
        return "".join(part.capitalize() for part in self.name.split("-"))


def check_name(text: str) -> Names:
    """``NAME`` or ``raftkit-NAME``. Raises: CliError for what can be no scheme, or is taken."""
    name = text.removeprefix("raftkit-")
    if not _NAME.match(name) or len(name) > _NAME_LENGTH_MAX:
        raise CliError(
            "CONFIG",
            f"{text!r} can be no name of a plugin",
            hint="write small letters, digits and single dashes, as in: raftkit plugins new storage lmdb",
        )
    if name in TAKEN:
        raise CliError("CONFIG", f"{name} is a name of raftkit's own", hint="choose another name")
    return Names(name)


def render(kind: str, names: Names) -> dict[str, str]:
    """Path in the package → text. ``kind`` is one of :data:`KINDS`."""
    from importlib.metadata import version
    from importlib.resources import files

    core = ".".join(version("raftkit-core").split(".")[:2]) + ".0"
    values = {
        "name": names.name,
        "distribution": names.distribution,
        "module": names.module,
        "Class": names.cls,
        "description": _DESCRIPTIONS[kind],
        "dependencies": _quoted(f"raftkit-core~={core}"),
        "test_dependencies": _quoted(
            f"raftkit-core[testing]~={core}", *(f"{name}~={core}" for name in _TEST_DEPENDENCIES[kind])
        ),
    }
    templates = files("raftkit_cli") / "templates"
    rendered = {}
    for template, path in (_COMMON | _FILES[kind]).items():
        text = (templates / f"{template}.tmpl").read_text(encoding="utf-8")
        rendered[Template(path).substitute(values)] = Template(text).substitute(values)
    rendered[f"src/{names.module}/py.typed"] = ""
    return rendered


def write_package(folder: Path, rendered: dict[str, str]) -> None:
    """Write the files. Raises: CliError if ``folder`` is there already and not empty."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CliError(
                "CONFIG", f"{folder} is there already", hint="choose another name, or another place with --dir"
            )
        for path, text in rendered.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError("CONFIG", f"{folder} cannot be written: {error}", hint="choose another --dir") from error


def _quoted(*requirements: str) -> str:
    return ", ".join(f'"{requirement}"' for requirement in requirements)
