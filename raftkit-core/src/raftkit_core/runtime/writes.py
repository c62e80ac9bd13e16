"""Writes beyond the plain one: several in one append, and from any node, once or under a session.

The plain write, on the node that leads, is ``Raft.client_write`` and nothing between it and the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from raftkit_core.errors import ForwardToLeader, Overloaded, QuorumNotEnough, RaftError
from raftkit_core.network.client_session import ClientSession
from raftkit_core.network.repeating import Attempts
from raftkit_core.runtime.envelopes import Envelopes
from raftkit_core.runtime.messages import ClientWrite, ClientWriteResponse
from raftkit_core.runtime.operations import Forwarder
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.types.operations import Write, WriteDone
from raftkit_core.types.session import SessionSerial


class Writes:
    """What a node does for whoever writes through it, leader or not."""

    def __init__(self, core: RaftCore, machine: RaftStateMachine, envelopes: Envelopes, forwarder: Forwarder) -> None:
        self._core = core
        self._machine = machine
        self._envelopes = envelopes
        self._forwarder = forwarder

    async def write(
        self, command: Any, session: ClientSession | SessionSerial | None, timeout: float
    ) -> ClientWriteResponse:
        """From any node; ``Raft.write`` says the contract."""
        self._core.check_running()
        if isinstance(session, SessionSerial):
            return await self.write_once(command, lambda: session, timeout)
        if session is not None:
            done: ClientWriteResponse = await session.write(command, timeout=timeout)
            return done
        body, decoded = self._envelopes.encode(command)
        if self._core.engine.is_leader:
            with suppress(ForwardToLeader, QuorumNotEnough):
                return await self._core.propose(self._envelopes.around(body), timeout, command=decoded)
        return self._response(await self._forwarder.call(Write(body), timeout))

    async def write_once(self, command: Any, once: Callable[[], SessionSerial], timeout: float) -> ClientWriteResponse:
        """Send until it is settled; each attempt carries what ``once`` gives."""
        body = self._machine.codec.encode_command(command)

        async def here(operation: Write, timeout: float) -> ClientWriteResponse:
            return await self._core.propose(self._envelopes.around(operation.body, operation.once), timeout)

        serial = once()
        attempts = Attempts(f"write {serial.serial} of the session {serial.session.id}")
        done = await self._forwarder.call_again(lambda: Write(body, once()), timeout, here, attempts)
        return self._response(done)

    def _response(self, done: ClientWriteResponse | WriteDone) -> ClientWriteResponse:
        if isinstance(done, WriteDone):
            return ClientWriteResponse(done.log_id, self._machine.codec.decode_result(done.body))
        return done

    async def append_commands(self, commands: Iterable[Any], timeout: float) -> list[ClientWriteResponse | RaftError]:
        """``commands`` in one append, in order, on the leader; each one's result or error."""
        return await self._append([self._envelopes.of(command) for command in commands], timeout)

    async def write_many(
        self, commands: Sequence[Any], serials: Sequence[SessionSerial] | None, timeout: float
    ) -> list[ClientWriteResponse | RaftError]:
        """From any node: one append where this node leads, each on its own where it does not."""
        self._core.check_running()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        once: Sequence[SessionSerial | None] = [None] * len(commands) if serials is None else serials
        results: list[ClientWriteResponse | RaftError | None] = [None] * len(commands)
        made: dict[int, tuple[bytes, Any]] = {}
        if self._core.engine.is_leader:
            for number, (command, serial) in enumerate(zip(commands, once, strict=True)):
                try:
                    body, decoded = self._envelopes.encode(command)
                    made[number] = self._envelopes.around(body, serial), decoded if serial is None else None
                except RaftError as error:
                    results[number] = error
            try:
                appended = await self._append(list(made.values()), timeout)
            except RaftError as error:
                appended = [error] * len(made)
            for number, result in zip(made, appended, strict=True):
                # Definite: no log has it, and another node may lead.
                results[number] = None if isinstance(result, ForwardToLeader | QuorumNotEnough) else result
        rest = [number for number, result in enumerate(results) if result is None]
        left = max(deadline - loop.time(), 0.001)
        done = await asyncio.gather(*(self._outcome(commands[number], once[number], left) for number in rest))
        for number, result in zip(rest, done, strict=True):
            results[number] = result
        return [result for result in results if result is not None]

    async def _append(self, made: Sequence[tuple[bytes, Any]], timeout: float) -> list[ClientWriteResponse | RaftError]:
        """``made``: payloads, and the commands they hold as far as they are known."""
        if not made:
            return []
        payloads, commands = [payload for payload, _ in made], [command for _, command in made]
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [asyncio.Future(loop=loop) for _ in payloads]
        size_bytes = sum(len(payload) for payload in payloads)
        size_bytes_max = self._core.config.max_uncommitted_bytes
        if size_bytes > size_bytes_max and len(payloads) > 1:
            raise Overloaded(
                f"{len(payloads)} commands take {size_bytes} bytes, max_uncommitted_bytes is {size_bytes_max}",
                hint="write them in several calls",
            )
        now = self._core.clock.monotonic()
        self._core.send(ClientWrite(payloads, commands, futures, [timeout] * len(futures), now))
        await asyncio.gather(*futures, return_exceptions=True)
        return [_result_of(future) for future in futures]

    async def _outcome(
        self, command: Any, once: SessionSerial | None, timeout: float
    ) -> ClientWriteResponse | RaftError:
        try:
            return await self.write(command, once, timeout)
        except RaftError as error:
            return error


def _result_of(future: asyncio.Future[Any]) -> ClientWriteResponse | RaftError:
    error = future.exception()
    if error is None:
        response: ClientWriteResponse = future.result()
        return response
    if isinstance(error, RaftError):
        return error
    raise error
