"""What the plugin of raftkit-core provides: memory, file snapshots, kv and import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import BadAdapterUrl, BrokenPlugin, UnknownOption
from raftkit_core.network.memory import MemoryNetworkFactory
from raftkit_core.plugins import load_plugins
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.file_snapshots import FileSnapshotStorage
from raftkit_core.storage.memory import MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.types.adapter import AdapterContext

MODULE = """
from raftkit_core.storage.memory import MemoryLogStorage, MemorySnapshotStorage

class Mine(MemoryLogStorage):
    arguments = None

class Nested:
    Inner = Mine

class Snapshots(MemorySnapshotStorage):
    pass

def given(**arguments):
    raise TypeError("never called with anything it does not name")

def of_both(context, url):
    made = Mine()
    made.arguments = (url, context)
    return made

def of_url(url, *, depth=3):
    made = Mine()
    made.arguments = (url, depth)
    return made

def fails(url):
    raise RuntimeError("on purpose")

def needs_more(path):
    return Mine()

ready = Mine()
number = 5
"""


@pytest.fixture
def plugins() -> Any:
    return load_plugins(environ={}, entry_points=[])


@pytest.fixture
def module(site: Any) -> str:
    (site.folder / "my_adapters.py").write_text(MODULE)
    return "my_adapters"


def test_memory_is_a_log_storage_with_snapshots_of_its_own(plugins: Any, context: AdapterContext) -> None:
    storage = plugins.log_storage("memory", context)
    assert isinstance(storage, MemoryLogStorage)
    assert storage is not plugins.log_storage("memory", context)
    assert isinstance(plugins.paired_snapshot_storage("memory:", context), MemorySnapshotStorage)


def test_memory_is_a_network(plugins: Any, context: AdapterContext) -> None:
    network = plugins.network("memory:hub", context)
    assert isinstance(network, MemoryNetworkFactory)
    assert network.advertised().peer == "memory:hub/n1"
    for text in ("memory:hub/n1", "memory://hub"):
        with pytest.raises(BadAdapterUrl, match="names no hub"):
            plugins.network(text, context)


def test_kv_is_a_state_machine(plugins: Any, context: AdapterContext) -> None:
    assert isinstance(plugins.state_machine("kv", context), KvStateMachine)


def test_file_snapshots_are_under_the_data_dir(plugins: Any, tmp_path: Path) -> None:
    context = AdapterContext("n1", clock=SystemClock(), data_dir=tmp_path)
    assert isinstance(plugins.snapshot_storage("file:snapshots", context), FileSnapshotStorage)
    assert plugins.snapshot_storage("file:snapshots", context).folder == tmp_path / "snapshots"


@pytest.mark.parametrize(
    ("make", "text"), [("log_storage", "memory:?a=1"), ("state_machine", "kv?a=1"), ("snapshot_storage", "file:x?a=1")]
)
def test_built_in_adapters_take_no_options(plugins: Any, context: AdapterContext, make: str, text: str) -> None:
    with pytest.raises(UnknownOption, match="has no option 'a'"):
        getattr(plugins, make)(text, context)


# --- import: --------------------------------------------------------------------------------------------------------


def test_import_calls_a_class_without_arguments_it_does_not_name(plugins: Any, module: str, context: Any) -> None:
    for attribute in ("Mine", "Nested.Inner"):
        assert type(plugins.log_storage(f"import:{module}:{attribute}", context)).__name__ == "Mine"


def test_import_gives_url_and_context_to_what_names_them(plugins: Any, module: str, context: Any) -> None:
    url, given = plugins.log_storage(f"import:{module}:of_both?a=1", context).arguments
    assert (url.options, given) == ({"a": "1"}, context)
    assert plugins.log_storage(f"import:{module}:of_url", context).arguments[1] == 3


def test_import_uses_an_instance_as_it_is(plugins: Any, module: str, context: Any) -> None:
    first = plugins.log_storage(f"import:{module}:ready", context)
    assert first is plugins.log_storage(f"import:{module}:ready", context)


def test_import_gives_snapshot_storages_too(plugins: Any, module: str, context: Any) -> None:
    assert type(plugins.snapshot_storage(f"import:{module}:Snapshots", context)).__name__ == "Snapshots"
    assert plugins.paired_snapshot_storage(f"import:{module}:Mine", context) is None


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", BadAdapterUrl, "names no object"),
        ("my_adapters", BadAdapterUrl, "names no object"),
        ("my_adapters:", BadAdapterUrl, "names no object"),
        ("my-adapters:Mine", BadAdapterUrl, "names no object"),
        ("no_such_module:Mine", BrokenPlugin, "there is no module 'no_such_module'"),
        ("my_adapters.sub:Mine", BrokenPlugin, "there is no module"),
        ("my_adapters:Min", BrokenPlugin, "has no 'Min'; did you mean 'Mine'"),
        ("my_adapters:number", BrokenPlugin, "neither a RaftLogStorage nor anything to call"),
        ("my_adapters:Snapshots", BrokenPlugin, "gives a Snapshots, which is no RaftLogStorage"),
        ("my_adapters:fails", BrokenPlugin, "RuntimeError: on purpose"),
        ("my_adapters:needs_more", BrokenPlugin, "missing 1 required positional argument: 'path'"),
        ("my_adapters:given", BrokenPlugin, "never called with"),
        ("my_adapters:Mine?a=1", UnknownOption, "has no option 'a'"),
        ("my_adapters:ready?a=1", UnknownOption, "has no option 'a'"),
        ("broken_module:Mine", BrokenPlugin, "importing broken_module failed: ValueError: at import"),
        ("needy_module:Mine", BrokenPlugin, "needy_module needs the module 'no_such_driver'"),
    ],
)
def test_what_cannot_be_imported_is_a_typed_error(
    plugins: Any, site: Any, module: str, context: Any, path: str, error: type[Exception], message: str
) -> None:
    (site.folder / "broken_module.py").write_text("raise ValueError('at import')\n")
    (site.folder / "needy_module.py").write_text("import no_such_driver\n")
    with pytest.raises(error, match=message):
        plugins.log_storage(f"import:{path}", context)
