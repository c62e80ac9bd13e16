"""Plugins as a package installer would leave them: a module and its metadata in a folder."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.plugins import LoadedPlugins, load_plugins
from raftkit_core.types.adapter import AdapterContext

HEAD = "from raftkit_core import hookimpl\n"


class Site:
    """A folder of installed distributions. ``load`` gives the plugins of this folder and the built-in one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, body: str, *, distribution: str | None = None, version: str = "1.2") -> str:
        """Write a module with ``body`` and its entry point ``name``. Returns the name of the module."""
        distribution = distribution or f"raftkit-{name}"
        module = f"{distribution.replace('-', '_')}_{name.replace('-', '_')}_plugin"
        (self.folder / f"{module}.py").write_text(HEAD + textwrap.dedent(body))
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        entry_points = info / "entry_points.txt"
        known = entry_points.read_text() if entry_points.exists() else "[raftkit]\n"
        entry_points.write_text(f"{known}{name} = {module}\n")
        return module

    def install_storage(self, name: str, scheme: str, *, distribution: str | None = None) -> str:
        """A plugin whose storage is core's, in memory, under another scheme."""
        return self.install(name, storage_body(scheme), distribution=distribution)

    def entry_points(self) -> list[metadata.EntryPoint]:
        found = metadata.distributions(path=[str(self.folder)])
        return [point for distribution in found for point in distribution.entry_points if point.group == "raftkit"]

    def load(self, *extra: object, **settings: object) -> LoadedPlugins:
        settings.setdefault("environ", {})
        return load_plugins(extra, entry_points=self.entry_points(), **settings)  # type: ignore[arg-type]


def storage_body(scheme: str) -> str:
    return f"""
        @hookimpl
        def raftkit_register_storage(registry):
            registry.add({scheme!r}, make)

        def make(url, context):
            from raftkit_core.storage.memory import MemoryLogStorage
            storage = MemoryLogStorage()
            storage.made_by = __name__
            return storage
        """


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def context() -> AdapterContext:
    return AdapterContext("n1", clock=SystemClock())


@pytest.fixture
def state_of() -> Callable[[LoadedPlugins, str], str]:
    return lambda plugins, name: next(plugin.state for plugin in plugins.plugins() if plugin.name == name)
