"""From names and URLs to adapters, and the way in: :func:`load_plugins`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from raftkit_core.errors import BadAdapterUrl, BrokenPlugin, RaftError
from raftkit_core.instrument import Instrument, Instruments
from raftkit_core.network.client import ClusterClient
from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.plugins.doctor import DoctorCheck
from raftkit_core.plugins.hookspecs import PROJECT
from raftkit_core.plugins.manager import ALLOW_VARIABLE, DISABLE_VARIABLE, STRICT_VARIABLE, PluginSet
from raftkit_core.plugins.plugin import (
    CORE,
    CORE_DISTRIBUTION,
    CORE_MODULE,
    from_entry_point,
    from_module,
    text_of,
)
from raftkit_core.plugins.registry import APPLICATION, KINDS, Registration
from raftkit_core.plugins.trace import TRACE_VARIABLE, Trace, trace_to_stderr
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from raftkit_core.config import Config
    from raftkit_core.types.adapter import AdapterContext
    from raftkit_core.types.ids import NodeId

T = TypeVar("T")


class LoadedPlugins(PluginSet):
    """A set of plugins that makes adapters. Nothing made here has done any IO yet: its ``open`` does, or ``serve``.

    Every method that makes one raises ``BadAdapterUrl``, ``UnknownScheme``, ``UnknownOption``, ``DuplicateScheme`` or
    ``BrokenPlugin``; see :meth:`find`.
    """

    def log_storage(self, url: str | AdapterUrl, context: AdapterContext) -> RaftLogStorage:
        parsed = _parsed(url)
        return self._make(self.find("storage", parsed.scheme), RaftLogStorage, parsed, context)

    def snapshot_storage(self, url: str | AdapterUrl, context: AdapterContext) -> RaftSnapshotStorage:
        """A snapshot storage the user named."""
        parsed = _parsed(url)
        return self._make(self.find("snapshots", parsed.scheme), RaftSnapshotStorage, parsed, context)

    def paired_snapshot_storage(
        self, storage_url: str | AdapterUrl, context: AdapterContext
    ) -> RaftSnapshotStorage | None:
        """The snapshot storage that belongs to a log storage, or None: then snapshots are files in ``data_dir``."""
        parsed = _parsed(storage_url)
        self.find("storage", parsed.scheme)
        found = self.try_find("snapshots", parsed.scheme, load_others=False)
        if found is None or not found.paired:
            return None
        return self._make(found, RaftSnapshotStorage, parsed, context)

    def network(self, url: str | AdapterUrl, context: AdapterContext) -> RaftNetworkFactory:
        parsed = _parsed(url)
        return self._make(self.find("network", parsed.scheme), RaftNetworkFactory, parsed, context)

    def state_machine(self, name: str | AdapterUrl, context: AdapterContext) -> RaftStateMachine:
        """``name`` alone (``kv``), or with an address and options: ``sqlite-kv:///path``, ``import:pkg.mod:Attr``."""
        parsed = _parsed(name)
        return self._make(self.find("state_machine", parsed.scheme), RaftStateMachine, parsed, context)

    def client(self, endpoints: Sequence[str], options: Mapping[str, Any] | None = None) -> ClusterClient:
        """A client of one cluster. ``HOST:PORT`` alone means ``http://HOST:PORT``. ``options`` are the plugin's own.

        Raises: BadAdapterUrl as well where there is no endpoint, or where they belong to different transports.
        """
        texts = [self._endpoint(endpoint) for endpoint in endpoints]
        if not texts:
            raise BadAdapterUrl("no endpoint is given", hint="name one, like http://127.0.0.1:7401")
        found = [self.find("clients", AdapterUrl.parse(text).scheme) for text in texts]
        if len({(known.plugin, known.distribution) for known in found}) > 1:
            raise BadAdapterUrl(
                f"endpoints of different transports: {', '.join(sorted({known.scheme for known in found}))}",
                hint="name endpoints of one cluster, all of one transport",
            )
        return self._make(found[0], ClusterClient, texts, dict(options or {}))

    def instruments(self, node_id: NodeId, config: Config) -> Instruments:
        """The observers every plugin gives for a node. Loads all plugins; one that fails gives none and is logged."""
        found: list[Instrument] = []
        for _, given in self.call_each("raftkit_instruments", node_id=node_id, config=config):
            found += [given] if isinstance(given, Instrument) else given
        return Instruments(found)

    def doctor_checks(self) -> list[DoctorCheck]:
        """The checks of every plugin. Loads all plugins."""
        return [check for _, checks in self.call_each("raftkit_doctor_checks") for check in checks]

    def _endpoint(self, endpoint: str) -> str:
        host, _, port = endpoint.rpartition(":")
        if port.isdigit() and host and "://" not in endpoint and "/" not in host:
            scheme = host.lower()
            if not scheme.isidentifier() or self.try_find("clients", scheme) is None:
                return f"http://{endpoint}"
        return endpoint

    def _make(self, found: Registration[Any], interface: Callable[..., T], *arguments: object) -> T:
        noun = KINDS[found.kind]
        where = f"plugin {found.plugin} ({found.distribution})"
        try:
            made = found.factory(*arguments)
        except RaftError:
            raise
        except Exception as error:
            hint = f"pip install --upgrade --force-reinstall {found.distribution}"
            raise BrokenPlugin(
                f"{where} cannot make its {noun} {found.scheme!r}: {text_of(error)}",
                hint=None if found.distribution == APPLICATION else hint,
            ) from error
        wanted: Any = interface  # an abstract class: mypy takes it as a callable only
        if not isinstance(made, wanted):
            raise BrokenPlugin(
                f"{where} made a {type(made).__name__} for {noun} {found.scheme!r}: no {wanted.__name__}",
                hint=f"derive it from {wanted.__module__}.{wanted.__name__}",
            )
        return cast(T, made)


