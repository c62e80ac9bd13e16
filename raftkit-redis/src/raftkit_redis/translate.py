"""What the driver raises, in the words of ``raftkit_core.errors``. The only place that knows redis-py's exceptions."""

from __future__ import annotations

import asyncio
import re

from redis import exceptions as driver

from raftkit_core.errors import StorageError, StorageFull

CONNECTION_ERRORS: tuple[type[Exception], ...] = (
    driver.ConnectionError,
    driver.TimeoutError,
    asyncio.TimeoutError,
    OSError,
    EOFError,
)
"""The connection failed: what became of the command is unknown."""

DRIVER_ERRORS: tuple[type[Exception], ...] = (driver.RedisError, *CONNECTION_ERRORS)
"""Everything the driver raises."""

STORAGE_ERRORS: tuple[type[Exception], ...] = (StorageError, *DRIVER_ERRORS)

_REPLIES: tuple[tuple[str, type[StorageError], str, str], ...] = (
    (
        "OOM",
        StorageFull,
        "Redis reached its memory limit and refuses writes",
        "raise `maxmemory` in redis.conf, or let the node take snapshots so that its log is purged",
    ),
    (
        "MISCONF",
        StorageError,
        "Redis refuses writes because it cannot persist to its disk",
        "look at the Redis log; free or repair the disk of its `dir`, then start the node again",
    ),
    (
        "READONLY",
        StorageError,
        "this Redis became a replica and refuses writes",
        "a raft log needs a Redis of its own: run `REPLICAOF NO ONE` only if it never followed another server",
    ),
    (
        "NOREPLICAS",
        StorageError,
        "Redis refuses writes because too few replicas are attached",
        "set `min-replicas-to-write 0`: a raft log needs no replicas of its Redis",
    ),
    (
        "NOPERM",
        StorageError,
        "the Redis user may not run a command or touch a key that is needed",
        "grant it ~{PREFIX}:* and +@read +@write +@scripting +@connection +info +config|get +pubsub|numsub "
        "+memory|usage, and where the server has it +waitaof",
    ),
    (
        "WRONGTYPE",
        StorageError,
        "a key of this prefix holds something that is not a raftkit log",
        "choose another prefix: add `?prefix=NAME` to the storage URL",
    ),
    ("LOADING", StorageError, "Redis is still loading its data", "wait until it has loaded, then start the node again"),
    ("BUSY", StorageError, "Redis is busy with somebody's script", "keep other programs off the Redis of a raft log"),
)


def translate(error: BaseException, *, location: str, subject: str, verb: str) -> StorageError:
    """The typed error for ``error``. ``location`` must be free of secrets; so is what comes out.

    A reply that refuses the password is told without repeating what Redis said, because a server may quote it.
    """
    if isinstance(error, StorageError):
        return error
    text = str(error)
    if isinstance(error, driver.AuthenticationError) or text.startswith(("WRONGPASS", "NOAUTH", "invalid username")):
        return StorageError(
            f"Redis at {location} refuses the user name or password",
            subject=subject,
            verb=verb,
            hint="give them as redis://USER@host?password_env=VARIABLE, or password_file=PATH",
        )
    for prefix, kind, meaning, hint in _REPLIES:
        if re.search(rf"(^|[-@ ]){prefix}\b", text) or _is_reply_of(error, prefix):
            return kind(f"{meaning} ({location}): {text}", subject=subject, verb=verb, hint=hint)
    if isinstance(error, asyncio.TimeoutError | driver.TimeoutError):
        return StorageError(
            f"Redis at {location} did not answer in time",
            subject=subject,
            verb=verb,
            hint="is the server stopped, overloaded or unreachable? `timeout_ms` in the URL is the limit",
        )
    if isinstance(error, driver.ConnectionError | OSError | EOFError):
        return StorageError(
            f"no connection to Redis at {location}: {text}",
            subject=subject,
            verb=verb,
            hint="start the server, or correct host and port in the storage URL",
        )
    return StorageError(
        f"Redis at {location} answered: {text}",
        subject=subject,
        verb=verb,
        hint="look at the number behind the port of the URL (the database), at the server's version, and at its log",
    )


def _is_reply_of(error: BaseException, prefix: str) -> bool:
    """redis-py strips the first word of replies it has a class for."""
    classes: dict[str, type[BaseException]] = {
        "OOM": driver.OutOfMemoryError,
        "READONLY": driver.ReadOnlyError,
        "LOADING": driver.BusyLoadingError,
        "NOPERM": driver.NoPermissionError,
    }
    kind = classes.get(prefix)
    return kind is not None and isinstance(error, kind)
