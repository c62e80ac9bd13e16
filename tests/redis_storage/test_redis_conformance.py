"""The shared clauses, proved on every Redis server found. What only Redis can break is in the files beside this one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis_servers import break_next_exchange

from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.testing.conformance.log_storage import LogStorageConformance


class TestRedisLogStorage(LogStorageConformance):
    data_dir: Path | None = None

    @pytest.fixture(autouse=True)
    def _place(self, store: Any, redis_server: Any) -> None:
        self.store = store
        self.server = redis_server
        store.data_dir = self.data_dir
        self.meta, self.log = f"{{{store.prefix}}}:meta", f"{{{store.prefix}}}:log"

    def opener(self) -> Callable[[], RaftLogStorage]:
        return self.store.make  # type: ignore[no-any-return]

    async def make_next_write_fail(self, storage: Any) -> None:
        break_next_exchange(storage)

    async def damage_entry(self, opener: Any, index: int) -> None:
        blob = self.server.command("LINDEX", self.log, index)
        self.server.command("LSET", self.log, index, blob[:-2] + bytes([blob[-2] ^ 1]) + blob[-1:])

    async def damage_vote(self, opener: Any) -> None:
        blob = self.server.command("HGET", self.meta, "vote")
        self.server.command("HSET", self.meta, "vote", blob[:-2] + bytes([blob[-2] ^ 1]) + blob[-1:])
