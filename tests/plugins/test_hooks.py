"""Each hook, seen from a plugin that implements it."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pluggy
import pytest

from raftkit_core import Config, hookimpl
from raftkit_core.errors import BadAdapterUrl, UnknownScheme
from raftkit_core.instrument import Instrument
from raftkit_core.network.client import ClusterClient
from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.plugins import DoctorCheck, DoctorFinding, LoadedPlugins, hookspecs, load_plugins
from raftkit_core.plugins.registry import ClientRegistry, NetworkRegistry, StateMachineRegistry, StorageRegistry
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.storage.memory import MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.types.adapter import AdapterContext


def concrete(interface: type[Any]) -> Any:
    """A class that implements ``interface`` as far as being made goes."""

    def remember(self: Any, *arguments: object) -> None:
        self.arguments = arguments

    methods = dict.fromkeys(interface.__abstractmethods__, remember)  # type: ignore[attr-defined]
    return type(f"Some{interface.__name__}", (interface,), {**methods, "__init__": remember, "name": "some/1"})


SomeNetwork = concrete(RaftNetworkFactory)
SomeClient = concrete(ClusterClient)
SomeMachine = concrete(RaftStateMachine)


class Watcher(Instrument):
    pass


class Everything:
    """A plugin with every hook."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Config]] = []

    @hookimpl
    def raftkit_register_storage(self, registry: StorageRegistry) -> None:
        registry.add("some", lambda url, context: MemoryLogStorage())
        registry.add(
            "paired",
            lambda url, context: MemoryLogStorage(),
            snapshots=lambda url, context: MemorySnapshotStorage(),
        )
        registry.add_snapshots("some", lambda url, context: MemorySnapshotStorage())

    @hookimpl
    def raftkit_register_network(self, registry: NetworkRegistry) -> None:
        registry.add("some", SomeNetwork)

    @hookimpl
    def raftkit_register_clients(self, registry: ClientRegistry) -> None:
        registry.add("some", SomeClient)
        registry.add("http", SomeClient)

    @hookimpl
    def raftkit_register_state_machine(self, registry: StateMachineRegistry) -> None:
        registry.add("some", lambda url, context: SomeMachine(url, context))
        registry.add("plain", lambda context: SomeMachine(context))

    @hookimpl
    def raftkit_instruments(self, node_id: str, config: Config) -> Instrument:
        self.seen.append((node_id, config))
        return Watcher()

    @hookimpl
    def raftkit_doctor_checks(self) -> list[DoctorCheck]:
        return [DoctorCheck("clock", lambda data_dir: [DoctorFinding("ok", "the clock runs")])]

    @hookimpl(optionalhook=True)
    def raftkit_register_commands(self, cli: list[str]) -> None:
        cli.append("everything")


def loaded(plugin: object, **settings: Any) -> LoadedPlugins:
    return load_plugins([plugin], entry_points=[], environ={}, **settings)


def test_every_hook_is_synchronous_documented_and_implemented_here() -> None:
    hooks = {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "raftkit_spec")}
    assert set(hooks) == {
        "raftkit_register_storage",
        "raftkit_register_network",
        "raftkit_register_clients",
        "raftkit_register_state_machine",
        "raftkit_instruments",
        "raftkit_doctor_checks",
    }
    for name, spec in hooks.items():
        assert inspect.getdoc(spec), name
        assert not inspect.iscoroutinefunction(spec)
        assert spec.raftkit_spec["firstresult"] is False
        assert hasattr(getattr(Everything, name), "raftkit_impl")


def test_raftkit_register_storage_adds_log_and_snapshot_storages(context: AdapterContext) -> None:
    plugins = loaded(Everything())
    assert isinstance(plugins.log_storage("some:x", context), MemoryLogStorage)
    assert isinstance(plugins.snapshot_storage("some:", context), MemorySnapshotStorage)
    assert isinstance(plugins.paired_snapshot_storage("paired:", context), MemorySnapshotStorage)


def test_snapshots_that_do_not_belong_to_a_log_storage_are_used_only_by_name(context: AdapterContext) -> None:
    assert loaded(Everything()).paired_snapshot_storage("some:", context) is None


