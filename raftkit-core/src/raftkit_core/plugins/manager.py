"""Finding and loading plugins: one by one, as late as possible, and a broken one harms nobody else.

pluggy's own ``load_setuptools_entrypoints`` imports everything and stops at the first failure, so this is our own loop.
Nothing is kept between calls: every ``load_plugins`` gives a set of its own. Making adapters out of it is in
:mod:`raftkit_core.plugins.loaded`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import pluggy

from raftkit_core.errors import BrokenPlugin, PluginError, UnknownScheme
from raftkit_core.plugins import hookspecs as core_hookspecs
from raftkit_core.plugins.hookspecs import PROJECT
from raftkit_core.plugins.plugin import (
    CORE,
    Plugin,
    PluginInfo,
    canonical,
    check_api,
    from_module,
    from_object,
    text_of,
)
from raftkit_core.plugins.registry import (
    KINDS,
    PUBLISHED,
    AdapterRegistry,
    Catalog,
    ClientRegistry,
    Kind,
    NetworkRegistry,
    Registration,
    StateMachineRegistry,
    StorageRegistry,
)
from raftkit_core.plugins.trace import Trace
from raftkit_core.plugins.url import did_you_mean

log = logging.getLogger("raftkit.plugins")

ALLOW_VARIABLE = "RAFTKIT_PLUGINS"
DISABLE_VARIABLE = "RAFTKIT_DISABLE_PLUGINS"
STRICT_VARIABLE = "RAFTKIT_STRICT_PLUGINS"

_REGISTER_HOOKS: Final[tuple[tuple[str, type[AdapterRegistry[Any]]], ...]] = (
    ("raftkit_register_storage", StorageRegistry),
    ("raftkit_register_network", NetworkRegistry),
    ("raftkit_register_clients", ClientRegistry),
    ("raftkit_register_state_machine", StateMachineRegistry),
)


class PluginSet:
    """A set of plugins. Each is imported when something it may provide is asked for, and then stays loaded.

    ``add_plugin`` and every lookup are for start-up: they import modules and call hooks.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin],
        *,
        hookspecs: Sequence[ModuleType] = (),
        allow: Sequence[Sequence[str]] = (),
        disable: Sequence[str] = (),
        strict: bool = False,
        trace: Trace | None = None,
    ) -> None:
        self.strict = strict
        self._trace = trace or Trace()
        self._plugins = list(plugins)
        self._catalogs = {kind: Catalog(kind) for kind in KINDS}
        self._pm = pluggy.PluginManager(PROJECT)
        for spec in (core_hookspecs, *hookspecs):
            self._pm.add_hookspecs(spec)
        for plugin in self._plugins:
            if plugin.is_named(disable):
                plugin.state, plugin.reason = "disabled", f"it is in {DISABLE_VARIABLE} or the [plugins] disable list"
            elif plugin.name != CORE and not all(plugin.is_named(names) for names in allow):
                plugin.state, plugin.reason = "disabled", f"it is not in {ALLOW_VARIABLE} or the [plugins] allow list"

    # --- Looking ----------------------------------------------------------------------------------------------------

    def plugins(self) -> list[PluginInfo]:
        """Every plugin as it is now, without loading any; call :meth:`load_all` first to learn what each provides."""
        return [
            PluginInfo(
                name=plugin.name,
                distribution=plugin.distribution,
                version=plugin.version,
                module=plugin.module,
                state=plugin.state,
                reason=plugin.reason,
                hooks=sorted(plugin.hooks),
                api=plugin.api,
                storage=self._catalogs["storage"].of_plugin(plugin.name, plugin.distribution),
                snapshots=self._catalogs["snapshots"].of_plugin(plugin.name, plugin.distribution),
                network=self._catalogs["network"].of_plugin(plugin.name, plugin.distribution),
                clients=self._catalogs["clients"].of_plugin(plugin.name, plugin.distribution),
                state_machine=self._catalogs["state_machine"].of_plugin(plugin.name, plugin.distribution),
            )
            for plugin in self._plugins
        ]

    def schemes(self, kind: Kind) -> list[str]:
        """Schemes or names of ``kind`` that all plugins together provide. Loads all."""
        self.load_all()
        return self._catalogs[kind].schemes

    def find(self, kind: Kind, scheme: str) -> Registration[Any]:
        """Who provides ``scheme``: asks the plugin of that name first, and loads the others only if it must.

        Raises:
            UnknownScheme: nobody; the error lists what is known and, for what raftkit publishes, what to install.
            BrokenPlugin: the plugin of that name cannot be loaded.
            DuplicateScheme: several plugins provide it.
        """
        found = self.try_find(kind, scheme)
        if found is None:
            raise self._unknown(kind, scheme)
        return found

    def try_find(self, kind: Kind, scheme: str, *, load_others: bool = True) -> Registration[Any] | None:
        """Like :meth:`find`, with None for what nobody provides, or nobody that is loaded (``load_others=False``).

        Raises: BrokenPlugin, DuplicateScheme.
        """
        catalog = self._catalogs[kind]
        # The namesake is loaded even if somebody provides the scheme already: a duplicate must not depend on what
        # happened to be asked for before.
        for plugin in self._plugins:
            if plugin.answers_to(kind, scheme):
                self._load(plugin)
                if plugin.state == "broken":
                    raise self._broken(plugin) from plugin.cause
        found = catalog.find(scheme)
        if found is None and load_others:
            self.load_all()
            found = catalog.find(scheme)
        return found

    # --- Loading ----------------------------------------------------------------------------------------------------

    def add_plugin(self, plugin: object) -> None:
        """Load a plugin that may not be installed: a module, an object with hooks, or the dotted name of a module.

        Raises:
            BrokenPlugin: it cannot be loaded. What is handed over by name is always asked for.
        """
        new = from_module(plugin) if isinstance(plugin, str) else from_object(plugin)
        self._plugins.append(new)
        self._load(new)
        if new.state == "broken":
            raise self._broken(new) from new.cause

    def load_all(self) -> None:
        """Load whatever is not disabled. Broken plugins are listed as broken. Raises: BrokenPlugin if ``strict``."""
        for plugin in list(self._plugins):
            self._load(plugin)

    def check_pending(self) -> None:
        """Load everything and accept no flaw: what the tests of a plugin call.

        Raises:
            BrokenPlugin: the first plugin that cannot be loaded or has a hook nobody ever calls.
        """
        self.load_all()
        for plugin in self._plugins:
            if plugin.state == "broken" or plugin.cause is not None:
                raise self._broken(plugin) from plugin.cause
        try:
            self._pm.check_pending()
        except pluggy.PluginValidationError as error:
            raise BrokenPlugin(str(error)) from error

    def call_each(self, hook: str, **arguments: object) -> list[tuple[PluginInfo, Any]]:
        """Call ``hook`` of every plugin that has it, each on its own. Loads all.

        A plugin that raises gives no result, is logged, and keeps the failure as its ``reason``.

        Raises:
            BrokenPlugin: a plugin raised and ``strict`` is set.
        """
        self.load_all()
        results = []
        for plugin, info in zip(list(self._plugins), self.plugins(), strict=True):
            if plugin.state == "active" and hook in plugin.hooks:
                try:
                    results += [(info, result) for result in self._call(plugin, hook, **arguments)]
                except Exception as error:
                    plugin.reason, plugin.cause = f"{hook} failed: {text_of(error)}", error
                    if self.strict:
                        raise self._broken(plugin) from error
                    log.warning("plugin %s: %s", plugin.describe(), plugin.reason)
        return results

    def _load(self, plugin: Plugin) -> None:
        if plugin.state != "available":
            return
        try:
            with self._trace.step(plugin.describe(), f"import {plugin.module}"):
                loaded = plugin.load()
            twin = next((known for known in self._plugins if known.state == "active" and known.loaded is loaded), None)
            if twin is not None:  # handed over as an object and installed as well: one plugin, not a duplicate
                plugin.state, plugin.reason = "disabled", f"it is loaded already, as {twin.describe()}"
                return
            self._register(plugin, loaded)
            for kind_registrations in self._collect(plugin):
                for catalog in self._catalogs.values():
                    catalog.merge(kind_registrations)
            plugin.state = "active"
        except (Exception, SystemExit) as error:  # a module may do anything while it is imported
            plugin.state, plugin.reason, plugin.cause = "broken", text_of(error), error
            if plugin.loaded is not None and self._pm.is_registered(plugin.loaded):
                self._pm.unregister(plugin.loaded)
            log.debug("plugin %s is broken: %s", plugin.describe(), plugin.reason)
            if self.strict:
                raise self._broken(plugin) from error

    def _register(self, plugin: Plugin, loaded: Any) -> None:
        hash(loaded)  # pluggy keeps plugins in sets; better found here than in the calls of the others
        plugin.loaded = loaded
        check_api(plugin)
        self._pm.register(loaded, name=f"{plugin.distribution}:{plugin.name}:{id(plugin):x}")
        known = [name for name in vars(self._pm.hook) if not name.startswith("_") and getattr(self._pm.hook, name).spec]
        for caller in self._pm.get_hookcallers(loaded) or ():
            plugin.hooks.append(caller.name)
            implementations = [found for found in caller.get_hookimpls() if found.plugin is loaded]
            if not caller.has_spec() and not all(found.optionalhook for found in implementations):
                nearest = did_you_mean(caller.name, known)
                raise PluginError(
                    f"it has a hook {caller.name!r}, which nobody calls"
                    + (f"; did you mean {nearest}?" if nearest else f"; known hooks: {', '.join(sorted(known))}")
                )
        for name in known:
            if name not in plugin.hooks and callable(getattr(loaded, name, None)):
                raise PluginError(f"its {name} lacks @hookimpl, so that nobody would call it")

    def _collect(self, plugin: Plugin) -> list[list[Registration[Any]]]:
        collected = []
        for hook, registry_type in _REGISTER_HOOKS:
            if hook in plugin.hooks:
                registry = registry_type(plugin.name, plugin.distribution)
                self._call(plugin, hook, registry=registry)
                collected.append(registry.registrations)
        return collected

    def _call(self, plugin: Plugin, hook: str, **arguments: object) -> list[Any]:
        others = [known for known in self._pm.get_plugins() if known is not plugin.loaded]
        with self._trace.step(plugin.describe(), hook) as step:
            results: list[Any] = self._pm.subset_hook_caller(hook, others)(**arguments)
            step.gave(arguments.get("registry"), results)
        return results

    # --- Saying what is wrong ---------------------------------------------------------------------------------------

    def _broken(self, plugin: Plugin) -> BrokenPlugin:
        if not plugin.is_installed:
            hint = f"correct {plugin.module}; it was handed over by the application"
        else:
            hint = f"pip install --upgrade --force-reinstall {plugin.distribution}"
            if isinstance(plugin.cause, PluginError):
                hint = f"report it to the authors of {plugin.distribution}, or set {DISABLE_VARIABLE}={plugin.name}"
        return BrokenPlugin(f"plugin {plugin.describe()} is broken: {plugin.reason}", hint=hint)

    def _unknown(self, kind: Kind, scheme: str) -> UnknownScheme:
        known = self._catalogs[kind].schemes
        noun = KINDS[kind]
        message = f"no {noun} is called {scheme!r}; known: {', '.join(known) or 'none'}"
        hints: list[str] = []
        published = PUBLISHED[kind].get(scheme)
        for plugin in self._plugins:
            if plugin.answers_to(kind, scheme) and plugin.state == "disabled":
                hints.append(f"plugin {plugin.describe()} is disabled: {plugin.reason}")
        if published and not any(canonical(plugin.distribution) == published for plugin in self._plugins):
            hints.append(f"pip install {published}")
        if not hints:
            hints += self._guesses(kind, scheme, known)
        broken = [plugin for plugin in self._plugins if plugin.state == "broken"]
        if broken:
            listed = "; ".join(f"{plugin.describe()}: {plugin.reason}" for plugin in broken)
            hints.append(f"broken plugins, which may provide it: {listed}")
        return UnknownScheme(message, hint="; ".join(hints) or "raftkit plugins list")

    def _guesses(self, kind: Kind, scheme: str, known: list[str]) -> list[str]:
        nearest = did_you_mean(scheme, known + [name for name in PUBLISHED[kind] if name not in known])
        if nearest:
            return [f"did you mean {nearest}?"]
        for other, catalog in self._catalogs.items():
            if other != kind and scheme in catalog.schemes:
                return [f"{scheme} is a {KINDS[other]}, not a {KINDS[kind]}"]
        if kind == "storage" and re.search(r"\.(db|sqlite3?)\Z", scheme):
            return [f"for a file write sqlite:{scheme}"]
        return []