def _parsed(url: str | AdapterUrl) -> AdapterUrl:
    return url if isinstance(url, AdapterUrl) else AdapterUrl.parse(url)


def load_plugins(
    extra: Iterable[object] = (),
    *,
    hookspecs: Sequence[ModuleType] = (),
    allow: Sequence[str] | None = None,
    disable: Sequence[str] = (),
    strict: bool | None = None,
    entry_points: Iterable[EntryPoint] | None = None,
    environ: Mapping[str, str] | None = None,
    trace: Trace | None = None,
) -> LoadedPlugins:
    """A fresh set of the installed plugins and of ``extra`` (see :meth:`LoadedPlugins.add_plugin`).

    Only ``extra`` is loaded at once, the others when they are asked for. ``hookspecs`` are modules with
    further hooks (the command line has one). A plugin is named by its entry point or its distribution. It is used if
    every allow list that is given names it (``allow``, and ``RAFTKIT_PLUGINS``, where an empty text allows none) and no
    list of those to disable does (``disable``, ``RAFTKIT_DISABLE_PLUGINS``); ``core`` needs no allowing, ``extra`` is
    always used. ``strict`` (or ``RAFTKIT_STRICT_PLUGINS=1``) loads everything at once and raises for what is broken.
    ``entry_points`` and ``environ`` stand in for the installed ones and ``os.environ``. ``trace`` hears of every import
    and hook call; ``RAFTKIT_TRACE_PLUGINS=1`` prints them on standard error.

    Raises:
        BrokenPlugin: one of ``extra`` cannot be loaded, or any plugin if strict.
    """
    environ = os.environ if environ is None else environ
    if entry_points is None:
        from importlib import metadata

        entry_points = metadata.entry_points(group=PROJECT)
    plugins = [from_entry_point(entry_point) for entry_point in entry_points]
    if not any(plugin.module == CORE_MODULE for plugin in plugins):  # run from a bundle without metadata
        plugins.append(from_module(CORE_MODULE, name=CORE, distribution=CORE_DISTRIBUTION))
    plugins.sort(key=lambda plugin: (plugin.module != CORE_MODULE, plugin.name, plugin.distribution))
    allow_lists = [] if allow is None else [list(allow)]
    if ALLOW_VARIABLE in environ:
        allow_lists.append(_split(environ[ALLOW_VARIABLE]))
    if strict is None:
        strict = _is_set(environ, STRICT_VARIABLE)
    if trace is None and _is_set(environ, TRACE_VARIABLE):
        trace = Trace(trace_to_stderr)
    loaded = LoadedPlugins(
        plugins,
        hookspecs=hookspecs,
        allow=allow_lists,
        disable=[*disable, *_split(environ.get(DISABLE_VARIABLE, ""))],
        strict=strict,
        trace=trace,
    )
    for plugin in extra:
        loaded.add_plugin(plugin)
    if strict:
        loaded.check_pending()
    return loaded


def _is_set(environ: Mapping[str, str], variable: str) -> bool:
    return environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
