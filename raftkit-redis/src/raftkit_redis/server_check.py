"""Whether a Redis server keeps what it confirms. Asked at open and after every reconnect, never assumed.

``strict`` demands that an answered write is on disk: the append-only file, flushed before the answer
(``appendfsync always``), or a server that can be asked to wait for the flush (``WAITAOF``, Redis 7.2 and Valkey).
Replication is no substitute: a promoted replica may have forgotten a vote, so replicas, Sentinel and Cluster are
refused in every mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from redis import exceptions as driver

from raftkit_core.errors import StorageError
from raftkit_core.types.ids import MAX_ENTRY_BYTES
from raftkit_redis.link import RedisLink
from raftkit_redis.options import RedisOptions

_CONFIG_KEYS = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "maxmemory",
    "maxmemory-policy",
    "proto-max-bulk-len",
)

_MIN_BULK_BYTES = MAX_ENTRY_BYTES + 64 * 1024
"""The largest entry and what the codec adds must fit into one argument."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server said about itself. ``config`` lacks what it does not let us see."""

    run_id: str
    version: str
    product: str
    mode: str
    role: str
    replicas: int
    watched_by_sentinel: bool
    aof_enabled: bool
    aof_last_write_ok: bool
    has_waitaof: bool
    process_id: int = 0
    config: dict[str, str] = field(default_factory=dict)

    @property
    def fsync_always(self) -> bool:
        return (
            self.aof_enabled
            and self.config.get("appendfsync") == "always"
            and self.config.get("no-appendfsync-on-rewrite", "no") == "no"
        )

    @property
    def can_wait_for_fsync(self) -> bool:
        """Whether ``WAITAOF`` ends within a second or so: never with ``appendfsync no``, where the system decides."""
        return self.has_waitaof and self.aof_enabled and self.config.get("appendfsync", "everysec") != "no"

    @property
    def durability(self) -> str:
        """For people, in one phrase."""
        waits = self.can_wait_for_fsync
        if self.fsync_always:
            return "appendfsync always" + (" + WAITAOF" if waits else "")
        return "WAITAOF" if waits else "relaxed: answered writes may be lost"


async def ask_server(link: RedisLink) -> ServerFacts:
    """Raises: the driver's exceptions if even INFO is refused."""
    info = _parse_info(await link.call("INFO", "everything"))
    return ServerFacts(
        run_id=info.get("run_id", ""),
        version=info.get("valkey_version") or info.get("redis_version", "?"),
        product="Valkey" if "valkey_version" in info else "Redis",
        mode=info.get("redis_mode", info.get("server_mode", "standalone")),
        role=info.get("role", "?"),
        replicas=int(info.get("connected_slaves", "0")),
        watched_by_sentinel=await _is_watched_by_sentinel(link),
        aof_enabled=info.get("aof_enabled") == "1",
        aof_last_write_ok=info.get("aof_last_write_status", "ok") == "ok",
        has_waitaof=await _has_waitaof(link),
        process_id=int(info.get("process_id", "0")),
        config=await _read_config(link, info),
    )


async def is_loading(link: RedisLink) -> bool:
    """Whether the server is still reading its data from disk."""
    return _parse_info(await link.call("INFO", "persistence")).get("loading", "0") != "0"


