"""The machines core ships, and those users write with its base class, keep the contract of state machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raftkit_core.errors import CommandRejected
from raftkit_core.state_machine.interface import ApplyBatch, NoneRefused, RaftStateMachine
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.simple import SimpleStateMachine
from raftkit_core.testing.conformance.machine_case import Opener, apply, batch_of
from raftkit_core.testing.conformance.state_machine import StateMachineConformance
from raftkit_core.types.kv import Put
from raftkit_sqlite import SqliteKvStateMachine


class Transfer(msgspec.Struct, frozen=True, tag="transfer"):
    giver: str
    taker: str
    amount: int


class Bank(SimpleStateMachine):
    """Accounts that may not go below -100."""

    name = "bank/1"
    command_type = Transfer
    result_type = int
    state_type = dict[str, int]

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}

    def apply(self, command: Transfer) -> int:
        left = self.accounts.get(command.giver, 0) - command.amount
        if left < -100:
            raise CommandRejected(f"{command.giver} has {left + command.amount}")
        self.accounts[command.giver] = left
        self.accounts[command.taker] = self.accounts.get(command.taker, 0) + command.amount
        return left

    def get_state(self) -> dict[str, int]:
        return self.accounts

    def set_state(self, state: dict[str, int]) -> None:
        self.accounts = state


class TestKv(StateMachineConformance):
    url = "kv"

    def relatives(self) -> Sequence[Opener]:
        return [lambda: SqliteKvStateMachine(self.folder / "relative.db")]


class TestSimpleStateMachine(StateMachineConformance):
    def opener(self) -> Opener:
        return Bank

    def commands(self, count: int) -> list[Any]:
        return [Transfer(f"a{number % 7}", f"a{number % 41}", number % 13 + 1) for number in range(count)]

    def refusal(self) -> tuple[Sequence[Any], Any]:
        return [Transfer("a", "b", 90)], Transfer("a", "b", 20)


class TestSqliteKv(StateMachineConformance):
    url = "sqlite-kv:kv.db"
    places = 0

    def opener(self) -> Opener:
        if not self.places:
            self.places += 1
            return super().opener()
        self.places += 1
        path: Path = self.folder / f"kv-{self.places}.db"
        return lambda: SqliteKvStateMachine(path)

    def relatives(self) -> Sequence[Opener]:
        return [KvStateMachine]

    async def make_next_write_fail(self, machine: RaftStateMachine) -> None:
        assert isinstance(machine, SqliteKvStateMachine)
        _, database = machine._opened()
        await database.run(lambda connection: connection.execute("PRAGMA max_page_count=1").fetchall())


class _Promised(list[Any], NoneRefused[Any]):
    """A list that says that nothing in it is a refusal."""


async def test_a_promise_that_nothing_was_refused_must_be_kept() -> None:
    class Careless(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Sequence[Any]:
            return _Promised(super().apply(batch))

    await apply(Careless(), batch_of(1, [Put("a", b"1")]))
    with pytest.raises(AssertionError, match="M2"):
        await apply(Careless(), batch_of(1, [Put("a", b"1", if_revision=7)]))
