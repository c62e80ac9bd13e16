"""A node's process takes the descriptors it may have."""

from __future__ import annotations

import logging
import resource

import pytest

from raftkit_cli.descriptors import WANTED, raise_limit


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (1024, 524_288, WANTED),
        (1024, 4096, 4096),
        (1024, resource.RLIM_INFINITY, WANTED),
        (WANTED, WANTED, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
        (65_536, 524_288, None),
    ],
)
def test_the_soft_limit_is_raised_but_never_lowered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, hard: int, raised: int | None
) -> None:
    caplog.set_level(logging.INFO)
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: done.append(limits))
    raise_limit()
    assert done == ([] if raised is None else [(raised, hard)])
    assert [str(raised) in record.getMessage() for record in caplog.records] == ([] if raised is None else [True])


def test_a_limit_that_cannot_be_raised_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(what: int, limits: tuple[int, int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_limit()
    assert "stays at 1024" in caplog.text
