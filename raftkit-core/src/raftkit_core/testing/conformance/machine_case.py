"""What every case of the state machine kit is made of: batches, opening and applying, and what an author gives."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest

from raftkit_core.plugins import load_plugins
from raftkit_core.state_machine.interface import AppliedEntry, NoneRefused, RaftStateMachine
from raftkit_core.testing.conformance.kit import ConformanceKit
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.kv import CompareAndSet, Delete, Put
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId

Opener: TypeAlias = Callable[[], RaftStateMachine]
"""Makes a new handle on one and the same place. A durable machine continues there, a volatile one begins anew."""

Record: TypeAlias = tuple[bytes, bytes | None]


class MadeBatch:
    """An ``ApplyBatch`` made by hand. ``sealed`` holds what :meth:`seal` was called with."""

    def __init__(
        self,
        entries: Sequence[AppliedEntry],
        last_index: int,
        *,
        membership: StoredMembership | None = None,
        records: Sequence[Record] = (),
    ) -> None:
        self.entries = entries
        self.last_log_id = log_id(last_index)
        self.membership = membership
        self.records = records
        self.sealed: list[Sequence[Any]] = []

    def seal(self, results: Sequence[Any]) -> Sequence[Record]:
        self.sealed.append(list(results))
        return self.records


def log_id(index: int) -> LogId:
    return LogId(LeaderId(1, "n1"), index)


def batch_of(start: int, commands: Sequence[Any], **more: Any) -> MadeBatch:
    """``commands`` as the entries from index ``start`` on; without any it is one blank entry."""
    entries = [AppliedEntry(log_id(start + offset), start * 10, command) for offset, command in enumerate(commands)]
    return MadeBatch(entries, start + max(len(commands), 1) - 1, **more)


def batches_of(commands: Sequence[Any], size: int, *, start: int = 1) -> list[MadeBatch]:
    return [batch_of(start + at, commands[at : at + size]) for at in range(0, len(commands), size)]


def membership_at(index: int, *nodes: str) -> StoredMembership:
    members = {node: Node(f"memory:{node}", store_id="5a" * 16, tags={"rack": node}) for node in nodes}
    return StoredMembership(log_id(index), Membership.of([nodes], members))


def meta_at(index: int, membership: StoredMembership | None = None) -> SnapshotMeta:
    return SnapshotMeta(log_id(index), membership or membership_at(0, "n1"), "aa", time_ms=index * 10)


async def apply(machine: RaftStateMachine, batch: MadeBatch) -> Sequence[Any]:
    """Apply and wait, whether the machine finishes at once or later."""
    results = machine.apply(batch)
    done: Sequence[Any] = await results if isinstance(results, Awaitable) else results
    if isinstance(done, NoneRefused):
        assert not any(isinstance(result, Exception) for result in done), "M2: a refusal among results without refusals"
    return done


async def apply_all(machine: RaftStateMachine, batches: Iterable[MadeBatch]) -> list[Any]:
    """Results of all of them, in a form that compares."""
    return [comparable(result) for batch in batches for result in await apply(machine, batch)]


def comparable(result: Any) -> Any:
    """A refusal by its kind and words: two errors never compare equal."""
    return (type(result).__name__, str(result)) if isinstance(result, Exception) else result


async def chunks_of(machine: RaftStateMachine) -> list[bytes]:
    return [chunk async for chunk in machine.snapshot()]


async def fingerprint(machine: RaftStateMachine) -> Any:
    """The digest; of a machine that offers none, the snapshot."""
    digest = machine.digest()
    found = await digest if isinstance(digest, Awaitable) else digest
    return b"".join(await chunks_of(machine)) if found is None else found


async def stream(chunks: Iterable[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    """``chunks``, then ``error``: a damaged container is often found out at its end."""
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


class StateMachineCase(ConformanceKit):
    """What the author of a state machine gives: ``url`` or :meth:`opener`, and :meth:`commands` unless it is kv/1."""

    interface = RaftStateMachine
    url: str | None = None
    """Name or URL of an installed plugin's machine, as in ``--state-machine``; a relative path is below ``folder``."""

    def opener(self) -> Opener:
        """A new, empty place, and how to get a handle on it."""
        if self.url is None:
            raise NotImplementedError("give url = '…' or opener() in the subclass")
        url, at = self.url, self.context()
        return lambda: load_plugins().state_machine(url, at)

    def commands(self, count: int) -> list[Any]:
        """``count`` commands that the machine's codec takes, always the same ones; some of them may be refused.

        These are of ``kv/1``.
        """
        rng = random.Random(7)
        made: list[Any] = []
        for number in range(count):
            key, value = f"k{rng.randrange(max(count // 4, 8)):04}", b"%d" % number * rng.randrange(1, 9)
            made.append(
                rng.choice(
                    [
                        Put(key, value),
                        Put(f"ü{number}\x00", value),
                        Put(key, value, if_revision=rng.choice((0, number))),
                        Delete(key),
                        CompareAndSet(key, rng.choice((None, value)), value),
                    ]
                )
            )
        return made

    def refusal(self) -> tuple[Sequence[Any], Any]:
        """Commands, and one more that is refused after them with a ``CommandRejected``."""
        return [Put("taken", b"1")], Put("taken", b"2", if_revision=0)

    def relatives(self) -> Sequence[Opener]:
        """Other implementations of the same logical machine: snapshots go from each to each."""
        return ()

    async def make_next_write_fail(self, machine: RaftStateMachine) -> None:
        """Let the disk of an open durable machine fail at its next write."""
        pytest.skip("this machine gives no way to make a write fail (make_next_write_fail)")

    @asynccontextmanager
    async def opened(self, opener: Opener, at: AdapterContext | None = None) -> AsyncIterator[RaftStateMachine]:
        """A handle that is opened and always closed."""
        machine = opener()
        await machine.open(self.context() if at is None else at)
        try:
            yield machine
        finally:
            await machine.close()

    async def open_durable(self) -> tuple[Opener, RaftStateMachine]:
        """An open durable machine, to be closed by the case; cases of durable machines are skipped for others."""
        opener = self.opener()
        machine = opener()
        if not machine.durable:
            pytest.skip("this machine is not durable")
        await machine.open(self.context())
        return opener, machine
