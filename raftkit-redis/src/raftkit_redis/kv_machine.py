"""``redis-kv://``: the logical machine ``kv/1``, durable in one Redis server.

The contract is ``raftkit_core.state_machine.interface``. A batch costs two exchanges: one reads the cells it touches,
one changes cells, position, membership and records in a single fenced script. Nobody else writes, so what was read is
still true then; if it is not, the fence says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from raftkit_core.errors import StorageError, StoreLostWrites
from raftkit_core.state_machine.interface import AppliedState, ApplyBatch, RaftStateMachine
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.state_machine.kv_rules import (
    Cell,
    apply_to_cells,
    check_query,
    check_revision,
    cut,
    digest_of,
    is_enough,
    key_range,
    keys_of,
)
from raftkit_core.state_machine.kv_stream import RowDecoder
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.kv import KV_MACHINE, Get, KeyValue, ListKeys
from raftkit_core.types.log_id import index_of
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_redis import codec, kv_scripts
from raftkit_redis.kv_session import VIEWS_MAX, KvSession
from raftkit_redis.kv_view import PAGE_ROWS, View, items_of, read_page
from raftkit_redis.link import Argument
from raftkit_redis.options import RedisOptions
from raftkit_redis.reader import FencedReader
from raftkit_redis.scripts import Script
from raftkit_redis.uncancelled import uncancelled

LOAD_BYTES = 1024 * 1024
"""What one script of a restore writes at most (and one row more)."""
_DECODE_BYTES = 64 * 1024
"""Of a chunk, how much is decoded in one turn of the event loop."""
_SUBJECT = "state machine"

T = TypeVar("T")


class RedisKvStateMachine(RaftStateMachine):
    """Changes run in tasks of their own, which no cancellation of a caller reaches, one at a time."""

    name = KV_MACHINE
    durable = True

    def __init__(self, options: RedisOptions) -> None:
        self.codec = KvCodec()
        self._options = options
        self._session: KvSession | None = None
        self._reader: FencedReader | None = None
        self._failure: StorageError | None = None
        self._is_closed = False
        self._lock = asyncio.Lock()
        self._generation = 0
        self._generations = {0}
        """All that may be there: the one that counts, those that views still show, one that a restore fills."""
        self._loading: int | None = None
        self._free_slots = list(range(VIEWS_MAX))
        self._views: dict[int, int] = {}
        """Generation by slot, of every open view."""
        self._kept: set[int] = set()
        """Slots that may have keys in Redis."""
        self._abandoned: list[int] = []

    def __repr__(self) -> str:
        return f"RedisKvStateMachine({self._options.location!r})"

    # --- Opening and closing ----------------------------------------------------------------------------------------

    async def open(self, context: AdapterContext) -> None:
        """Raises: StorageLocked, IdentityError, StorageCorrupt, StorageError."""
        if self._session is not None:
            raise StorageError(f"{self!r} was opened before", verb="open", hint="make a new one for each opening")
        self._session = KvSession(self._options, context)
        self._reader = FencedReader(self._options, f"raftkit:{context.node_id}:kv:read")
        try:
            await uncancelled(self._open(self._session, context))
        except BaseException:
            self._session.given_up = True
            await self.close()
            raise

    async def _open(self, session: KvSession, context: AdapterContext) -> None:
        async with self._lock:
            if await session.open() is None:
                identity = StoreIdentity(
                    node_id=context.node_id,
                    store_id=secrets.token_hex(16),
                    cluster=context.cluster,
                    group=context.group,
                    machine=KV_MACHINE,
                )
                await session.change_identity(codec.encode_identity(identity))
            state = await self._ask(kv_scripts.STATE, [session.names.records], [])
            self._generation = int(state[4])
            self._generations = {self._generation, *map(int, bytes(state[5]).split(b","))}
            await self._tidy(session.names.views)  # what an earlier process left

    async def close(self) -> None:
        await uncancelled(self._close())

    async def _close(self) -> None:
        async with self._lock:
            if self._session is None or self._is_closed:
                return
            self._is_closed = True
            await self._session.close()
        if self._reader is not None:
            await self._reader.close()

    async def applied_state(self) -> AppliedState:
        """Raises: StorageError and its kinds."""
        state = await self._ask(kv_scripts.STATE, [self._opened().names.records], [])
        membership = codec.decode_membership(state[3])
        records = state[6].items() if isinstance(state[6], dict) else zip(state[6][::2], state[6][1::2], strict=True)
        found = {key: codec.decode_record(key, blob) for key, blob in records}
        applied = codec.decode_log_id("applied", state[2])
        return AppliedState(applied, membership, found) if membership else AppliedState(applied, records=found)

    # --- Applying ---------------------------------------------------------------------------------------------------

    def apply(self, batch: ApplyBatch) -> Awaitable[Sequence[Any]]:
        """Raises: StorageError and its kinds, and from then on for every batch."""
        return uncancelled(self._apply(batch))

    async def _apply(self, batch: ApplyBatch) -> Sequence[Any]:
        async with self._lock:
            session = self._alive()
            await self._end_abandoned()
            self._loading = None
            results, changed = apply_to_cells(batch.entries, await self._cells(keys_of(batch.entries)))
            records = batch.seal(results)
            removed = [key.encode() for key, cell in changed.items() if cell is None]
            put = [part for key, cell in changed.items() if cell is not None for part in _row(key, *cell)]
            gone = [key for key, value in records if value is None]
            kept = [part for key, value in records if value is not None for part in _record(key, value)]
            views = [slot for slot, generation in self._views.items() if generation == self._generation]
            keys = [*session.names.cells(self._generation), session.names.records]
            if changed:
                self._kept.update(views)
                keys += [key for slot in views for key in session.names.view(slot)]
            arguments: list[Argument] = [
                codec.encode_log_id("applied", batch.last_log_id),
                batch.last_log_id.index,
                b"" if batch.membership is None else codec.encode_membership(batch.membership),
                len(removed),
                len(put) // 2,
                len(gone),
            ]
            await self._change(kv_scripts.APPLY, keys, [*arguments, *removed, *put, *gone, *kept])
            return results

    async def _cells(self, keys: Mapping[str, bool]) -> dict[str, Cell | None]:
        """The cells of ``keys``; where the value is not asked for, an empty one stands in."""
        if not keys:
            return {}
        ordered = sorted(keys, key=keys.__getitem__, reverse=True)  # whole ones first
        whole = sum(keys.values())
        blobs = await self._blobs(whole, [key.encode() for key in ordered])
        assert blobs is not None, "only this handle switches, and it holds the lock"
        found: dict[str, Cell | None] = {}
        for at, (key, blob) in enumerate(zip(ordered, blobs, strict=True)):
            if not blob:
                found[key] = None
            else:
                found[key] = codec.decode_cell(key.encode(), blob) if at < whole else (b"", codec.revision_of(blob))
        return found

    async def _blobs(self, whole: int, keys: Sequence[bytes], generation: int | None = None) -> list[bytes] | None:
        """As they are stored; None if another generation counts by now."""
        generation = self._generation if generation is None else generation
        arguments: list[Argument] = [generation, whole, *keys]
        answer = await self._ask(kv_scripts.CELLS, [self._opened().names.cells(generation)[0]], arguments)
        return answer[3:] if len(answer) > 2 else None

    # --- Reading ----------------------------------------------------------------------------------------------------

    def query(self, query: Any) -> Awaitable[KeyValue | list[KeyValue] | None]:
        """A :class:`Get` gives a :class:`KeyValue` or None, a :class:`ListKeys` a list. Raises: CommandRejected."""
        question = check_query(query)
        return self._get(question.key) if isinstance(question, Get) else self._list(question)

    async def _get(self, key: str) -> KeyValue | None:
        encoded = key.encode("utf-8", "surrogatepass")
        blob = await self._read_now(lambda generation: self._blobs(1, [encoded], generation))
        if not blob[0]:
            return None
        value, revision = codec.decode_cell(encoded, blob[0])
        return KeyValue(key=key, value=value, revision=revision)

    async def _list(self, query: ListKeys) -> list[KeyValue]:
        start, is_inclusive, end = key_range(query)
        first = (b"[" if is_inclusive else b"(") + start
        last: str | bytes = "+" if end is None else b"(" + end
        session, reader, most = self._opened(), self._reading(), min(PAGE_ROWS, query.limit)
        page = await self._read_now(lambda generation: read_page(reader, session, generation, None, first, last, most))
        found = items_of(page)
        if page.next_first is None or is_enough(found, query):
            return cut(found, query)
        view = self.snapshot()  # several pages, of one moment
        try:
            return await view.list_keys(first, last, query)
        finally:
            await view.aclose()

    async def _read_now(self, read: Callable[[int], Awaitable[T | None]]) -> T:
        """``read`` of the generation that counts: anew if a restore has switched meanwhile."""
        while (found := await read(self._generation)) is None:
            await self._begun()
        return found

    def digest(self) -> Awaitable[str]:
        return digest_of(self.snapshot())

    # --- Views ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> View:
        """Costs a copy of every cell that is changed while it is read. Raises: StorageError if too many are open."""
        session, reader = self._opened(), self._reading()
        if not self._free_slots:
            raise StorageError(
                f"{self!r}: {VIEWS_MAX} snapshots, digests or lists are being read", subject=_SUBJECT, verb="read"
            )
        slot = self._free_slots.pop()
        self._views[slot] = self._generation
        return View(
            reader,
            session,
            self._generation,
            slot,
            begun=self._begun,
            ended=self._end_view,
            abandoned=self._abandoned.append,
        )

    async def _begun(self) -> None:
        """Wait until no change is under way that was begun before."""
        async with self._lock:
            return

    async def _end_view(self, slot: int) -> None:
        await uncancelled(self._end_views([slot]))

    async def _end_views(self, slots: Sequence[int]) -> None:
        async with self._lock:
            if not self._is_closed and self._failure is None:
                await self._forget(slots)

    async def _end_abandoned(self) -> None:
        if self._abandoned:
            slots, self._abandoned[:] = list(self._abandoned), []
            await self._forget(slots)

    async def _forget(self, slots: Sequence[int]) -> None:
        """Give slots back, and with them whatever nobody shows any more."""
        for slot in slots:
            self._views.pop(slot, None)
        keys = [key for slot in slots if slot in self._kept for key in self._opened().names.view(slot)]
        if keys or self._unused_generations():
            await self._tidy(keys)
        self._kept.difference_update(slots)
        self._free_slots.extend(slots)

    def _unused_generations(self) -> set[int]:
        used = {self._generation, *self._views.values()} | ({self._loading} if self._loading is not None else set())
        return self._generations - used

    async def _tidy(self, keys: Sequence[str]) -> None:
        unused = self._unused_generations()
        names = self._opened().names
        gone = [key for generation in sorted(unused) for key in names.cells(generation)]
        left = self._generations - unused
        await self._change(kv_scripts.TIDY, [*keys, *gone], [_listed(left)])
        self._generations = left

    # --- Restoring --------------------------------------------------------------------------------------------------

    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        await self.restore_all(meta, chunks, {})

    async def restore_all(
        self, meta: SnapshotMeta, chunks: AsyncIterator[bytes], records: Mapping[bytes, bytes]
    ) -> None:
        """Into a generation beside the one that counts; then one script switches over.

        Raises: StorageCorrupt for a bad stream, and the state is as before; StorageError and its kinds.
        """
        try:
            generation = await uncancelled(self._begin_load())
            async for rows in _decoded(chunks, index_of(meta.last_log_id)):
                await uncancelled(self._load(generation, rows))
            await uncancelled(self._switch(generation, meta, records))
        except BaseException:
            if self._failure is None and not self._is_closed:
                await uncancelled(self._abandon_load())
            raise

    async def _begin_load(self) -> int:
        async with self._lock:
            self._alive()
            generation = max(self._generations) + 1
            self._generations.add(generation)
            self._loading = generation
            await self._tidy([])  # writes down that it may be there, before it is
            return generation

    async def _load(self, generation: int, rows: Sequence[Argument]) -> None:
        async with self._lock:
            self._require_loading(generation)
            await self._change(kv_scripts.LOAD, self._alive().names.cells(generation), rows)

    async def _switch(self, generation: int, meta: SnapshotMeta, records: Mapping[bytes, bytes]) -> None:
        async with self._lock:
            self._require_loading(generation)
            arguments: list[Argument] = [
                codec.encode_log_id("applied", meta.last_log_id) if meta.last_log_id is not None else b"",
                index_of(meta.last_log_id),
                codec.encode_membership(meta.membership),
                generation,
            ]
            blobs = [part for key, value in records.items() for part in _record(key, value)]
            await self._change(kv_scripts.SWITCH, [self._alive().names.records], [*arguments, *blobs])
            self._generation, self._loading = generation, None
            await self._tidy([])

    async def _abandon_load(self) -> None:
        async with self._lock:
            self._loading = None
            if self._unused_generations() and self._failure is None and not self._is_closed:
                await self._tidy([])

    def _require_loading(self, generation: int) -> None:
        if self._loading != generation:
            raise StorageError(f"{self!r}: another change came between the parts of a restore", subject=_SUBJECT)

    # --- What all of it stands on -----------------------------------------------------------------------------------

    async def _change(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        try:
            await self._alive().change(script, keys, arguments)
        except StorageError as error:
            raise self._fail(error) from error.__cause__

    async def _ask(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Any]:
        session = self._opened()
        try:
            return await self._reading().ask(script, [session.names.meta, *keys], arguments, session, subject=_SUBJECT)
        except StoreLostWrites as error:
            raise self._fail(error) from None

    def _opened(self) -> KvSession:
        if self._session is None or self._is_closed:
            raise StorageError(f"{self!r} is not open", subject=_SUBJECT)
        return self._session

    def _reading(self) -> FencedReader:
        if self._reader is None:
            raise StorageError(f"{self!r} is not open", subject=_SUBJECT, verb="read")
        return self._reader

    def _alive(self) -> KvSession:
        if self._failure is not None:
            raise type(self._failure)(
                f"the state failed before and takes no more writes: {self._failure.message}",
                subject=self._failure.subject,
                verb=self._failure.verb,
                hint=self._failure.hint,
            ) from self._failure
        return self._opened()

    def _fail(self, error: StorageError) -> StorageError:
        """The first failure stays. Nothing is written through this handle any more."""
        if self._failure is None:
            self._failure = error
        return error


async def _decoded(chunks: AsyncIterator[bytes], last_index: int) -> AsyncIterator[list[Argument]]:
    """Keys and cells of a snapshot stream, some at a time. Raises: StorageCorrupt."""
    decoder = RowDecoder()
    pending: list[Argument] = []
    size = 0
    async for chunk in chunks:
        for start in range(0, len(chunk), _DECODE_BYTES):
            for key, value, revision in decoder.feed(chunk[start : start + _DECODE_BYTES]):
                check_revision(revision, last_index)
                pending += _row(key, value, revision)
                size += len(key) + len(value)
            if size >= LOAD_BYTES:
                yield pending
                pending, size = [], 0
            else:
                await asyncio.sleep(0)
    decoder.finish()
    if pending:
        yield pending


def _row(key: str, value: bytes, revision: int) -> tuple[bytes, bytes]:
    encoded = key.encode()
    return encoded, codec.encode_cell(encoded, value, revision)


def _record(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    return key, codec.encode_record(key, value)


def _listed(generations: set[int]) -> str:
    return ",".join(map(str, sorted(generations)))
