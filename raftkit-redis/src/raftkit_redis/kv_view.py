"""Reading a range of keys of ``redis-kv`` page by page: of the state now, or of a view's moment."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from raftkit_core.errors import StorageError
from raftkit_core.state_machine.kv_rules import cut, is_enough
from raftkit_core.state_machine.kv_stream import Row, encode_rows
from raftkit_core.types.kv import KeyValue, ListKeys
from raftkit_redis import codec, kv_scripts
from raftkit_redis.kv_session import KvSession
from raftkit_redis.reader import FencedReader

PAGE_ROWS = 2000
PAGE_BYTES = 256 * 1024
"""What one script reads at most (and one row more): as long as it runs, Redis does nothing else."""


class Page(NamedTuple):
    rows: list[Row]
    next_first: str | bytes | None
    """Where to go on; None at the end of the range."""


async def read_page(
    reader: FencedReader,
    session: KvSession,
    generation: int,
    slot: int | None,
    first: str | bytes,
    last: str | bytes,
    rows: int = PAGE_ROWS,
) -> Page | None:
    """``first`` and ``last`` as ``ZRANGEBYLEX`` takes them; ``slot`` None is the state now, and the answer None if
    another generation counts by now. Raises: StorageError and its kinds."""
    keys = [session.names.meta, *session.names.cells(generation)]
    if slot is not None:
        keys += session.names.view(slot)
    asked = [first, last, rows, PAGE_BYTES, generation if slot is None else ""]
    answer = await reader.ask(kv_scripts.RANGE, keys, asked, session, subject="state machine")
    if len(answer) == 2:
        return None
    _, _, flat, is_whole, kept_flat, is_kept_whole = answer
    cells = dict(zip(flat[::2], flat[1::2], strict=True))
    kept = dict(zip(kept_flat[::2], kept_flat[1::2], strict=True))
    # Beyond the last key of a list that was cut, nobody knows what else is there.
    ends = [flat[-2]] if not is_whole else []
    ends += [kept_flat[-2]] if not is_kept_whole else []
    end = min(ends, default=None)
    found = [
        (key, codec.decode_cell(key, cell))
        for key, cell in sorted((cells | kept).items())
        if cell and (end is None or key <= end)
    ]
    return Page([(key.decode(), *cell) for key, cell in found], None if end is None else b"(" + end)


def items_of(page: Page) -> list[KeyValue]:
    return [KeyValue(key=key, value=value, revision=revision) for key, value, revision in page.rows]


class View(AsyncIterator[bytes]):
    """The state at the moment this was made, as chunks of the ``kv/1`` stream.

    ``begun`` is awaited before the first read: a change that was on its way when this was made does not know of it, so
    it must have arrived. ``ended`` is called once, on any end but an abandoned one, which ``abandoned`` hears of.
    """

    def __init__(
        self,
        reader: FencedReader,
        session: KvSession,
        generation: int,
        slot: int,
        *,
        begun: Callable[[], Awaitable[None]],
        ended: Callable[[int], Awaitable[None]],
        abandoned: Callable[[int], None],
    ) -> None:
        self.generation = generation
        self.slot = slot
        self._reader = reader
        self._session = session
        self._abandoned = abandoned
        self._begun: Callable[[], Awaitable[None]] | None = begun
        self._ended = ended
        self._ready: deque[bytes] = deque()
        self._first: str | bytes | None = "-"
        self._is_open = True

    async def __anext__(self) -> bytes:
        while not self._ready and self._first is not None and self._is_open:
            page = await self._page(self._first, "+")
            self._first = page.next_first
            self._ready.extend(encode_rows(page.rows))
        if self._ready:
            return self._ready.popleft()
        await self.aclose()
        raise StopAsyncIteration

    async def list_keys(self, first: str | bytes, last: str | bytes, query: ListKeys) -> list[KeyValue]:
        """Instead of the chunks."""
        found: list[KeyValue] = []
        at: str | bytes | None = first
        while at is not None:
            page = await self._page(at, last)
            found, at = found + items_of(page), page.next_first
            if is_enough(found, query):
                break
        return cut(found, query)

    async def _page(self, first: str | bytes, last: str | bytes) -> Page:
        if self._begun is not None:
            await self._begun()
            self._begun = None
        page = await read_page(self._reader, self._session, self.generation, self.slot, first, last)
        if page is None or not self._is_open:
            raise StorageError("the view is closed", subject="state machine", verb="read")
        return page

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._ended(self.slot)

    def __del__(self) -> None:
        if self._is_open:
            self._abandoned(self.slot)
