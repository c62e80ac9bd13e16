"""One dedicated connection to Redis, without a pool and without any retry of its own.

redis-py's clients reconnect and repeat behind the caller's back; a raft log must know of every break. So this uses its
``Connection`` directly: commands go out, answers come back in order, and whatever interrupts an exchange (an error, a
deadline, a cancellation) closes the connection, because the next answer would belong to somebody else (redis-py#2624).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redis import exceptions as driver
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from raftkit_redis.options import RedisOptions
from raftkit_redis.scripts import Script

logger = logging.getLogger("raftkit.redis")

Argument = bytes | str | int


class RedisLink:
    """A connection that is used by one caller at a time. Raises the driver's exceptions; the storage translates."""

    def __init__(self, options: RedisOptions, client_name: str) -> None:
        self._options = options
        self._client_name = client_name
        self._connection: Any = None

    async def is_clean(self) -> bool:
        """Whether the connection is open and nothing unexpected waits to be read on it (an end of file is such)."""
        connection = self._connection
        if connection is None or not connection.is_connected:
            return False
        probe = getattr(connection, "can_read", None) or connection.can_read_destructive
        try:
            return not await probe()
        except (driver.RedisError, OSError):
            return False

    async def connect(self) -> None:
        """Connect, authenticate, select the database. Raises the driver's exceptions, TimeoutError, OSError."""
        await self.disconnect()
        options = self._options
        arguments: dict[str, Any] = {
            "host": options.host,
            "port": options.port,
            "db": options.database,
            "username": options.username,
            "password": options.read_password(),
            "protocol": 3,
            "client_name": self._client_name,
            "socket_timeout": None,
            "socket_connect_timeout": options.timeout_s,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "decode_responses": False,
        }
        if options.tls:
            arguments |= {"ssl_ca_certs": options.ca, "ssl_certfile": options.cert, "ssl_keyfile": options.key}
            connection: Any = SSLConnection(**arguments)
        else:
            connection = Connection(**arguments)
        self._connection = connection
        try:
            async with asyncio.timeout(options.timeout_s):
                await connection.connect()
        except BaseException:
            await self.disconnect()
            raise

    async def disconnect(self) -> None:
        """Close at once. Idempotent, never raises."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await connection.disconnect(nowait=True)
        except (driver.RedisError, OSError) as error:
            logger.debug("closing the connection to %s: %s", self._options.location, error)

    async def call(self, *command: Argument) -> Any:
        """One command, one answer."""
        answers = await self.exchange([command], self._options.timeout_s)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    async def exchange(self, commands: Sequence[Sequence[Argument]], timeout_s: float) -> list[Any]:
        """Send ``commands`` together; their answers in order, an error reply as an exception *in* the list.

        Raises: the driver's connection errors, TimeoutError after ``timeout_s``. The connection is closed then.
        """
        connection = self._connection
        if connection is None or not connection.is_connected:
            # redis-py would connect by itself here, and nobody would check what it is connected to.
            raise driver.ConnectionError("not connected")
        answers: list[Any] = []
        try:
            async with asyncio.timeout(timeout_s):
                packed = connection.pack_commands(commands)
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        answers.append(await connection.read_response())
                    except driver.ResponseError as error:
                        answers.append(error)
        except BaseException:
            await self.disconnect()
            raise
        return answers

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        *,
        then: Sequence[Argument] | None = None,
    ) -> tuple[list[Any], Any]:
        """Run ``script`` and, in the same round trip, ``then``: both answers.

        Raises: the driver's exceptions. An error reply means that the script changed nothing.
        """
        tail: list[Argument] = [len(keys), *keys, *arguments]
        follow = [then] if then is not None else []
        answers = await self.exchange([["EVALSHA", script.sha, *tail], *follow], self._options.timeout_s)
        if isinstance(answers[0], driver.NoScriptError):
            # Unknown to this server, so it did not run: send it whole, which also teaches it.
            answers = await self.exchange([["EVAL", script.source, *tail], *follow], self._options.timeout_s)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0], answers[1] if follow else None
