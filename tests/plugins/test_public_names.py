"""The names of ``raftkit_core`` and ``raftkit_core.plugins`` resolve lazily, and to the right things."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import pytest

import raftkit_core
import raftkit_core.plugins


@pytest.mark.parametrize("module", [raftkit_core, raftkit_core.plugins])
def test_every_public_name_resolves_and_is_listed(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert names == sorted(names)
    assert set(names) <= set(dir(module))
    later = {name for name, home in (("Raft", "raft"), ("open_raft", "assembly")) if not _exists(home)}
    for name in set(names) - later:
        assert getattr(module, name) is not None


def _exists(home: str) -> bool:
    return find_spec(f"raftkit_core.{home}") is not None


def test_public_names_are_those_of_their_modules() -> None:
    from raftkit_core.config import Config
    from raftkit_core.types.membership import AddVoterIds, Node

    assert (raftkit_core.Config, raftkit_core.Node, raftkit_core.AddVoterIds) == (Config, Node, AddVoterIds)
    assert raftkit_core.errors.ConfigError.__module__ == "raftkit_core.errors"
    assert raftkit_core.__version__ == version("raftkit-core")


@pytest.mark.parametrize("module", [raftkit_core, raftkit_core.plugins])
def test_an_unknown_name_is_an_attribute_error(module: object) -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # type: ignore[attr-defined]  # noqa: B018
