"""``Config`` refuses what cannot work, by the name of the field; limits hold at their edges."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import ConfigError

TIMES = ("heartbeat_interval_ms", "election_timeout_min_ms", "election_timeout_max_ms", "leader_lease_ms")
SIZES = (
    "max_payload_entries",
    "max_payload_bytes",
    "max_inflight",
    "max_entry_bytes",
    "max_uncommitted_bytes",
    "max_unflushed_bytes",
    "snapshot_chunk_bytes",
    "purge_batch_size",
    "install_snapshot_timeout_ms",
    "storage_stall_timeout_ms",
)
MAY_BE_ZERO = ("max_in_snapshot_log_to_keep", "replication_lag_threshold")
SWITCHES = ("single_term_leader", "pre_vote", "enable_tick", "enable_heartbeat", "enable_elect")


@pytest.mark.parametrize("name", [*TIMES, *SIZES])
@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True, None])
def test_a_time_or_a_limit_is_a_whole_number_above_zero(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        Config(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MAY_BE_ZERO)
def test_what_is_kept_and_how_far_a_learner_may_lag_may_be_nothing(name: str) -> None:
    assert getattr(Config(**{name: 0}), name) == 0  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=name):
        Config(**{name: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_true_or_false(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Config(**{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"election_timeout_max_ms": 500}, "election_timeout_max_ms .500. must be greater"),
        ({"election_timeout_min_ms": 400}, "election_timeout_min_ms .400. must be at least"),
        ({"heartbeat_interval_ms": 251}, "must be at least twice"),
        ({"max_entry_bytes": 16 * 1024 * 1024 + 1}, "max_entry_bytes"),
        ({"cluster": ""}, "cluster"),
        ({"cluster": "x" * 64}, "cluster"),
        ({"cluster": "a\nb"}, "cluster"),
        ({"max_clock_drift": 1.0}, "max_clock_drift"),
        ({"max_clock_drift": -0.1}, "max_clock_drift"),
        ({"snapshot_policy": "never"}, "snapshot_policy"),
        ({"snapshot_policy": SnapshotPolicy.LogsSinceLast(0)}, "snapshot_policy"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**settings)


def test_settings_at_the_edge_of_the_rules_are_taken() -> None:
    config = Config(
        heartbeat_interval_ms=250, leader_lease_ms=500, election_timeout_min_ms=500, election_timeout_max_ms=501
    )
    assert config.election_timeout_max_ms == 501
    assert Config(max_clock_drift=0, snapshot_policy=SnapshotPolicy.LogsSinceLast(1)).max_clock_drift == 0


def test_an_unknown_setting_is_no_config() -> None:
    with pytest.raises(TypeError, match="send_snapshot_timeout"):
        Config(send_snapshot_timeout=1)  # type: ignore[call-arg]