def test_raftkit_register_network_adds_transports(context: AdapterContext) -> None:
    made: Any = loaded(Everything()).network("some://h:1?a=b", context)
    url, given = made.arguments
    assert (url.host, url.options, given) == ("h", {"a": "b"}, context)


def test_raftkit_register_clients_adds_clients_by_the_scheme_of_the_endpoints() -> None:
    made: Any = loaded(Everything()).client(["some://a:1", "some://b:2"], {"token": "t"})
    assert made.arguments == (["some://a:1", "some://b:2"], {"token": "t"})


def test_an_endpoint_without_a_scheme_is_http() -> None:
    made: Any = loaded(Everything()).client(["localhost:7401", "127.0.0.1:7402", "n-3.example:1"])
    assert made.arguments == (["http://localhost:7401", "http://127.0.0.1:7402", "http://n-3.example:1"], {})


def test_a_client_needs_endpoints_of_one_transport() -> None:
    plugins = loaded(Everything())
    with pytest.raises(BadAdapterUrl, match="no endpoint"):
        plugins.client([])
    with pytest.raises(UnknownScheme, match="no client is called 'quic'"):
        plugins.client(["quic://a:1"])

    class Other:
        @hookimpl
        def raftkit_register_clients(self, registry: ClientRegistry) -> None:
            registry.add("other", SomeClient)

    plugins.add_plugin(Other())
    with pytest.raises(BadAdapterUrl, match="different transports: other, some"):
        plugins.client(["some://a:1", "other://b:2"])


def test_raftkit_register_state_machine_adds_machines_by_name(context: AdapterContext) -> None:
    plugins = loaded(Everything())
    made: Any = plugins.state_machine("some:///data/x?a=1", context)
    assert (made.arguments[0].path, made.arguments[1]) == ("/data/x", context)
    plain: Any = plugins.state_machine("plain", context)
    assert plain.arguments == (context,)


@pytest.mark.parametrize("name", ["plain:x", "plain://host"])
def test_a_machine_without_url_takes_no_address(name: str, context: AdapterContext) -> None:
    with pytest.raises(BadAdapterUrl, match="takes no address"):
        loaded(Everything()).state_machine(name, context)


def test_raftkit_instruments_gives_observers_of_one_node() -> None:
    plugin, config = Everything(), Config()
    told: list[str] = []

    class Several:
        @hookimpl
        def raftkit_instruments(self, node_id: str) -> list[Instrument]:
            class Ear(Instrument):
                def trace(self, step: str) -> None:
                    told.append(f"{node_id} {step}")

            return [Ear(), Ear()]

    plugins = loaded(plugin)
    plugins.add_plugin(Several())
    plugins.instruments("n1", config).trace("step")
    assert plugin.seen == [("n1", config)]
    assert told == ["n1 step", "n1 step"]


def test_raftkit_doctor_checks_gives_checks() -> None:
    (check,) = loaded(Everything()).doctor_checks()
    assert (check.name, list(check.run(None))) == ("clock", [DoctorFinding("ok", "the clock runs")])


def test_raftkit_register_commands_is_called_where_its_spec_is_known() -> None:
    specs = ModuleType("specs")
    marker = pluggy.HookspecMarker("raftkit")

    def raftkit_register_commands(cli: list[str]) -> None:
        """Add commands."""

    specs.raftkit_register_commands = marker(raftkit_register_commands)  # type: ignore[attr-defined]
    verbs: list[str] = []
    loaded(Everything(), hookspecs=[specs]).call_each("raftkit_register_commands", cli=verbs)
    assert verbs == ["everything"]


def test_a_list_of_plugins_says_what_each_provides() -> None:
    plugins = loaded(Everything())
    plugins.load_all()
    core, everything = plugins.plugins()
    assert (core.name, core.distribution, core.state) == ("core", "raftkit-core", "active")
    assert (core.storage, core.network, core.state_machine) == (
        ["import", "memory"],
        ["import", "memory"],
        ["import", "kv"],
    )
    assert (everything.storage, everything.snapshots, everything.clients) == (
        ["paired", "some"],
        ["paired", "some"],
        ["http", "some"],
    )
    assert "raftkit_instruments" in everything.hooks
