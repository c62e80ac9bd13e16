"""The storage of ``docs/adapters.md`` keeps the contract of log storage."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.testing.conformance.log_storage import LogStorageConformance, Opener

SOURCE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "onefile_storage.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onefile_storage", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its annotations are looked up there
    spec.loader.exec_module(module)
    return module


onefile: Any = _load()


class FailingStorage(onefile.OneFileStorage):  # type: ignore[misc]
    """The scratch file cannot be made once."""

    fails_next = False

    def _commit(self, store: Any) -> None:
        obstacle = self.path.with_suffix(".new")
        if not self.fails_next:
            super()._commit(store)
            return
        self.fails_next = False
        obstacle.mkdir()
        try:
            super()._commit(store)
        finally:
            obstacle.rmdir()


class TestOneFileStorage(LogStorageConformance):
    path: Path

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "data" / "n1.log"

    def opener(self) -> Opener:
        return lambda: FailingStorage(self.path)

    async def make_next_write_fail(self, storage: RaftLogStorage) -> None:
        assert isinstance(storage, FailingStorage)
        storage.fails_next = True

    async def damage_entry(self, opener: Opener, index: int) -> None:
        self._damage()

    async def damage_vote(self, opener: Opener) -> None:
        self._damage()

    def _damage(self) -> None:
        data = bytearray(self.path.read_bytes())
        data[-1] ^= 1
        self.path.write_bytes(data)
