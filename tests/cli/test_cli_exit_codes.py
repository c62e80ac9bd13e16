"""Exit status and words of every error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raftkit_cli.exit_codes import EXIT_CODES
from raftkit_cli.failures import HINTS, failure_of
from raftkit_core import errors


def test_every_error_of_the_core_has_an_exit_code_and_a_next_step() -> None:
    assert set(errors.ERRORS_BY_CODE) <= set(EXIT_CODES)
    assert set(errors.ERRORS_BY_CODE) <= set(HINTS)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("NOT_FOUND", 3),
        ("PRECONDITION_FAILED", 3),
        ("NO_QUORUM", 4),
        ("FORWARD_TO_LEADER", 4),
        ("UNREACHABLE", 4),
        ("OUTCOME_UNKNOWN", 6),
        ("ACCESS_DENIED", 7),
        ("MEMBERSHIP_IN_PROGRESS", 8),
        ("CONFIG", 9),
        ("UNKNOWN_SCHEME", 9),
        ("STORAGE_CORRUPT", 10),
        ("STORAGE_LOCKED", 10),
        ("BAD_COMMAND", 2),
        ("RPC_TIMEOUT", 124),
    ],
)
def test_documented_exit_codes(code: str, status: int, raftkit: Any, make_error: Callable[[str], Exception]) -> None:
    raftkit.cluster.failure = make_error(code)
    document = raftkit.json("kv", "get", "k", code=status)
    assert document["error"]["code"] == code


def test_a_broken_connection_during_a_write_is_an_unknown_outcome(raftkit: Any) -> None:
    raftkit.cluster.failure = errors.NetworkError("the connection broke")
    document = raftkit.json("kv", "put", "k", "v", code=6)
    assert document["error"]["outcome"] == "unknown"


def test_a_broken_connection_during_a_read_is_not(raftkit: Any) -> None:
    raftkit.cluster.failure = errors.NetworkError("the connection broke")
    assert raftkit("kv", "get", "k").exit_code == 4


def test_an_unreachable_endpoint_says_which_and_that_nothing_happened(raftkit: Any) -> None:
    raftkit.cluster.failure = errors.Unreachable("connection refused")
    document = raftkit.json("kv", "put", "k", "v", code=4)
    assert "fake://n1" in document["error"]["message"]
    assert document["error"]["outcome"] == "not_applied"


def test_a_human_is_told_what_happened_what_to_type_and_the_code(raftkit: Any) -> None:
    raftkit.cluster.failure = errors.QuorumNotEnough("1 of 3 voters reachable, 2 needed", hint="raftkit local up")
    result = raftkit("kv", "put", "k", "v")
    assert result.stdout == ""
    assert result.stderr == "Error: 1 of 3 voters reachable, 2 needed\nTry:   raftkit local up   [NO_QUORUM]\n"


def test_an_error_without_a_hint_of_its_own_gets_one(raftkit: Any) -> None:
    raftkit.cluster.failure = errors.OutcomeUnknown("the leader went away")
    assert "read it back" in raftkit("kv", "put", "k", "v").stderr


def test_a_node_that_stopped_exits_with_what_stopped_it() -> None:
    error = errors.Fatal("node n1 has stopped")
    error.__cause__ = errors.StorageCorrupt("row 7 has a wrong checksum")
    failure = failure_of(error)
    assert failure.exit_code == 10
    assert "row 7 has a wrong checksum" in failure.message


def test_an_unexpected_exception_is_no_traceback(raftkit: Any) -> None:
    raftkit.cluster.failure = ZeroDivisionError("oops")
    document = raftkit.json("kv", "get", "k", code=1)
    assert document["error"]["code"] == "UNEXPECTED"
    assert "ZeroDivisionError: oops" in document["error"]["message"]
    result = raftkit("kv", "get", "k", "-v")
    assert "Traceback" in result.stderr


def test_ctrl_c_is_130(raftkit: Any) -> None:
    raftkit.cluster.failure = KeyboardInterrupt()
    assert raftkit("kv", "get", "k").exit_code == 130
