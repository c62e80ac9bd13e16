"""Which nodes a command line means: -e > RAFTKIT_ENDPOINTS > current context > ./raftkit.toml > the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.endpoints import forget_directory, resolve, save_context
from raftkit_cli.options import Invocation


def test_each_source_wins_over_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    invocation = Invocation()
    assert resolve(invocation).endpoints == ["http://127.0.0.1:7401"]

    Path("raftkit.toml").write_text('[bootstrap]\ninitial_cluster = { n1 = "http://toml:1", n2 = "http://toml:2" }\n')
    assert resolve(invocation).endpoints == ["http://toml:1", "http://toml:2"]

    save_context("local", endpoints=["http://context:1"], directory=tmp_path)
    assert resolve(invocation).endpoints == ["http://context:1"]

    monkeypatch.setenv("RAFTKIT_ENDPOINTS", "http://env:1, env:2")
    assert resolve(invocation).endpoints == ["http://env:1", "http://env:2"]

    invocation.endpoints = ("http://flag:1",)
    assert resolve(invocation).endpoints == ["http://flag:1"]


def test_a_named_context_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_context("one", endpoints=["http://one:1"], directory=tmp_path / "1")
    save_context("two", endpoints=["http://two:1"], directory=tmp_path / "2")
    monkeypatch.setenv("RAFTKIT_ENDPOINTS", "http://env:1")
    invocation = Invocation()
    invocation.context = "one"
    assert resolve(invocation).endpoints == ["http://one:1"]


def test_a_cluster_that_was_stopped_is_forgotten(tmp_path: Path) -> None:
    save_context("local", endpoints=["http://context:1"], directory=tmp_path)
    forget_directory(tmp_path)
    assert resolve(Invocation()).endpoints == ["http://127.0.0.1:7401"]


def test_a_file_about_one_node_gives_its_advertised_address() -> None:
    path = Path("raftkit.toml")
    path.write_text('[network]\nurl = "http://0.0.0.0:7401?advertise=https://n1:7401&insecure=true"\n')
    assert resolve(Invocation()).endpoints == ["https://n1:7401"]
    path.write_text('[client]\nendpoints = ["http://a:1"]\n[network]\nurl = "http://127.0.0.1:9"\n')
    assert resolve(Invocation()).endpoints == ["http://a:1"]


def test_an_unknown_context_lists_the_known_ones(raftkit: Any, tmp_path: Path) -> None:
    save_context("local", endpoints=["fake://n1"], directory=tmp_path)
    document = raftkit.json("status", "--context", "nowhere", code=9, endpoint=None)
    assert "known: local" in document["error"]["message"]


def test_a_damaged_context_file_is_a_clear_error(raftkit: Any, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "contexts.json").write_text("{")
    document = raftkit.json("status", code=9, endpoint=None)
    assert "contexts.json" in document["error"]["message"]
    assert raftkit("status").exit_code == 0  # -e does not need it


def test_several_endpoints_and_both_places_of_the_option(raftkit: Any) -> None:
    raftkit("kv", "get", "k", "-e", "fake://n1,fake://n2", "-e", "fake://n3", endpoint="fake://ignored")
    assert raftkit.cluster.endpoints == [["fake://n1", "fake://n2", "fake://n3"]]


def test_an_unknown_scheme_says_what_is_known(raftkit: Any) -> None:
    document = raftkit.json("kv", "get", "k", code=9, endpoint="carrier-pigeon://roof")
    assert document["error"]["code"] == "UNKNOWN_SCHEME"
