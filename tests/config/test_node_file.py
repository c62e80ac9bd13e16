"""``raftkit.toml``: what it may say, and what every mistake in it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkit_core.config import Config, LogBytesSinceLast, LogsSinceLast, Never
from raftkit_core.config_file import NodeFile, load_node_file, parse_node_file
from raftkit_core.errors import ConfigError
from raftkit_core.types.membership import Node

FULL = """
[node]
id = "n1"
cluster = "demo"
data_dir = "data/n1"
[storage]
url = "sqlite:n1.db"
snapshots = "file:snapshots"
[network]
url = "http://0.0.0.0:7401?advertise=https://n1:7401"
[state_machine]
name = "kv"
[raft]
heartbeat_interval_ms = "150ms"
election_timeout_min_ms = 600
election_timeout_max_ms = "1.2s"
leader_lease_ms = "500ms"
max_entry_bytes = "2MiB"
max_clock_drift = 0.2
pre_vote = false
snapshot_policy = "logs:5000"
[bootstrap.initial_cluster]
n1 = "https://n1:7401"
n2 = { peer = "https://n2:7401", client = "https://c2", tags = { zone = "b" } }
[plugins]
allow = ["sqlite", "http"]
disable = ["redis"]
[client]
endpoints = ["https://n1:7401"]
token_file = "token"
"""


def test_a_file_with_every_section_is_read(tmp_path: Path) -> None:
    path = tmp_path / "raftkit.toml"
    path.write_text(FULL)
    loaded = load_node_file(path)
    assert loaded == NodeFile(
        origin=str(path),
        node_id="n1",
        cluster="demo",
        data_dir=tmp_path / "data" / "n1",
        storage="sqlite:n1.db",
        snapshots="file:snapshots",
        network="http://0.0.0.0:7401?advertise=https://n1:7401",
        state_machine="kv",
        raft={
            "heartbeat_interval_ms": 150,
            "election_timeout_min_ms": 600,
            "election_timeout_max_ms": 1200,
            "leader_lease_ms": 500,
            "max_entry_bytes": 2 * 1024 * 1024,
            "max_clock_drift": 0.2,
            "pre_vote": False,
            "snapshot_policy": LogsSinceLast(5000),
        },
        initial_cluster={
            "n1": Node("https://n1:7401"),
            "n2": Node("https://n2:7401", client="https://c2", tags={"zone": "b"}),
        },
        plugins_allow=["sqlite", "http"],
        plugins_disable=["redis"],
        endpoints=["https://n1:7401"],
        token_file=tmp_path / "token",
    )
    assert loaded.config() == Config(
        cluster="demo",
        heartbeat_interval_ms=150,
        election_timeout_min_ms=600,
        election_timeout_max_ms=1200,
        max_entry_bytes=2 * 1024 * 1024,
        max_clock_drift=0.2,
        pre_vote=False,
        snapshot_policy=LogsSinceLast(5000),
    )


def test_an_empty_file_leaves_every_default() -> None:
    assert parse_node_file("").config() == Config()
    assert parse_node_file("") == NodeFile()


def test_overrides_win_over_the_file_and_take_its_text_forms() -> None:
    loaded = parse_node_file('[raft]\nmax_inflight = 4\nsnapshot_policy = "never"')
    config = loaded.config({"max_inflight": 8, "heartbeat_interval_ms": "50ms"})
    assert (config.max_inflight, config.heartbeat_interval_ms, config.snapshot_policy) == (8, 50, Never())
    with pytest.raises(ConfigError, match="override unknown key max_inflght; did you mean 'max_inflight'"):
        loaded.config({"max_inflght": 8})


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("never", Never()),
        ("logs:10", LogsSinceLast(10)),
        ("bytes:64MiB", LogBytesSinceLast(64 * 1024 * 1024)),
        ("bytes:1000", LogBytesSinceLast(1000)),
    ],
)
def test_snapshot_policies_have_text_forms(text: str, policy: object) -> None:
    assert parse_node_file(f'[raft]\nsnapshot_policy = "{text}"').config().snapshot_policy == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes]", r"unknown section \[nodes\]; did you mean 'node'\?"),
        ("id = 1", "unknown key 'id' outside of any section"),
        ("node = 1", "node must be a section, not 1"),
        ("[[node]]", "node must be a section"),
        ('[storage]\nulr = "memory:"', r"unknown key 'ulr' in \[storage\]; did you mean 'url'\?"),
        ("[raft]\nheartbeat_intervall_ms = 1", r"'heartbeat_intervall_ms' in \[raft\]; did you mean 'heartbeat_int"),
        ("[node]\nid = 1", r"\[node\] id: expected str \| null, got int"),
        ('[node]\nid = "-"', r"\[node\] id: '-' is not a node id"),
        ('[node]\ndata_dir = ""', r"\[node\] data_dir names no path"),
        ('[storage]\nurl = " "', r"\[storage\] url is empty"),
        ('[raft]\nheartbeat_interval_ms = "soon"', r"\[raft\] heartbeat_interval_ms: expected a duration .* 'soon'"),
        ("[raft]\nheartbeat_interval_ms = 1.5", r"\[raft\] heartbeat_interval_ms: expected a duration .* got 1.5"),
        ("[raft]\nheartbeat_interval_ms = true", r"\[raft\] heartbeat_interval_ms: expected a duration .* got True"),
        ('[raft]\nmax_entry_bytes = "1 furlong"', r"\[raft\] max_entry_bytes: expected a size .* '1 furlong'"),
        ('[raft]\nmax_inflight = "4"', r"\[raft\] max_inflight: expected int, got str"),
        ("[raft]\npre_vote = 1", r"\[raft\] pre_vote: expected bool, got int"),
        (
            '[raft]\nsnapshot_policy = "sometimes"',
            r"\[raft\] snapshot_policy: expected never, logs:5000 or bytes:64MiB",
        ),
        ('[raft]\nsnapshot_policy = "logs:x"', r"\[raft\] snapshot_policy: expected never"),
        ("[raft]\nsnapshot_policy = 5", r"\[raft\] snapshot_policy: expected never"),
        ('[raft]\ncluster = "x"', r"\[raft\] cluster belongs elsewhere"),
        ("[bootstrap]\ninitial_cluster = {}", "initial_cluster lists nobody"),
        ('[bootstrap]\ninitial_cluster = { "n 1" = "x" }', "'n 1' is not a node id"),
        ('[bootstrap]\ninitial_cluster = { n1 = "" }', "initial_cluster.n1 is empty"),
        ("[bootstrap]\ninitial_cluster = { n1 = 5 }", r"\[bootstrap\] initial_cluster.*expected"),
        ("[bootstrap]\ninitial_cluster = { n1 = { client = 'x' } }", r"\[bootstrap\].*missing required field peer"),
        ('[state_machine]\nname = "a"\nplugin = "b"', "has name 'a' and plugin 'b'"),
        ('[plugins]\nallow = "sqlite"', r"\[plugins\] allow: expected array"),
        ('[client]\nendpoints = "x"', r"\[client\] endpoints: expected array"),
        ("[client]\nendpoints = ]", "is not TOML: .*line 2"),
    ],
)
def test_a_mistake_names_the_file_the_section_and_the_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_node_file(text, origin="some/raftkit.toml")
    assert refused.value.message.startswith("some/raftkit.toml")


def test_values_that_contradict_each_other_name_file_and_keys() -> None:
    loaded = parse_node_file("[raft]\nheartbeat_interval_ms = 400", origin="x.toml")
    with pytest.raises(ConfigError, match=r"x.toml: \[raft\] leader_lease_ms \(500\) must be at least twice"):
        loaded.config()


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_node_file(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_node_file(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[node]\nid = "\xe4"\n')
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_node_file(tmp_path / "latin.toml")


def test_absolute_paths_stay_and_plugin_is_another_word_for_name(tmp_path: Path) -> None:
    loaded = parse_node_file(
        '[node]\ndata_dir = "/var/n1"\n[state_machine]\nplugin = "sqlite-kv:kv.db"', folder=tmp_path
    )
    assert (loaded.data_dir, loaded.state_machine) == (Path("/var/n1"), "sqlite-kv:kv.db")


@given(st.dictionaries(st.sampled_from(Config.__struct_fields__), st.text() | st.integers() | st.floats() | st.none()))
def test_any_override_gives_a_config_or_a_config_error(overrides: dict[str, Any]) -> None:
    try:
        config = NodeFile().config(overrides)
    except ConfigError:
        return
    assert isinstance(config, Config)
