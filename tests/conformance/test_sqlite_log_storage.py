"""``sqlite:`` keeps the contract of log storage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.testing.conformance.log_storage import LogStorageConformance, Opener
from raftkit_sqlite import SqliteLogStorage


class TestSqliteLogStorage(LogStorageConformance):
    url = "sqlite:data/n1.db"
    path: Path

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "data" / "n1.db"

    def opener(self) -> Opener:
        return lambda: SqliteLogStorage(self.path)

    async def make_next_write_fail(self, storage: RaftLogStorage) -> None:
        assert isinstance(storage, SqliteLogStorage)
        database = storage._opened()[1]
        await database.run(lambda connection: connection.execute("PRAGMA max_page_count=1").fetchall())

    async def damage_entry(self, opener: Opener, index: int) -> None:
        with sqlite3.connect(self.path) as connection:
            connection.execute("UPDATE log SET payload = CAST('pAyload' AS BLOB) WHERE idx = ?", (index,))
        connection.close()

    async def damage_vote(self, opener: Opener) -> None:
        with sqlite3.connect(self.path) as connection:
            (value,) = connection.execute("SELECT v FROM meta WHERE k = 'vote'").fetchone()
            changed = value[:-1] + bytes([value[-1] ^ 1])
            connection.execute("UPDATE meta SET v = ? WHERE k = 'vote'", (changed,))
        connection.close()
