"""Clients that put a cluster to the question: concurrent reads, writes, comparisons and deletes, every one recorded.

Made for the judges: values are unique, few clients meet at one key at a time, and a key is left for a fresh one before
its history gets too long to search.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Any, Protocol

import msgspec

from raftkit_core.errors import AccessDenied, BadCommand, ConfigError, PluginError, RaftError
from raftkit_core.network.client import Consistency
from raftkit_core.testing.linearizability.history import Call, Header, History, Kind
from raftkit_core.types.kv import KeyValue, WriteResult

HOPELESS = (AccessDenied, BadCommand, ConfigError, PluginError)
"""Errors that say the question was wrong; asking again helps nobody."""


class KvClient(Protocol):
    """The part of a ``ClusterClient`` that is used here."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    async def kv_get(self, key: str, *, consistency: Consistency = "linearizable") -> KeyValue | None: ...

    async def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult: ...

    async def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult: ...

    async def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult: ...


MIX: dict[Kind, int] = {"put": 4, "get": 5, "cas": 3, "delete": 1}
"""How often each kind of operation is drawn."""

OpenClient = Callable[[str], KvClient]
"""A new client, not yet entered, for the client of that name."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. It ends after ``seconds`` or ``operations``, whichever comes first (None: that one never)."""

    prefix: str
    """Where the keys are. Nobody else may write there, and nothing may be there yet."""
    seed: int = 0
    clients: int = 6
    keys: int = 4
    """How many keys are in use at a time; with fewer, more clients meet."""
    seconds: float | None = 10.0
    operations: int | None = None
    mix: dict[Kind, int] = msgspec.field(default_factory=lambda: dict(MIX))
    consistency: Consistency = "linearizable"
    key_operations_max: int = 240
    think_s_max: float = 0.01
    """Between two operations of a client: up to this."""
    pause_s: float = 0.05
    """After an error."""
    final_s: float = 30.0
    """How long the last reads may take, while a cluster recovers."""


async def record(
    workload: Workload,
    open_client: OpenClient,
    *,
    history: History | None = None,
    clock: Callable[[], float] = time.monotonic,
    stop: asyncio.Event | None = None,
) -> History:
    """Run the workload, then read every key once more. ``stop`` ends it early; ``history`` can be watched meanwhile.

    Raises: one of :data:`HOPELESS`, whatever of the history there is. A cluster that is down is no error: it is in the
    history.
    """
    history = History(header=header_of(workload)) if history is None else history
    run = _Run(workload, history, clock, asyncio.Event() if stop is None else stop)
    async with AsyncExitStack() as stack:
        clients = [
            (name, await stack.enter_async_context(open_client(name)))
            for name in (f"c{number}" for number in range(workload.clients))
        ]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(run.stop_in_time())
                for name, client in clients:
                    group.create_task(run.ask_for_ever(name, client))
        except* HOPELESS as errors:
            raise errors.exceptions[0] from None
        await run.read_everything(clients)
    return history


def header_of(workload: Workload) -> Header:
    return Header(seed=workload.seed, config={"workload": msgspec.to_builtins(workload)})


class _Slot:
    """A place whose key changes when its history is long enough."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._generation = 0
        self._count = 0

    def key(self, limit: int) -> str:
        self._count += 1
        if self._count > limit:
            self._generation, self._count = self._generation + 1, 1
        return f"{self._name}.{self._generation}"


class _Run:
    def __init__(self, workload: Workload, history: History, clock: Callable[[], float], stop: asyncio.Event) -> None:
        self._workload = workload
        self._history = history
        self._clock = clock
        self._stop = stop
        self._slots = [_Slot(f"{workload.prefix}k{number}") for number in range(workload.keys)]
        self._keys: dict[str, None] = {}
        self._asked = 0

    async def stop_in_time(self) -> None:
        """Nobody is cut off: what is under way then is waited for, as long as the clients themselves wait."""
        try:
            async with asyncio.timeout(self._workload.seconds):
                await self._stop.wait()
        except TimeoutError:
            self._stop.set()

    async def ask_for_ever(self, name: str, client: KvClient) -> None:
        workload = self._workload
        chance = Random(f"{workload.seed}/{name}")
        kinds, weights = list(workload.mix), list(workload.mix.values())
        seen: dict[str, KeyValue | None] = {}
        count = 0
        while not self._stop.is_set():
            if workload.operations is not None and self._asked >= workload.operations:
                self._stop.set()
                return
            self._asked += 1
            count += 1
            key = chance.choice(self._slots).key(workload.key_operations_max)
            self._keys[key] = None
            kind = chance.choices(kinds, weights)[0]
            value = f"{name}.{count}".encode()
            is_answered = await self._ask(name, client, kind, key, value, seen, chance)
            await asyncio.sleep(chance.random() * workload.think_s_max if is_answered else workload.pause_s)

    async def _ask(
        self,
        name: str,
        client: KvClient,
        kind: Kind,
        key: str,
        value: bytes,
        seen: dict[str, KeyValue | None],
        chance: Random,
    ) -> bool:
        """One operation. Whether it was answered."""
        before = seen.get(key)
        begin, now = self._history.call, self._clock
        sent: Awaitable[Any]
        if kind == "get":
            consistency = self._workload.consistency
            call = begin(name, kind, key, now=now(), consistency=consistency)
            sent = client.kv_get(key, consistency=consistency)
        elif kind == "cas":
            expected = None if before is None else before.value
            call = begin(name, kind, key, now=now(), expected=expected, value=value)
            sent = client.kv_cas(key, expected, value)
        else:
            condition = before.revision if before is not None and chance.random() < 0.3 else None
            if kind == "put":
                call = begin(name, kind, key, now=now(), value=value, if_revision=condition)
                sent = client.kv_put(key, value, if_revision=condition)
            else:
                call = begin(name, kind, key, now=now(), if_revision=condition)
                sent = client.kv_delete(key, if_revision=condition)
        result = await self._answer(call, sent)
        if isinstance(result, RaftError):
            return call_was_answered(result)
        if kind == "get":
            seen[key] = result
        else:
            assert isinstance(result, WriteResult)
            seen[key] = None if kind == "delete" else KeyValue(key=key, value=value, revision=result.revision)
        return True

    async def _answer(self, call: Call, sent: Awaitable[Any]) -> Any:
        try:
            result = await sent
        except RaftError as error:
            call.raised(self._clock(), error)
            if isinstance(error, HOPELESS):
                raise
            return error
        call.ok(self._clock(), result)
        return result

    async def read_everything(self, clients: list[tuple[str, KvClient]]) -> None:
        """Every key once more, by somebody who asks until there is an answer: what was acknowledged must be there."""
        deadline = self._clock() + self._workload.final_s
        keys = list(self._keys)

        async def read(client: KvClient, share: list[str]) -> None:
            for key in share:
                while self._clock() < deadline:
                    call = self._history.call("final", "get", key, now=self._clock())
                    if not isinstance(await self._answer(call, client.kv_get(key)), RaftError):
                        break
                    await asyncio.sleep(self._workload.pause_s)

        await asyncio.gather(*(read(client, keys[n :: len(clients)]) for n, (_, client) in enumerate(clients)))


def call_was_answered(error: RaftError) -> bool:
    """Whether the cluster works and just said no."""
    return error.code == "PRECONDITION_FAILED"
