"""Finding, choosing and loading plugins; what broken ones may not do."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from raftkit_core import hookimpl
from raftkit_core.errors import BadAdapterUrl, BrokenPlugin, DuplicateScheme, PluginError, UnknownScheme
from raftkit_core.plugins import LoadedPlugins, load_plugins
from raftkit_core.plugins.registry import StateMachineRegistry, StorageRegistry
from raftkit_core.types.adapter import AdapterContext

StateOf = Callable[[LoadedPlugins, str], str]


def test_the_installed_packages_are_found() -> None:
    found = {(plugin.name, plugin.distribution) for plugin in load_plugins().plugins()}
    assert {("core", "raftkit-core"), ("sqlite", "raftkit-sqlite"), ("http", "raftkit-http")} <= found


def test_looking_up_a_scheme_loads_the_plugin_of_that_name_only(site: Any, state_of: StateOf, context: Any) -> None:
    alpha, beta = site.install_storage("alpha", "alpha"), site.install_storage("beta", "beta")
    plugins = site.load()
    assert type(plugins.log_storage("alpha:", context)).__name__ == "MemoryLogStorage"
    assert (state_of(plugins, "alpha"), state_of(plugins, "beta")) == ("active", "available")
    assert alpha in sys.modules
    assert beta not in sys.modules


def test_a_scheme_of_a_plugin_with_another_name_is_found_by_loading_all(site: Any, context: Any) -> None:
    site.install_storage("alpha", "lmdb")
    assert site.load().log_storage("lmdb:", context).made_by == "raftkit_alpha_alpha_plugin"  # type: ignore[attr-defined]


def test_schemes_we_publish_are_looked_for_in_our_package_first(site: Any, state_of: StateOf) -> None:
    other = site.install_storage("other", "other")
    site.install_storage("redis", "rediss")
    plugins = site.load()
    assert plugins.find("storage", "rediss").distribution == "raftkit-redis"
    assert other not in sys.modules


def test_every_load_is_fresh(site: Any, state_of: StateOf) -> None:
    site.install_storage("alpha", "alpha")
    first, second = site.load(), site.load()
    first.load_all()
    assert (state_of(first, "alpha"), state_of(second, "alpha")) == ("active", "available")


# --- Broken plugins -------------------------------------------------------------------------------------------------


def test_a_plugin_that_cannot_be_imported_is_listed_and_stops_nothing(site: Any, context: Any) -> None:
    site.install("alpha", "import no_such_driver\n")
    site.install_storage("beta", "beta")
    plugins = site.load()
    plugins.load_all()
    broken = next(plugin for plugin in plugins.plugins() if plugin.name == "alpha")
    assert (broken.state, broken.distribution, broken.version) == ("broken", "raftkit-alpha", "1.2")
    assert broken.reason == "ModuleNotFoundError: No module named 'no_such_driver'"
    plugins.log_storage("beta:", context)
    plugins.log_storage("memory:", context)


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError('at import')",
        "import sys; sys.exit(3)",
        "def broken(:",
        "@hookimpl\ndef raftkit_register_storage(registry): raise RuntimeError('in the hook')",
        "@hookimpl\ndef raftkit_register_storage(registry): registry.add('Not A Scheme', print)",
        "@hookimpl\ndef raftkit_register_storage(registry): registry.add('alpha', 'no factory')",
        "@hookimpl\ndef raftkit_register_storage(registry, surprise): pass",
        "@hookimpl\ndef raftkit_register_storag(registry): pass",
        "def raftkit_register_storage(registry): pass",
    ],
)
def test_asking_for_a_broken_plugin_names_it_and_what_to_type(site: Any, body: str, context: Any) -> None:
    site.install("alpha", body)
    site.install_storage("beta", "beta")
    plugins = site.load()
    plugins.log_storage("beta:", context)
    for _ in range(2):
        with pytest.raises(BrokenPlugin, match=r"alpha \(raftkit-alpha 1.2\) is broken: ") as refused:
            plugins.log_storage("alpha:", context)
        assert "raftkit-alpha" in (refused.value.hint or "")


def test_the_hint_for_a_broken_import_is_a_pip_command(site: Any, context: Any) -> None:
    site.install("alpha", "import no_such_driver\n")
    with pytest.raises(BrokenPlugin) as refused:
        site.load().log_storage("alpha:", context)
    assert refused.value.hint == "pip install --upgrade --force-reinstall raftkit-alpha"
    assert isinstance(refused.value.__cause__, ModuleNotFoundError)


def test_a_hook_that_fails_half_way_adds_nothing(site: Any) -> None:
    body = "@hookimpl\ndef raftkit_register_storage(registry):\n    registry.add('half', print)\n    1 / 0\n"
    site.install("alpha", body)
    plugins = site.load()
    assert "half" not in plugins.schemes("storage")


def test_a_misspelt_hook_is_told_the_right_name(site: Any) -> None:
    site.install("alpha", "@hookimpl\ndef raftkit_register_storag(registry): pass")
    with pytest.raises(BrokenPlugin, match=r"did you mean raftkit_register_storage\?"):
        site.load().check_pending()


def test_a_hook_without_its_marker_is_found(site: Any) -> None:
    site.install("alpha", "def raftkit_doctor_checks(): return []")
    with pytest.raises(BrokenPlugin, match="raftkit_doctor_checks lacks @hookimpl"):
        site.load().check_pending()


def test_an_entry_point_that_cannot_be_read_is_broken_and_has_no_distribution(context: Any) -> None:
    plugins = load_plugins(entry_points=[EntryPoint("odd", "not a module!", "raftkit")], environ={})
    with pytest.raises(BrokenPlugin, match=r"odd \(unknown\) is broken"):
        plugins.log_storage("odd:", context)
    plugins.log_storage("memory:", context)


def test_an_unknown_scheme_mentions_broken_plugins_that_may_have_it(site: Any, context: Any) -> None:
    site.install("alpha", "import no_such_driver\n")
    with pytest.raises(UnknownScheme) as refused:
        site.load().log_storage("lmdb:", context)
    assert "broken plugins, which may provide it: alpha (raftkit-alpha 1.2): ModuleNotFoundError" in str(
        refused.value.hint
    )


def test_strict_raises_for_a_plugin_nobody_asked_for(site: Any) -> None:
    site.install("alpha", "import no_such_driver\n")
    for settings in ({"strict": True}, {"environ": {"RAFTKIT_STRICT_PLUGINS": "1"}}):
        with pytest.raises(BrokenPlugin, match="alpha"):
            site.load(**settings)
    site.load(environ={"RAFTKIT_STRICT_PLUGINS": "0"})


# --- Choosing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"environ": {"RAFTKIT_PLUGINS": " beta , gamma"}},
        {"environ": {"RAFTKIT_PLUGINS": ""}},
        {"environ": {"RAFTKIT_DISABLE_PLUGINS": "alpha"}},
        {"environ": {"RAFTKIT_DISABLE_PLUGINS": "Raftkit_Alpha"}},
        {"allow": ["beta"]},
        {"allow": ["alpha"], "environ": {"RAFTKIT_PLUGINS": "beta"}},
        {"disable": ["alpha"], "environ": {"RAFTKIT_PLUGINS": "alpha"}},
    ],
)
def test_a_plugin_that_is_not_allowed_is_never_imported(
    site: Any, settings: dict[str, Any], context: Any, state_of: StateOf
) -> None:
    alpha = site.install_storage("alpha", "alpha")
    plugins = site.load(**settings)
    with pytest.raises(UnknownScheme) as refused:
        plugins.log_storage("alpha:", context)
    assert "alpha (raftkit-alpha 1.2) is disabled" in (refused.value.hint or "")
    assert state_of(plugins, "alpha") == "disabled"
    assert alpha not in sys.modules
    plugins.log_storage("memory:", context)  # the built-in plugin needs no allowing


def test_the_built_in_plugin_can_be_disabled(site: Any, context: Any) -> None:
    with pytest.raises(UnknownScheme):
        site.load(disable=["core"]).log_storage("memory:", context)


def test_an_allow_list_names_entry_points_or_distributions(site: Any, context: Any) -> None:
    site.install_storage("alpha", "alpha")
    for name in ("alpha", "raftkit-alpha"):
        site.load(environ={"RAFTKIT_PLUGINS": name}).log_storage("alpha:", context)


# --- Unknown and duplicate schemes ----------------------------------------------------------------------------------


def test_an_unknown_scheme_lists_what_is_known(site: Any, context: Any) -> None:
    site.install_storage("alpha", "alpha")
    with pytest.raises(UnknownScheme) as refused:
        site.load().log_storage("lmdb:", context)
    assert refused.value.message == "no log storage is called 'lmdb'; known: alpha, import, memory"


@pytest.mark.parametrize(
    ("make", "name", "hint"),
    [
        ("log_storage", "sqlite:n1.db", "pip install raftkit-sqlite"),
        ("log_storage", "redis://h/0", "pip install raftkit-redis"),
        ("log_storage", "rediss://h/0", "pip install raftkit-redis"),
        ("network", "https://h:1", "pip install raftkit-http"),
        ("state_machine", "sqlite-kv", "pip install raftkit-sqlite"),
        ("log_storage", "sqlit:n1.db", "did you mean sqlite?"),
        ("log_storage", "n1.db", "for a file write sqlite:n1.db"),
        ("log_storage", "kv", "kv is a state machine, not a log storage"),
        ("state_machine", "redis-kw", "did you mean redis-kv?"),
        ("network", "quic:", "raftkit plugins list"),
    ],
)
def test_an_unknown_scheme_says_what_to_do(site: Any, context: Any, make: str, name: str, hint: str) -> None:
    with pytest.raises(UnknownScheme) as refused:
        getattr(site.load(), make)(name, context)
    assert refused.value.hint == hint


def test_two_plugins_with_one_scheme_are_an_error_of_whoever_asks_for_it(site: Any, context: Any) -> None:
    site.install_storage("alpha", "same", distribution="a-log")
    site.install_storage("beta", "same", distribution="b-log")
    plugins = site.load()
    plugins.log_storage("memory:", context)
    with pytest.raises(DuplicateScheme, match=r"'same'.*alpha \(a-log\) and beta \(b-log\)") as refused:
        plugins.log_storage("same:", context)
    assert refused.value.hint == "disable all but one of them, as in RAFTKIT_DISABLE_PLUGINS=b-log"
    site.load(disable=["b-log"]).log_storage("same:", context)


def test_two_entry_points_of_one_name_are_both_asked(site: Any, context: Any) -> None:
    site.install_storage("same", "same", distribution="a-log")
    site.install_storage("same", "same", distribution="b-log")
    with pytest.raises(DuplicateScheme):
        site.load().log_storage("same:", context)


def test_a_plugin_handed_over_does_not_silently_replace_an_installed_one(site: Any, context: Any) -> None:
    class Mine:
        @hookimpl
        def raftkit_register_storage(self, registry: StorageRegistry) -> None:
            registry.add("alpha", lambda url, context: None)  # type: ignore[arg-type,return-value]

    site.install_storage("alpha", "alpha")
    with pytest.raises(DuplicateScheme, match=r"Mine \(application\) and alpha \(raftkit-alpha\)"):
        site.load(Mine()).log_storage("alpha:", context)


def test_one_scheme_twice_in_one_plugin_is_broken(site: Any) -> None:
    site.install(
        "alpha",
        "@hookimpl\ndef raftkit_register_network(registry):\n    [registry.add('a', print) for _ in range(2)]\n",
    )
    with pytest.raises(BrokenPlugin, match="registers the network 'a' twice"):
        site.load().check_pending()


# --- Plugins that are handed over -----------------------------------------------------------------------------------


def test_an_object_a_module_and_a_dotted_name_can_be_handed_over(site: Any, context: Any) -> None:
    class Mine:
        @hookimpl
        def raftkit_register_storage(self, registry: StorageRegistry) -> None:
            from raftkit_core.storage.memory import MemoryLogStorage

            registry.add("mine", lambda url, context: MemoryLogStorage())

    module = ModuleType("made_up")
    module.raftkit_register_network = hookimpl(lambda registry: None)  # type: ignore[attr-defined]
    named = site.install_storage("alpha", "alpha")
    plugins = load_plugins([Mine(), module, named], entry_points=[], environ={})
    assert {"mine", "alpha"} <= set(plugins.schemes("storage"))
    assert [plugin.distribution for plugin in plugins.plugins()][1:] == ["application"] * 3


def test_a_broken_plugin_that_is_handed_over_is_an_error_at_once() -> None:
    with pytest.raises(BrokenPlugin, match="no_such_module"):
        load_plugins(["no_such_module"], entry_points=[], environ={})
    unhashable = SimpleNamespace()
    with pytest.raises(BrokenPlugin, match="unhashable"):
        load_plugins([unhashable], entry_points=[], environ={})


def test_an_installed_plugin_may_be_handed_over_too(site: Any, context: Any, state_of: StateOf) -> None:
    name = site.install_storage("alpha", "alpha")
    plugins = site.load(name)
    plugins.log_storage("alpha:", context)
    assert (state_of(plugins, name), state_of(plugins, "alpha")) == ("active", "disabled")


# --- Making adapters ------------------------------------------------------------------------------------------------


def test_a_factory_that_fails_or_makes_something_else_is_a_broken_plugin(context: Any) -> None:
    class Mine:
        @hookimpl
        def raftkit_register_storage(self, registry: StorageRegistry) -> None:
            registry.add("wrong", lambda url, context: 5)  # type: ignore[arg-type,return-value]
            registry.add("fails", lambda url, context: 1 / 0)  # type: ignore[arg-type,return-value]
            registry.add("typed", self.refuse)  # type: ignore[arg-type]

        def refuse(self, url: object, context: object) -> None:
            raise BadAdapterUrl("no file")

    plugins = load_plugins([Mine()], entry_points=[], environ={})
    with pytest.raises(BrokenPlugin, match="made a int for log storage 'wrong': no RaftLogStorage"):
        plugins.log_storage("wrong:", context)
    with pytest.raises(BrokenPlugin, match="cannot make its log storage 'fails': ZeroDivisionError"):
        plugins.log_storage("fails:", context)
    with pytest.raises(BadAdapterUrl, match="no file"):
        plugins.log_storage("typed:", context)


def test_a_state_machine_factory_must_take_url_and_context_or_context() -> None:
    registry = StateMachineRegistry("p", "d")
    registry.add("both", lambda url, context: None)  # type: ignore[arg-type,return-value]
    registry.add("one", lambda context: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(PluginError, match=r"'none' takes neither \(url, context\) nor \(context\)"):
        registry.add("none", lambda: None)  # type: ignore[arg-type]


# --- What is not imported -------------------------------------------------------------------------------------------


def run_python(code: str, *path: object) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAFTKIT_")}
    environ["PYTHONPATH"] = os.pathsep.join([*map(str, path), environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_hookimpl_loads_pluggy_and_nothing_of_weight() -> None:
    loaded = run_python(
        "import sys\nfrom raftkit_core import hookimpl\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in"
        " ('raftkit_core', 'asyncio', 'msgspec', 'logging', 'pluggy', 'tomllib')))"
    ).split()
    assert [name for name in loaded if not name.startswith("pluggy")] == [
        "raftkit_core",
        "raftkit_core.plugins",
        "raftkit_core.plugins.hookspecs",
    ]


def test_one_installed_scheme_imports_no_other_plugin(site: Any) -> None:
    names = [site.install_storage(name, name) for name in ("lazyone", "lazytwo")]
    loaded = run_python(
        "import sys\nfrom raftkit_core import load_plugins\nplugins = load_plugins()\n"
        "plugins.find('storage', 'lazyone'); plugins.find('storage', 'memory'); plugins.find('state_machine', 'kv')\n"
        f"print(*[m for m in sys.modules if m in {names!r} or m.startswith(('raftkit_redis', 'raftkit_http'))])",
        site.folder,
    )
    assert loaded == names[0]


def test_loading_every_plugin_imports_no_driver() -> None:
    loaded = run_python(
        "import sys\nfrom raftkit_core import load_plugins\nload_plugins().load_all()\n"
        "print(*[m for m in ('aiohttp', 'redis', 'aiosqlite', 'sqlite3', 'rich', 'click', 'prometheus_client')"
        " if m in sys.modules])"
    )
    assert loaded == ""


def test_a_failing_hook_is_logged_and_kept_as_the_reason(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    site.install("alpha", "@hookimpl\ndef raftkit_doctor_checks(): raise RuntimeError('boom')")
    plugins = site.load()
    with caplog.at_level(logging.WARNING, "raftkit.plugins"):
        assert plugins.doctor_checks() == []
    assert "raftkit_doctor_checks failed: RuntimeError: boom" in caplog.text
    listed = next(plugin for plugin in plugins.plugins() if plugin.name == "alpha")
    assert (listed.state, listed.reason) == ("active", "raftkit_doctor_checks failed: RuntimeError: boom")
    with pytest.raises(BrokenPlugin, match="boom"):
        site.load(strict=True).doctor_checks()


def test_the_context_reaches_the_factory(context: AdapterContext) -> None:
    seen: list[object] = []

    class Mine:
        @hookimpl
        def raftkit_register_storage(self, registry: StorageRegistry) -> None:
            registry.add("mine", lambda url, context: seen.extend([url.path, context]))  # type: ignore[func-returns-value,arg-type,return-value]

    with pytest.raises(BrokenPlugin):
        load_plugins([Mine()], entry_points=[], environ={}).log_storage("mine:a", context)
    assert seen == ["a", context]
