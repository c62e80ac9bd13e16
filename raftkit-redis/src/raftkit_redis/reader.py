"""A second connection for reading: reads neither wait for a write nor leave half an answer in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis import exceptions as driver

from raftkit_core.errors import StorageError
from raftkit_redis.link import Argument, RedisLink
from raftkit_redis.options import RedisOptions
from raftkit_redis.scripts import Script
from raftkit_redis.session import FencedSession, check_status
from raftkit_redis.translate import DRIVER_ERRORS, translate
from raftkit_redis.witness import lost_writes


class FencedReader:
    """The connection may be replaced at will: asking twice changes nothing."""

    def __init__(self, options: RedisOptions, client_name: str) -> None:
        self._options = options
        self._link = RedisLink(options, client_name)
        self._lock = asyncio.Lock()
        self._is_closed = False

    async def ask(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        session: FencedSession,
        *,
        subject: str,
    ) -> list[Any]:
        """Run a script that changes nothing, as the owner ``session`` is. Its answer is ``OK, seq, ...``.

        Raises: StorageError and its kinds; StoreLostWrites when Redis went back behind what ``session`` confirmed.
        """
        confirmed = session.seq
        tail: list[Argument] = [len(keys), *keys, session.owner, *arguments]
        (answer,) = await self.exchange([["EVAL", script.source, *tail]], subject=subject)
        try:
            if isinstance(answer, Exception):
                raise answer
            check_status(answer, self._options, subject=subject, verb="read")
        except driver.RedisError as error:
            raise translate(error, location=self._options.location, subject=subject, verb="read") from error
        if int(answer[1]) < confirmed:
            raise lost_writes(
                f"{self._options.location} is at change {int(answer[1])}, but it had confirmed change {confirmed}"
            )
        return list(answer)

    async def exchange(self, commands: list[list[Argument]], *, subject: str) -> list[Any]:
        """Raises: StorageError and its kinds."""
        async with self._lock:
            if self._is_closed:
                raise StorageError(f"{self._options.location} is closed", subject=subject, verb="read")
            try:
                if not await self._link.is_clean():
                    await self._link.connect()
                try:
                    return await self._link.exchange(commands, self._options.timeout_s)
                except driver.ConnectionError:
                    await self._link.connect()
                    return await self._link.exchange(commands, self._options.timeout_s)
            except DRIVER_ERRORS as error:
                raise translate(error, location=self._options.location, subject=subject, verb="read") from error

    async def close(self) -> None:
        async with self._lock:
            self._is_closed = True
            await self._link.disconnect()
