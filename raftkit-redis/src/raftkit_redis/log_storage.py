"""``RaftLogStorage`` on one Redis server: a list behind fenced scripts. The clauses L1–L11 are core's."""

from __future__ import annotations

import asyncio
from typing import Any

from raftkit_core.errors import StorageCorrupt, StorageError, StoreLostWrites
from raftkit_core.storage.interface import LogBatch, LogState, RaftLogStorage, StorageInfo
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, next_index
from raftkit_redis import codec, scripts
from raftkit_redis.link import Argument
from raftkit_redis.options import RedisOptions
from raftkit_redis.reader import FencedReader
from raftkit_redis.scripts import Script
from raftkit_redis.session import FencedSession
from raftkit_redis.uncancelled import uncancelled
from raftkit_redis.witness import Record, Witness, witness_path

MAX_READ_BYTES = 8 * 1024 * 1024
"""One read never asks Redis for more, however much its caller would take: a script blocks the server."""


class RedisLogStorage(RaftLogStorage):
    """The log, vote and identity of one node in Redis.

    Changes run in a task of their own, which no cancellation of a caller reaches, over one connection, one at a time.
    Reads have a second connection, so that they neither wait for a write nor leave half an answer in its way.
    """

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._session: FencedSession | None = None
        self._witness: Witness | None = None
        self._failure: StorageError | None = None
        self._closed = False
        self._store_id = ""
        self._vote = b""
        self._purged = b""
        self._last = b""
        self._lock = asyncio.Lock()
        self._reader: FencedReader | None = None

    def __repr__(self) -> str:
        return f"RedisLogStorage({self._options.location!r})"

    # --- Opening and closing ----------------------------------------------------------------------------------------

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        if self._session is not None:
            raise StorageError(f"{self!r} was opened before", verb="open", hint="make a new one for each opening")
        if context.data_dir is not None:
            self._witness = Witness(
                witness_path(context.data_dir, self._options.group), sync=self._options.witness == "sync"
            )
        self._session = FencedSession(self._options, context, self._witness)
        self._reader = FencedReader(self._options, f"raftkit:{context.node_id}:read")
        try:
            # Bounded by the option's timeouts. A claim that was sent must not be left behind by a cancelled caller.
            return await uncancelled(self._open(self._session))
        except BaseException:
            self._session.given_up = True
            await self.close()
            raise

    async def _open(self, session: FencedSession) -> StoreIdentity | None:
        async with self._lock:
            return await self._open_locked(session)

    async def _open_locked(self, session: FencedSession) -> StoreIdentity | None:
        if self._witness is not None:
            self._witness.load()
        identity = await session.open()
        self._store_id = identity.store_id if identity is not None else ""
        state = await self.read_state()
        self._vote = codec.encode_vote(state.vote) if state.vote is not None else b""
        self._purged = codec.encode_log_id("purged", state.last_purged) if state.last_purged is not None else b""
        self._last = _last_blob(state.last_log_id, state.last_purged)
        await self._note(sync=True)
        return identity

    async def close(self) -> None:
        await uncancelled(self._close())

    async def _close(self) -> None:
        async with self._lock:
            if self._session is None:
                return
            self._closed = True
            await self._session.close()
            if self._witness is not None:
                await self._witness.close()
        if self._reader is not None:
            await self._reader.close()

    # --- Changes ----------------------------------------------------------------------------------------------------

    async def save_identity(self, identity: StoreIdentity) -> None:
        await uncancelled(self._save_identity(identity))

    async def _save_identity(self, identity: StoreIdentity) -> None:
        async with self._lock:
            await self._commit(scripts.IDENTITY, [codec.encode_identity(identity)], subject="identity")
            self._store_id = identity.store_id
            await self._note(sync=True)

    async def write(self, batch: LogBatch) -> None:
        await uncancelled(self._write(batch))

    async def _write(self, batch: LogBatch) -> None:
        async with self._lock:
            if batch.is_empty:
                self._alive()
                return
            subject = "log" if batch.entries or batch.vote is None else "vote"
            arguments = self._encode(batch)
            answer = await self._commit(scripts.WRITE, arguments, subject=subject)
            self._remember(batch, arguments, bytes(answer[2]))
            # A vote that comes back lower is the worst that can be lost, and it is rare: it always waits for the disk.
            await self._note(sync=batch.vote is not None)

    def _encode(self, batch: LogBatch) -> list[Argument]:
        first = batch.entries[0].log_id.index if batch.entries else 0
        for offset, entry in enumerate(batch.entries):
            if entry.log_id.index != first + offset:
                raise self._fail(
                    StorageError(f"refused entries with a hole: {entry.log_id} after index {first + offset - 1}")
                )
        purge, committed = batch.purge_upto, batch.committed
        return [
            codec.encode_vote(batch.vote) if batch.vote is not None else b"",
            batch.vote.term if batch.vote is not None else 0,
            batch.truncate_since if batch.truncate_since is not None else b"",
            purge.index if purge is not None else b"",
            codec.encode_log_id("purged", purge) if purge is not None else b"",
            codec.encode_log_id("committed", committed) if committed is not None else b"",
            committed.index if committed is not None else b"",
            first,
            *map(codec.encode_entry, batch.entries),
        ]

    def _remember(self, batch: LogBatch, arguments: list[Argument], last_entry: bytes) -> None:
        """What the witness is to say after ``batch``."""
        if batch.vote is not None:
            self._vote = bytes(arguments[0])  # type: ignore[arg-type]
        last = codec.decode_log_id("last", self._last)
        purged = codec.decode_log_id("purged", self._purged)
        if batch.entries:
            last = batch.entries[-1].log_id
        elif batch.truncate_since is not None:
            last = codec.peek_log_id(last_entry)
        if batch.purge_upto is not None and next_index(purged) <= batch.purge_upto.index:
            purged = batch.purge_upto
            self._purged = codec.encode_log_id("purged", purged)
        self._last = _last_blob(last, purged)

    async def _commit(self, script: Script, arguments: list[Argument], *, subject: str) -> list[Any]:
        session = self._alive()
        try:
            return await session.commit(script, arguments, subject=subject)
        except StorageError as error:
            raise self._fail(error) from error.__cause__

    async def _note(self, *, sync: bool) -> None:
        if self._witness is None or self._session is None:
            return
        record = Record(self._store_id, self._session.seq, self._vote, self._last, self._purged)
        try:
            await self._witness.note(record, sync=sync)
        except StorageError as error:
            raise self._fail(error) from error.__cause__

    def _alive(self) -> FencedSession:
        if self._failure is not None:
            raise type(self._failure)(
                f"the store failed before and takes no more writes: {self._failure.message}",
                subject=self._failure.subject,
                verb=self._failure.verb,
                hint=self._failure.hint,
            ) from self._failure
        return self._opened()

    def _opened(self) -> FencedSession:
        if self._session is None or self._closed:
            raise StorageError(f"{self!r} is not open")
        return self._session

    def _fail(self, error: StorageError) -> StorageError:
        """L7: the first failure stays. Nothing is written through this handle any more."""
        if self._failure is None:
            self._failure = error
        return error

    # --- Reading ----------------------------------------------------------------------------------------------------

    async def read_state(self) -> LogState:
        answer = await self._ask(scripts.STATE, [], subject="log")
        _, _, vote_blob, committed_blob, purged_blob, first, stop, last_blob = answer
        purged = codec.decode_log_id("purged", purged_blob)
        if next_index(purged) != int(first) or (not last_blob) != (int(first) == int(stop)):
            raise StorageCorrupt(
                f"the log at {self._options.location} starts at {int(first)}, but {purged} was purged last",
                subject="log",
                verb="read",
                hint="nothing was changed; restore the keys from a backup, or rejoin the node",
            )
        return LogState(
            vote=codec.decode_vote(vote_blob),
            committed=codec.decode_log_id("committed", committed_blob),
            last_purged=purged,
            last_log_id=codec.decode_entry(last_blob, int(stop) - 1).log_id if last_blob else purged,
        )

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        if start >= stop:
            raise StorageError(f"refused a read of the empty range [{start}, {stop})", subject="log", verb="read")
        budget = max(0, min(max_bytes, MAX_READ_BYTES))
        answer = await self._ask(scripts.READ, [start, stop, budget], subject="log")
        return [codec.decode_entry(blob, start + offset) for offset, blob in enumerate(answer[2:])]

    async def info(self) -> StorageInfo:
        session = self._opened()
        if self._reader is None:
            raise StorageError(f"{self!r} is not open", verb="read")
        sizes = await self._reader.exchange([["MEMORY", "USAGE", key] for key in session.keys], subject="store")
        facts = session.facts
        details = {
            "epoch": str(session.epoch),
            "changes": str(session.seq),
            "reconnects": str(session.reconnects),
            "witness": "none: the node has no data_dir"
            if self._witness is None
            else f"{self._options.witness}: {self._witness.path}",
        }
        durability = "unknown"
        if facts is not None:
            details |= {"server": f"{facts.product} {facts.version}", "replicas": str(facts.replicas)}
            durability = facts.durability
            if self._options.durability == "relaxed":
                durability = f"relaxed: nothing is demanded of the server ({durability})"
        return StorageInfo(
            adapter="redis",
            location=self._options.location,
            size_bytes=sum(size for size in sizes if isinstance(size, int)),
            durability=durability,
            details=details,
        )

    async def _ask(self, script: Script, arguments: list[Argument], *, subject: str) -> list[Any]:
        """Run a script that changes nothing. It also sees when Redis went back behind what was confirmed."""
        session = self._opened()
        if self._reader is None:
            raise StorageError(f"{self!r} is not open", verb="read")
        try:
            return await self._reader.ask(script, session.keys, arguments, session, subject=subject)
        except StoreLostWrites as error:
            raise self._fail(error) from None


def _last_blob(last: LogId | None, purged: LogId | None) -> bytes:
    """The last log id of the list, empty when no entry is left: as Redis shows it."""
    if last is None or last.index < next_index(purged):
        return b""
    return codec.encode_log_id("last", last)
