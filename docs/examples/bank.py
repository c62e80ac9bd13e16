"""A bank: accounts, transfers, and a rule that money is neither made nor lost."""

from __future__ import annotations

import msgspec

from raftkit_core.errors import CommandRejected
from raftkit_core.state_machine.simple import SimpleStateMachine

OPENING_BALANCE = 100


class Transfer(msgspec.Struct, frozen=True):
    giver: str
    taker: str
    amount: int


class Bank(SimpleStateMachine):
    """Every account has 100 to begin with, and none may go below zero. A transfer gives what the giver has left."""

    name = "bank/1"
    command_type = Transfer
    result_type = int
    state_type = dict[str, int]

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}

    def balance(self, account: str) -> int:
        return self.accounts.get(account, OPENING_BALANCE)

    def apply(self, command: Transfer) -> int:
        left = self.balance(command.giver) - command.amount
        if left < 0:
            raise CommandRejected(f"{command.giver} has {self.balance(command.giver)}, not {command.amount}")
        self.accounts[command.giver] = left
        self.accounts[command.taker] = self.balance(command.taker) + command.amount
        return left

    def get_state(self) -> dict[str, int]:
        return dict(self.accounts)

    def set_state(self, state: dict[str, int]) -> None:
        self.accounts = state
