"""The key-value machine core ships: ``kv/1`` in memory, restored from snapshots and the log after a restart."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import count, takewhile
from typing import Any, overload
from weakref import ref

from raftkit_core.state_machine.interface import AppliedEntries, AppliedEntry, ApplyBatch, NoneRefused, RaftStateMachine
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.state_machine.kv_rules import KvResult, check_query, check_revision, cut, decide
from raftkit_core.state_machine.kv_stream import RowDecoder, encode_rows
from raftkit_core.state_machine.kv_view import Cells, KvView
from raftkit_core.state_machine.ordered_keys import OrderedKeys
from raftkit_core.types.kv import KV_MACHINE, Get, KeyValue, KvCommand, ListKeys, Put, WriteResult
from raftkit_core.types.log_id import index_of
from raftkit_core.types.snapshot import SnapshotMeta


class Overwritten(NoneRefused[WriteResult]):
    """Results of commands that each replaced the value of a key. Most are never looked at, and are made for who does:
    on every node but the leader nobody waits for them."""

    __slots__ = ("_first", "_revisions")

    def __init__(self, first: int, revisions: Sequence[int]) -> None:
        self._first = first
        self._revisions = tuple(revisions)  # it is kept for a while: see Entries

    def __len__(self) -> int:
        return len(self._revisions)

    def __iter__(self) -> Iterator[WriteResult]:
        return map(WriteResult, count(self._first), self._revisions)

    @overload
    def __getitem__(self, at: int) -> WriteResult: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[WriteResult]: ...

    def __getitem__(self, at: int | slice) -> WriteResult | Sequence[WriteResult]:
        if isinstance(at, slice):
            return list(self)[at]
        return WriteResult(range(self._first, self._first + len(self._revisions))[at], self._revisions[at])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Overwritten | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


class KvStateMachine(RaftStateMachine):
    """Keys are non-empty strings of at most 4096 UTF-8 bytes, values are bytes; a revision is the log index of the last
    change. A failed precondition is a ``PreconditionFailed`` as a result and changes nothing.
    """

    name = KV_MACHINE

    def __init__(self) -> None:
        self.codec = KvCodec()
        self._cells: Cells = {}
        self._keys = OrderedKeys()
        self._views: list[ref[KvView]] = []
        """Those from which snapshots are written at the moment."""

    def __len__(self) -> int:
        return len(self._cells)

    def apply(self, batch: ApplyBatch) -> Sequence[Any]:
        cells = self._cells
        held = cells.get
        results: list[KvResult] = []
        give = results.append
        entries = batch.entries
        if self._views:
            self._keep(entries)
        commands: Iterable[tuple[int, KvCommand]]
        if type(entries) is AppliedEntries:
            first, listed = entries.first_index, entries.commands
            if len(listed) > 1:
                before_all = self._overwrite(listed, first)
                done = len(before_all)
                if done == len(listed):
                    return Overwritten(first, before_all)
                results += Overwritten(first, before_all)
                first, listed = first + done, listed[done:]
            commands = enumerate(listed, first)
        else:
            commands = [(entry.log_id.index, entry.command) for entry in entries]
        for index, command in commands:
            key = command.key
            before = held(key)
            result, after = decide(command, index, before)
            give(result)
            if after is not before:
                if after is None:
                    del cells[key]
                    self._keys.remove(key)
                else:
                    cells[key] = after
                    if before is None:
                        self._keys.add(key)
        return results

    def _overwrite(self, commands: Sequence[KvCommand], first: int) -> Sequence[int]:
        """Carry out ``commands`` as long as each puts a new value to a key that is there: what nearly every command
        does. Gives the revision that each of them replaced. :func:`decide` says the same, for the price of a call."""
        cells = self._cells
        held = cells.get
        revisions: list[int] = []
        note = revisions.append
        for index, command in enumerate(commands, first):
            if type(command) is not Put or command.if_revision is not None:
                break
            key = command.key
            before = held(key)
            if before is None:
                break
            cells[key] = (command.value, index)
            note(before[1])
        return revisions

    def query(self, query: Any) -> Any:
        """A :class:`Get` gives a :class:`KeyValue` or None, a :class:`ListKeys` a list. Raises: CommandRejected."""
        question = check_query(query)
        return self._get(question.key) if isinstance(question, Get) else self._list(question)

    def _get(self, key: str) -> KeyValue | None:
        cell = self._cells.get(key)
        return None if cell is None else KeyValue(key=key, value=cell[0], revision=cell[1])

    def _list(self, query: ListKeys) -> list[KeyValue]:
        prefix = query.prefix
        is_after = query.after is not None and query.after >= prefix
        start = query.after if is_after and query.after is not None else prefix
        cells = self._cells
        keys = takewhile(lambda key: key.startswith(prefix), self._keys.iterate_from(start, inclusive=not is_after))
        return cut((KeyValue(key=key, value=cells[key][0], revision=cells[key][1]) for key in keys), query)

    def snapshot(self) -> AsyncIterator[bytes]:
        """The view is taken here, at the call; neither keys nor values are copied."""
        view = KvView(self._cells, self._keys.parts())
        self._views.append(ref(view, self._views.remove))
        return _stream(view)

    def _keep(self, entries: Sequence[AppliedEntry]) -> None:
        """Have the views keep what ``entries`` may change."""
        commands = entries.commands if type(entries) is AppliedEntries else [entry.command for entry in entries]
        for reference in self._views:
            view = reference()
            if view is not None:
                view.keep(self._cells, [command.key for command in commands])

    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        """See :meth:`RaftStateMachine.restore`. Raises: StorageCorrupt, and the state is as before."""
        decoder = RowDecoder()
        cells: Cells = {}
        last_index = index_of(meta.last_log_id)
        async for chunk in chunks:
            if cells:
                await asyncio.sleep(0)  # whoever gives the chunks may never wait, and heartbeats want answers
            for key, value, revision in decoder.feed(chunk):
                check_revision(revision, last_index)
                cells[key] = (value, revision)
        decoder.finish()
        self._cells, self._keys = cells, OrderedKeys(cells)  # the stream was in ascending order

    def digest(self) -> str:
        """sha256 over the snapshot stream."""
        digest = hashlib.sha256()
        cells = self._cells
        for chunk in encode_rows((key, *cells[key]) for key in self._keys.iterate_from("")):
            digest.update(chunk)
        return digest.hexdigest()


async def _stream(view: KvView) -> AsyncIterator[bytes]:
    """The machine knows the view as long as this is not at its end, nor given up."""
    for chunk in encode_rows(view.rows()):
        yield chunk
        await asyncio.sleep(0)  # whoever takes the chunks may never wait, and apply must go on in between
