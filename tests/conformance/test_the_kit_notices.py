"""The kit itself is tested: right adapters pass all of it, each wrong one fails the case that names its fault."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raftkit_core.testing.conformance.kit import case_names, clause_of, clauses_of
from raftkit_core.testing.run_kit import run_kit, summary

sys.path.insert(0, str(Path(__file__).parent))  # tests are no packages: what they share is imported from their folder
try:
    from wrong.log_storages import WRONG, Right, WrongLogStorage
    from wrong.snapshot_storages import WRONG_SNAPSHOTS, RightSnapshots, WrongSnapshots
finally:
    sys.path.pop(0)


def test_a_right_log_storage_passes_every_case() -> None:
    results = run_kit(WrongLogStorage)
    assert [result for result in results if result.outcome == "failed"] == []
    assert {result.case for result in results if result.outcome == "skipped"} <= {
        "test_l2_what_was_acknowledged_survives_kill_9"  # needs a plugin's url
    }, summary(results)


@pytest.mark.parametrize("adapter", WRONG, ids=lambda adapter: adapter.__name__)
def test_a_wrong_log_storage_fails_the_case_that_names_its_fault(adapter: type[Right]) -> None:
    kit = type("Kit", (WrongLogStorage,), {"adapter": adapter})
    wanted = WRONG[adapter]
    results = run_kit(kit, only=lambda name: name == wanted)
    assert any(result.outcome == "failed" for result in results), f"{wanted} passes: {summary(results)}"
    assert all(result.clause or not result.number for result in results)


def test_right_snapshots_pass_every_case() -> None:
    results = run_kit(WrongSnapshots)
    assert [result for result in results if result.outcome != "passed"] == []


@pytest.mark.parametrize("adapter", WRONG_SNAPSHOTS, ids=lambda adapter: adapter.__name__)
def test_wrong_snapshots_fail_the_case_that_names_their_fault(adapter: type[RightSnapshots]) -> None:
    kit = type("Kit", (WrongSnapshots,), {"adapter": adapter})
    results = run_kit(kit, only=lambda name: name == WRONG_SNAPSHOTS[adapter])
    assert any(result.outcome == "failed" for result in results), summary(results)


def test_every_clause_has_cases_and_every_case_its_clause() -> None:
    from raftkit_core.testing import LogStorageConformance, NetworkConformance, SnapshotStorageConformance

    for kit in (LogStorageConformance, SnapshotStorageConformance, NetworkConformance):
        clauses, names = set(clauses_of(kit.interface)), case_names(kit)
        found = {clause_of(name) for name in names} - {None}
        assert found == clauses, kit.__name__
        assert len(set(names)) == len(names)


def test_the_kit_has_more_than_eighty_cases_of_storage() -> None:
    from raftkit_core.testing import LogStorageConformance, SnapshotStorageConformance

    assert len({*case_names(LogStorageConformance), *case_names(SnapshotStorageConformance)}) >= 80
