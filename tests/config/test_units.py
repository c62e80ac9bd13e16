"""Durations and sizes as text."""

from __future__ import annotations

import pytest

from raftkit_core.types.units import parse_duration_ms, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250ms", 250), ("5s", 5000), ("2m", 120_000), ("1.5s", 1500), ("1h", 3_600_000), ("3 s", 3000), ("5", 5), (7, 7)],
)
def test_durations_are_read_as_milliseconds(text: str | int, expected: int) -> None:
    assert parse_duration_ms(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64MiB", 64 * 1024**2), ("1.5GiB", 3 * 512 * 1024**2), ("500kB", 500_000), ("12", 12), (0, 0), ("1 KIB", 1024)],
)
def test_sizes_are_read_as_bytes(text: str | int, expected: int) -> None:
    assert parse_size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "s", "5 parsecs", "-5s", "0.5ms", "1e3s", "٣s", -1, 1.5, True, None])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration like 250ms"):
        parse_duration_ms(text)  # type: ignore[arg-type]
