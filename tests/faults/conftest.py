"""Fixtures of the fault suite; skips with words where the machine cannot have such faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "redis_storage")]
from fuse_disk import FuseDisk, why_not  # noqa: E402 (its folder is on the path from here on)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FuseDisk]:
    """A disk whose power can be cut."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with FuseDisk(tmp_path / "below", tmp_path / "disk") as mounted:
        yield mounted
