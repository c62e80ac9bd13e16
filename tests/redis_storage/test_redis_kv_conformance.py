"""The shared clauses of state machines, proved for ``redis-kv`` on every Redis server found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from redis_servers import break_next_exchange

from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.testing.conformance.machine_case import Opener
from raftkit_core.testing.conformance.state_machine import StateMachineConformance
from raftkit_redis.plugin import make_kv_machine
from raftkit_sqlite import SqliteKvStateMachine


class TestRedisKv(StateMachineConformance):
    places = 0

    @pytest.fixture(autouse=True)
    def _place(self, store: Any, redis_server: Any) -> None:
        self.url = f"redis-kv://127.0.0.1:{redis_server.port}/0?prefix={store.prefix}"

    def opener(self) -> Opener:
        self.places += 1
        # The first is where the url says: a process of its own opens it there.
        url = AdapterUrl.parse(f"{self.url}-{self.places}" if self.places > 1 else str(self.url))
        return lambda: make_kv_machine(url, self.context())

    def relatives(self) -> Sequence[Opener]:
        return [KvStateMachine, lambda: SqliteKvStateMachine(self.folder / "relative.db")]

    async def make_next_write_fail(self, machine: RaftStateMachine) -> None:
        break_next_exchange(machine)