def check_server(facts: ServerFacts, options: RedisOptions) -> None:
    """Raises: StorageError with the setting that is wrong and the command that corrects it."""
    where = f"{facts.product} {facts.version} at {options.location}"
    if facts.mode == "cluster":
        raise _refused(
            f"{where} is a Redis Cluster node, and a failover there can forget a vote that was confirmed",
            "give each raft node a standalone Redis of its own (cluster-enabled no); raft does the replication",
        )
    if facts.mode == "sentinel":
        raise _refused(f"{where} is a Sentinel, which keeps no data", "name the host and port of a standalone Redis")
    if facts.role != "master":
        raise _refused(
            f"{where} is a replica (role:{facts.role}): its content is somebody else's",
            "give each raft node a Redis of its own that replicates nothing",
        )
    if facts.watched_by_sentinel:
        raise _refused(
            f"{where} is watched by a Sentinel, which may promote a replica that lacks confirmed writes",
            "take this server out of the Sentinel's configuration (SENTINEL REMOVE NAME)",
        )
    policy = facts.config.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        raise _refused(
            f"{where} may evict keys: maxmemory-policy is {policy}", _set_hint("maxmemory-policy", "noeviction")
        )
    bulk = int(facts.config.get("proto-max-bulk-len", str(_MIN_BULK_BYTES)))
    if bulk < _MIN_BULK_BYTES:
        raise _refused(
            f"{where} takes values of at most {bulk} bytes, and an entry may have {_MIN_BULK_BYTES}",
            _set_hint("proto-max-bulk-len", "536870912"),
        )
    if options.durability == "strict":
        _check_durability(facts, where)


def _check_durability(facts: ServerFacts, where: str) -> None:
    relaxed = "or write durability=relaxed in the storage URL and accept that a crash loses confirmed writes"
    if not facts.aof_enabled:
        raise _refused(
            f"{where} would forget confirmed writes: appendonly is no", f"{_set_hint('appendonly', 'yes')}; {relaxed}"
        )
    if not facts.aof_last_write_ok:
        raise _refused(
            f"{where} could not write its append-only file the last time (aof_last_write_status is not ok)",
            "free or repair the disk of its `dir`, then start the node again",
        )
    if facts.fsync_always or (facts.can_wait_for_fsync and "appendfsync" in facts.config):
        return
    fsync = facts.config.get("appendfsync")
    if fsync is None:
        raise _refused(
            f"{where} does not let us see appendfsync",
            f"allow this user CONFIG GET (+config|get), or give it a server that does; {relaxed}",
        )
    if fsync == "always":
        raise _refused(
            f"{where} would answer before data is on disk while it rewrites its file: no-appendfsync-on-rewrite is yes",
            f"{_set_hint('no-appendfsync-on-rewrite', 'no')}; {relaxed}",
        )
    raise _refused(
        f"{where} would answer before data is on disk: appendfsync is {fsync}",
        f"{_set_hint('appendfsync', 'always')}; {relaxed}",
    )


def _set_hint(name: str, value: str) -> str:
    return f"set `{name} {value}` in redis.conf, or now: CONFIG SET {name} {value}"


def _refused(message: str, hint: str) -> StorageError:
    return StorageError(message, subject="store", verb="open", hint=hint)


async def _has_waitaof(link: RedisLink) -> bool:
    try:
        await link.call("WAITAOF", 0, 0, 1)
    except driver.ResponseError as error:
        if isinstance(error, driver.NoPermissionError):
            raise
        return False
    return True


async def _is_watched_by_sentinel(link: RedisLink) -> bool:
    """Every Sentinel subscribes to this channel on the masters it watches; a master does not know it otherwise."""
    try:
        answer = await link.call("PUBSUB", "NUMSUB", "__sentinel__:hello")
    except driver.ResponseError:
        return False
    counts = list(answer.values()) if isinstance(answer, dict) else list(answer)[1::2]
    return any(int(count) > 0 for count in counts)


async def _read_config(link: RedisLink, info: dict[str, str]) -> dict[str, str]:
    """CONFIG GET, and where it is blocked the little that INFO tells."""
    found: dict[str, str] = {}
    try:
        for name in _CONFIG_KEYS:
            answer = await link.call("CONFIG", "GET", name)
            pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
            found |= {_text(key): _text(value) for key, value in pairs}
    except driver.ResponseError:
        if "maxmemory_policy" in info:
            found["maxmemory-policy"] = info["maxmemory_policy"]
    return found


def _parse_info(answer: Any) -> dict[str, str]:
    lines = (line for line in _text(answer).splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
