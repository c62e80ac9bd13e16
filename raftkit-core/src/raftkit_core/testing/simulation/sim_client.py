"""Clients of a simulated cluster: what they asked, when, and what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import BadCommand, RaftError, ResultForgotten, SerialReused, Stopped
from raftkit_core.raft import Raft
from raftkit_core.testing.linearizability import Kind
from raftkit_core.testing.linearizability.history import text_of
from raftkit_core.testing.simulation.sim_session import SimSession
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import CompareAndSet, Delete, Get, KeyValue, Put
from raftkit_core.types.operations import OpenSession, SessionOpened

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.simulation import Simulation

TIMEOUT = 2.0
NEVER_TOLD = (ResultForgotten, SerialReused, BadCommand)
"""What a session says only to clients that break its rules."""


class SimClient:
    """Asks a node it chooses anew each time (or ``node``), and never twice: a lost answer is an unknown outcome."""

    def __init__(self, sim: Simulation, name: str, random: Random) -> None:
        self._sim = sim
        self.name = name
        self._random = random
        self.session_name = name
        """Clients with one name write under one session."""

    async def put(self, key: str, value: bytes | str, *, node: NodeId | None = None, timeout: float = TIMEOUT) -> Any:
        """Raises: RaftError."""
        return await self._call("put", key, Put(key, _bytes(value)), node, timeout, value=_bytes(value))

    async def put_once(self, key: str, value: bytes | str, *, timeout: float = TIMEOUT, attempts: int = 4) -> Any:
        """A put under a session: sent again, to any node, while its outcome is unknown, with one effect. It may take
        ``attempts`` times ``timeout``.

        Raises: RaftError.
        """
        sim = self._sim
        await sim.start()
        session = await self._open_session(timeout)
        call = sim.history.call(
            self.name, "put", key, now=sim.now, value=_bytes(value), session=session.id, serial=session.next_serial
        )
        session.patience_s = timeout
        try:
            done = await session.write(Put(key, _bytes(value)), timeout=timeout * attempts)
        except RaftError as error:
            call.raised(sim.now, error)
            sim.trace.event("told", self.name, f"put_once {key} {type(error).__name__}")
            sim.trace.seen(f"session.{error.outcome}")
            if isinstance(error, NEVER_TOLD) or isinstance(error.__cause__, NEVER_TOLD):
                told = (
                    f"its client, which follows the rules and waits for {key}={text_of(_bytes(value))}, is told {error}"
                )
                sim.oracle.breach("S23", session.ref.token, told)
            raise
        call.ok(sim.now, done.data)
        sim.trace.event("told", self.name, f"put_once {key} {done.data}")
        sim.trace.seen("session.ok")
        return done.data

    async def _open_session(self, timeout: float) -> SimSession:
        """The session of :attr:`session_name`, a new one if that is over."""
        sim = self._sim
        if (held := sim.sessions.get(self.session_name)) is not None and not (held.is_closed or held.is_expired):
            return held
        clock = sim.clock_of(f"session/{self.session_name}")
        sent_at = clock.monotonic()
        opened: SessionOpened = await self._at_a_node(
            lambda raft: raft.call(OpenSession(sim.session_ttl_ms), timeout=timeout)
        )
        sim.trace.seen("session.opened")
        found = SimSession(sim, opened, sent_at=sent_at, clock=clock, choose=self._choose)
        sim.sessions_left.append(found)
        if sim.sessions.get(self.session_name) is held:
            sim.sessions[self.session_name] = found
        else:
            await found.abandon()  # somebody else who writes under this name was quicker
        return await self._open_session(timeout)

    async def leave_session(self, *, close: bool, when_late: bool = False) -> None:
        """Write under another session from now on. Unless it is closed the old one is left to itself: nobody keeps it
        alive, and its client counts on it until its time is over. ``when_late``: only when the answer to the next
        keep-alive, a late one, has come, and at that very moment."""
        session = self._sim.sessions.get(self.session_name)
        if session is None:
            return
        if when_late:
            session.on_late_answer = lambda: self._leave_late(session)
            return
        del self._sim.sessions[self.session_name]
        self._sim.trace.event("told", self.name, f"leaves session {session.id} {close}")
        if close:
            await session.close()
        else:
            self._sim.trace.seen("session.abandoned")
            await session.abandon()

    def _leave_late(self, session: SimSession) -> None:
        sim = self._sim
        if sim.sessions.get(self.session_name) is not session:
            return
        del sim.sessions[self.session_name]
        sim.trace.seen("session.abandoned_late")
        sim.under_way.append(sim.loop.create_task(session.abandon(), name="leave a session"))

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
        if asked is None or asked not in sim.running:
            sim.trace.event("told", self.name, f"{kind} {key} is down")
            sim.trace.seen("client.found_nobody")  # no node said anything
            gone = Stopped(f"{asked} is down", outcome="not_applied")
            call.raised(sim.now, gone)
            raise gone
        try:
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
            if error.outcome == "not_applied" and isinstance(told.get("value"), bytes):
                sim.oracle.failed_for_certain(asked or "", key, told["value"])
            raise
        call.ok(sim.now, result)
        sim.trace.event("told", self.name, f"{kind} {key} {result}")
        sim.trace.seen("client.ok")
        if kind != "get" and isinstance(told.get("value"), bytes):
            sim.oracle.succeeded(asked, key, told["value"], getattr(result, "revision", None))
        return result

    def _choose(self) -> NodeId | None:
        running = self._sim.running
        return self._random.choice(running) if running else None


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
