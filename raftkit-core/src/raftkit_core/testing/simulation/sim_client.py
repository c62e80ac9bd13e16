"""Clients of a simulated cluster: what they asked, when, and what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import RaftError, SessionExpired, Stopped
from raftkit_core.raft import Raft
from raftkit_core.testing.linearizability import Kind
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import CompareAndSet, Delete, Get, KeyValue, Put
from raftkit_core.types.operations import OpenSession, SessionOpened
from raftkit_core.types.session import SessionRef, SessionSerial

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.simulation import Simulation

TIMEOUT = 2.0
SESSION_TTL_MS = 30_000


class SimClient:
    """Asks a node it chooses anew each time (or ``node``), and never twice: a lost answer is an unknown outcome."""

    def __init__(self, sim: Simulation, name: str, random: Random) -> None:
        self._sim = sim
        self.name = name
        self._random = random
        self._session: SessionRef | None = None
        self._serial = 0
        self._floor = 0

    async def put(self, key: str, value: bytes | str, *, node: NodeId | None = None, timeout: float = TIMEOUT) -> Any:
        """Raises: RaftError."""
        return await self._call("put", key, Put(key, _bytes(value)), node, timeout, value=_bytes(value))

    async def put_once(self, key: str, value: bytes | str, *, timeout: float = TIMEOUT, attempts: int = 4) -> Any:
        """A put under a session of this client: sent again, to any node, while its outcome is unknown, with one effect.

        Raises: RaftError.
        """
        sim = self._sim
        await sim.start()
        if self._session is None:
            opened: SessionOpened = await self._at_a_node(
                lambda raft: raft.call(OpenSession(SESSION_TTL_MS), timeout=timeout)
            )
            self._session, self._serial, self._floor = opened.session, 0, 0
            sim.trace.seen("session.opened")
        self._serial += 1
        once = SessionSerial(self._session, self._serial, self._floor)
        command = Put(key, _bytes(value))
        call = sim.history.call(
            self.name, "put", key, now=sim.now, value=_bytes(value), session=self._session.id, serial=self._serial
        )
        doubtful = False
        for attempt in range(attempts):
            try:
                done = await self._at_a_node(lambda raft: raft.write(command, session=once, timeout=timeout))
            except RaftError as error:
                lost = isinstance(error, SessionExpired)  # its entry stands in the log, and had no effect
                doubtful = doubtful or lost or error.outcome == "unknown"
                if lost:
                    self._session = None
                if lost or attempt == attempts - 1:
                    if doubtful:
                        call.unknown(sim.now, error.code)
                        self._session = None  # this serial is not settled: begin anew
                    else:
                        call.raised(sim.now, error)
                    sim.trace.event("told", self.name, f"put_once {key} {type(error).__name__}")
                    raise
                if doubtful:
                    sim.trace.seen("session.retried")
            else:
                call.ok(sim.now, done.data)
                self._floor = self._serial
                sim.trace.event("told", self.name, f"put_once {key} {done.data}")
                sim.trace.seen("session.ok")
                return done.data
        raise AssertionError("the last attempt ends it")

    async def _at_a_node(self, ask: Callable[[Raft], Awaitable[Any]]) -> Any:
        node = self._choose()
        if node is None:
            await asyncio.sleep(0.1)
            raise Stopped("every node is down", outcome="not_applied")
        return await ask(self._sim.raft(node))

    async def delete(self, key: str, *, node: NodeId | None = None, timeout: float = TIMEOUT) -> Any:
        return await self._call("delete", key, Delete(key), node, timeout)

    async def cas(
        self,
        key: str,
        expected: bytes | str | None,
        value: bytes | str,
        *,
        node: NodeId | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """Set ``key`` if it holds ``expected`` (None: if it does not exist). Raises: PreconditionFailed, RaftError."""
        before = None if expected is None else _bytes(expected)
        command = CompareAndSet(key, before, _bytes(value))
        return await self._call("cas", key, command, node, timeout, value=_bytes(value), expected=before)

    async def get(
        self,
        key: str,
        policy: ReadPolicy = ReadPolicy.READ_INDEX,
        *,
        node: NodeId | None = None,
        timeout: float = TIMEOUT,
    ) -> bytes | None:
        """The value, or None. Raises: RaftError."""
        found: KeyValue | None = await self._call("get", key, Get(key), node, timeout, policy=policy)
        return None if found is None else found.value

    async def _call(
        self,
        kind: Kind,
        key: str,
        command: Any,
        node: NodeId | None,
        timeout: float,
        *,
        policy: ReadPolicy = ReadPolicy.READ_INDEX,
        **told: Any,
    ) -> Any:
        sim = self._sim
        await sim.start()
        asked = node if node is not None else self._choose()
        call = sim.history.call(self.name, kind, key, now=sim.now, consistency=policy.value, **told)
        sim.trace.event("call", self.name, (kind, key, asked), f"{kind} {key} {asked}")
        try:
            if asked is None or asked not in sim.running:
                raise Stopped(f"{asked} is down", outcome="not_applied")
            raft = sim.raft(asked)
            if kind == "get":
                result = await raft.read(command, policy, timeout=timeout)
            else:
                result = (await raft.write(command, timeout=timeout)).data
        except RaftError as error:
            if kind == "get":
                call.failed(sim.now, error.code)
            else:
                call.raised(sim.now, error)
            sim.trace.event("told", self.name, f"{kind} {key} {type(error).__name__}")
            sim.trace.seen(f"client.{error.outcome}")
            raise
        call.ok(sim.now, result)
        sim.trace.event("told", self.name, f"{kind} {key} {result}")
        sim.trace.seen("client.ok")
        return result

    def _choose(self) -> NodeId | None:
        running = self._sim.running
        return self._random.choice(running) if running else None


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
