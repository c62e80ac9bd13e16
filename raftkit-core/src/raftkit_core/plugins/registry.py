"""What plugins add: scheme or name → factory, each with the plugin it came from.

A plugin's hook gets fresh registries of its own, so that a hook that fails half-way adds nothing. The manager merges
them into one :class:`Catalog` per kind, where the same scheme from two plugins is an error for whoever asks for it,
never "last installed wins".
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from raftkit_core.errors import BadAdapterUrl, DuplicateScheme, PluginError
from raftkit_core.plugins.url import AdapterUrl

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient
    from raftkit_core.network.interface import RaftNetworkFactory
    from raftkit_core.state_machine.interface import RaftStateMachine
    from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
    from raftkit_core.types.adapter import AdapterContext

Kind = Literal["storage", "snapshots", "network", "clients", "state_machine"]

KINDS: dict[Kind, str] = {
    "storage": "log storage",
    "snapshots": "snapshot storage",
    "network": "network",
    "clients": "client",
    "state_machine": "state machine",
}
"""Every kind, and what it is called in a message."""

PUBLISHED: dict[Kind, dict[str, str]] = {
    "storage": {
        "memory": "raftkit-core",
        "import": "raftkit-core",
        "sqlite": "raftkit-sqlite",
        "redis": "raftkit-redis",
        "rediss": "raftkit-redis",
    },
    "snapshots": {"memory": "raftkit-core", "file": "raftkit-core", "import": "raftkit-core"},
    "network": {
        "memory": "raftkit-core",
        "import": "raftkit-core",
        "http": "raftkit-http",
        "https": "raftkit-http",
    },
    "clients": {"http": "raftkit-http", "https": "raftkit-http"},
    "state_machine": {
        "kv": "raftkit-core",
        "import": "raftkit-core",
        "sqlite-kv": "raftkit-sqlite",
        "redis-kv": "raftkit-redis",
        "rediss-kv": "raftkit-redis",
    },
}
"""What raftkit itself publishes: which distribution to look into first, and to name when it is not installed."""

APPLICATION = "application"
"""Stands for the distribution of a plugin that was handed over as an object and is not installed."""

LogStorageFactory: TypeAlias = "Callable[[AdapterUrl, AdapterContext], RaftLogStorage]"
SnapshotStorageFactory: TypeAlias = "Callable[[AdapterUrl, AdapterContext], RaftSnapshotStorage]"
NetworkFactory: TypeAlias = "Callable[[AdapterUrl, AdapterContext], RaftNetworkFactory]"
ClientFactory: TypeAlias = "Callable[[list[str], Mapping[str, Any]], ClusterClient]"
StateMachineFactory: TypeAlias = "Callable[[AdapterUrl, AdapterContext], RaftStateMachine]"
StateMachineFactoryOfContext: TypeAlias = "Callable[[AdapterContext], RaftStateMachine]"

F = TypeVar("F")

_NAME = re.compile(r"[a-z][a-z0-9+._-]*\Z")


@dataclass(frozen=True, slots=True)
class Registration(Generic[F]):
    """One factory and where it came from. ``paired``: of snapshots that belong to the log storage of that scheme."""

    kind: Kind
    scheme: str
    factory: F
    plugin: str
    distribution: str
    paired: bool = False


class AdapterRegistry(Generic[F]):
    """What one plugin adds of one kind."""

    kind: Kind

    def __init__(self, plugin: str, distribution: str) -> None:
        self.plugin = plugin
        self.distribution = distribution
        self.registrations: list[Registration[Any]] = []

    def _add(self, kind: Kind, scheme: str, factory: Any, *, paired: bool = False) -> None:
        if not _NAME.match(scheme):
            raise PluginError(
                f"plugin {self.plugin} registers {scheme!r} as a {KINDS[kind]}, which no URL can name",
                hint="use a lower-case letter, then letters, digits or one of + . _ -",
            )
        if not callable(factory):
            raise PluginError(f"plugin {self.plugin} registers {scheme!r} with {factory!r}, which cannot be called")
        if any(known.scheme == scheme and known.kind == kind for known in self.registrations):
            raise DuplicateScheme(f"plugin {self.plugin} registers the {KINDS[kind]} {scheme!r} twice")
        self.registrations.append(Registration(kind, scheme, factory, self.plugin, self.distribution, paired))


class StorageRegistry(AdapterRegistry["LogStorageFactory"]):
    """Log storages, and snapshot storages beside or without them. Factories do no IO: ``open`` does."""

    kind = "storage"

    def add(self, scheme: str, factory: LogStorageFactory, *, snapshots: SnapshotStorageFactory | None = None) -> None:
        """``snapshots`` is used with this log storage unless the user names another, and gets the same url.

        Raises: DuplicateScheme, PluginError (a scheme that no URL can have).
        """
        self._add(self.kind, scheme, factory)
        if snapshots is not None:
            self._add("snapshots", scheme, snapshots, paired=True)

    def add_snapshots(self, scheme: str, factory: SnapshotStorageFactory) -> None:
        """A snapshot storage that is used only where the user names it. Raises: DuplicateScheme, PluginError."""
        self._add("snapshots", scheme, factory)


class NetworkRegistry(AdapterRegistry["NetworkFactory"]):
    """Transports. Factories do no IO: ``serve`` and the first call do."""

    kind = "network"

    def add(self, scheme: str, factory: NetworkFactory) -> None:
        """Raises: DuplicateScheme, PluginError."""
        self._add(self.kind, scheme, factory)


class ClientRegistry(AdapterRegistry["ClientFactory"]):
    """Clients of a cluster. Factories do no IO: ``__aenter__`` does."""

    kind = "clients"

    def add(self, scheme: str, factory: ClientFactory) -> None:
        """Raises: DuplicateScheme, PluginError."""
        self._add(self.kind, scheme, factory)


class StateMachineRegistry(AdapterRegistry["StateMachineFactory"]):
    """State machines, by name. Factories do no IO: ``open`` does."""

    kind = "state_machine"

    def add(self, name: str, factory: StateMachineFactory | StateMachineFactoryOfContext) -> None:
        """``factory`` is called as ``factory(url, context)`` if it takes two arguments, else as ``factory(context)``.

        Raises: DuplicateScheme, PluginError (the factory takes neither).
        """
        self._add(self.kind, name, _with_url(factory, self.plugin, name))


def _with_url(factory: Any, plugin: str, name: str) -> Any:
    if not callable(factory):
        return factory
    if _accepts(factory, 2):
        return factory
    if not _accepts(factory, 1):
        raise PluginError(
            f"plugin {plugin}: the factory of state machine {name!r} takes neither (url, context) nor (context)"
        )

    def without_url(url: AdapterUrl, context: AdapterContext) -> Any:
        if url.path or url.host:
            raise BadAdapterUrl(f"state machine {name} takes no address: {url}", hint=f"write {name}")
        url.require_no_options()
        return factory(context)

    return without_url


def _accepts(factory: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(factory).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


class Catalog:
    """Every registration of one kind, of all plugins loaded so far."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._by_scheme: dict[str, list[Registration[Any]]] = {}

    def merge(self, registrations: Sequence[Registration[Any]]) -> None:
        for registration in registrations:
            if registration.kind == self.kind:
                self._by_scheme.setdefault(registration.scheme, []).append(registration)

    @property
    def schemes(self) -> list[str]:
        return sorted(self._by_scheme)

    def of_plugin(self, plugin: str, distribution: str) -> list[str]:
        return [
            scheme
            for scheme in self.schemes
            if any((known.plugin, known.distribution) == (plugin, distribution) for known in self._by_scheme[scheme])
        ]

    def find(self, scheme: str) -> Registration[Any] | None:
        """The one registration of ``scheme``, or None.

        Raises:
            DuplicateScheme: several plugins registered it; the error names them and how to choose.
        """
        found = self._by_scheme.get(scheme, [])
        if len(found) > 1:
            owners = " and ".join(sorted(f"{known.plugin} ({known.distribution})" for known in found))
            installed = sorted({known.distribution for known in found} - {APPLICATION})
            raise DuplicateScheme(
                f"the {KINDS[self.kind]} {scheme!r} is registered by several plugins: {owners}",
                hint=f"disable all but one of them, as in RAFTKIT_DISABLE_PLUGINS={installed[-1]}"
                if installed
                else "give plugins= only one of them",
            )
        return found[0] if found else None
