"""``sqlite:`` as a user names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftkit_core.errors import BadAdapterUrl, UnknownOption
from raftkit_core.plugins import AdapterUrl, StorageRegistry
from raftkit_core.testing.conformance.log_storage import context
from raftkit_sqlite import SqliteLogStorage, SqliteOptions, plugin


def made(url: str) -> SqliteLogStorage:
    registry = StorageRegistry("sqlite", "raftkit-sqlite")
    plugin.raftkit_register_storage(registry)
    (registration,) = registry.registrations
    assert registration.scheme == "sqlite"
    storage = registration.factory(AdapterUrl.parse(url), context())
    assert isinstance(storage, SqliteLogStorage)
    return storage


def test_a_url_names_a_file_and_options() -> None:
    storage = made("sqlite:///var/lib/n1.db?durability=relaxed&wal_autocheckpoint=500&quick_check=true")
    assert storage.path == Path("/var/lib/n1.db")
    assert storage.options == SqliteOptions(durability="relaxed", wal_autocheckpoint=500, quick_check=True)
    assert made("sqlite:rel/n1.db").path == Path("rel/n1.db")
    assert made("sqlite:n1.db").options == SqliteOptions()


def test_an_unknown_option_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(UnknownOption) as refused:
        made("sqlite:n1.db?durabilty=full")
    assert "durability" in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:n1.db?durability=maybe",
        "sqlite:n1.db?wal_autocheckpoint=0",
        "sqlite:n1.db?wal_autocheckpoint=many",
        "sqlite:n1.db?quick_check=perhaps",
        "sqlite:",
        "sqlite://n1.db",
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_touched(url: str) -> None:
    with pytest.raises(BadAdapterUrl):
        made(url)
