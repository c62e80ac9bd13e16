"""One plugin: where it comes from, and what has become of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from raftkit_core.errors import PluginError, RaftError
from raftkit_core.plugins.registry import APPLICATION, PUBLISHED, Kind

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

log = logging.getLogger("raftkit.plugins")

CORE = "core"
CORE_DISTRIBUTION = "raftkit-core"
CORE_MODULE = "raftkit_core.plugins.builtin"

API_VERSION = 1
"""The plugin API of this raftkit-core: hooks, adapter interfaces and what they promise. A plugin's module may name the
one it was written for as ``raftkit_api``; without it is 1."""

State = Literal["available", "active", "disabled", "broken"]


class PluginInfo(msgspec.Struct, frozen=True):
    """One plugin as people see it. ``reason``: why it is disabled or broken, or which of its hooks failed."""

    name: str
    distribution: str
    version: str | None
    module: str
    state: State
    reason: str | None = None
    storage: list[str] = []
    snapshots: list[str] = []
    network: list[str] = []
    clients: list[str] = []
    state_machine: list[str] = []
    hooks: list[str] = []
    api: int | None = None
    """The plugin API it was written for (``raftkit_api`` in its module), once it is loaded."""


@dataclass(eq=False, slots=True)
class Plugin:
    name: str
    distribution: str
    version: str | None
    module: str
    load: Callable[[], Any]
    state: State = "available"
    reason: str | None = None
    cause: BaseException | None = None
    loaded: Any = None
    hooks: list[str] = field(default_factory=list)
    api: int | None = None

    @property
    def is_installed(self) -> bool:
        return self.distribution != APPLICATION

    def is_named(self, names: Iterable[str]) -> bool:
        return any(canonical(name) in (canonical(self.name), canonical(self.distribution)) for name in names)

    def answers_to(self, kind: Kind, scheme: str) -> bool:
        """Whether this is the plugin one would ask for ``scheme`` first, as far as can be told without loading it."""
        return self.name == scheme or canonical(self.distribution) == PUBLISHED[kind].get(scheme)

    def describe(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.name} ({self.distribution}{version})"


def from_module(module: str, *, name: str | None = None, distribution: str = APPLICATION) -> Plugin:
    """A plugin that is known by its dotted module name."""
    return Plugin(name or module, distribution, None, module, lambda: import_module(module))


def from_object(plugin: object) -> Plugin:
    """A plugin that is there already: a module, or any object with hooks."""
    name = getattr(plugin, "__name__", type(plugin).__name__)
    return Plugin(name, APPLICATION, None, name, lambda: plugin)


def from_entry_point(entry_point: EntryPoint) -> Plugin:
    distribution, version = "unknown", None
    try:
        if entry_point.dist is not None:
            distribution, version = entry_point.dist.name, entry_point.dist.version
    except Exception as error:  # damaged metadata of one distribution must not hide the others
        log.debug("no metadata for the plugin %s: %s", entry_point.name, error)
    return Plugin(entry_point.name, distribution or "unknown", version, entry_point.value, entry_point.load)


def check_api(plugin: Plugin) -> None:
    """Take note of the API the plugin was written for. Raises: PluginError for one that this raftkit-core has not."""
    wanted = getattr(plugin.loaded, "raftkit_api", 1)
    if type(wanted) is not int or wanted < 1:
        raise PluginError(f"its raftkit_api is {wanted!r}, which is no version: write raftkit_api = {API_VERSION}")
    plugin.api = wanted
    if wanted > API_VERSION:
        raise PluginError(
            f"it is written for plugin API {wanted}, this raftkit-core offers {API_VERSION}: "
            f"pip install --upgrade raftkit-core, or an older {plugin.distribution}"
        )


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def text_of(error: BaseException) -> str:
    text = error.message if isinstance(error, RaftError) else f"{type(error).__name__}: {error}"
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
