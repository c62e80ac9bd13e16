"""The ring of applied changes and its readers: order, bounds, and every way a watch ends."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from raftkit_core.errors import Compacted, PreconditionFailed, Stopped
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.state_machine.kv_watch import ChangeRing, KvWatch
from raftkit_core.types.entry import BLANK, NORMAL, Entry, Envelope, encode_envelope
from raftkit_core.types.kv import KV_MACHINE, CompareAndSet, Delete, KvCommand, KvEvent, Put, WriteResult
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

pytestmark = pytest.mark.virtual_time


def log_id(index: int) -> LogId:
    return LogId(LeaderId(1, "n1"), index)


def feed(ring: ChangeRing, *commands: KvCommand | None, result: Any = None, size: int = 10) -> None:
    """One batch behind what is there; None is an entry that is not for the machine."""
    start = ring.position + 1
    log = [entry(index, command, size) for index, command in enumerate(commands, start)]
    entries = [each for each in log if each.kind == NORMAL]
    ring.feed(log, entries, [result or WriteResult(revision=each.log_id.index) for each in entries])


def entry(index: int, command: KvCommand | None, size: int) -> Entry:
    if command is None:
        return Entry(log_id(index), 0, BLANK, b"")
    if isinstance(command, Put):
        command = msgspec.structs.replace(command, value=command.value or b"x" * size)
    body = KvCodec().encode_command(command)
    return Entry(log_id(index), 0, NORMAL, encode_envelope(Envelope(1, KV_MACHINE, 0, 0, 0, body)))


def keys(events: list[KvEvent]) -> list[str]:
    return [f"{event.key}@{event.revision}" for event in events]


async def test_events_come_in_log_order_with_value_and_revision() -> None:
    ring = ChangeRing()
    feed(ring, Put("a", b"1"), None, CompareAndSet("b", None, b"2"))
    feed(ring, Delete("a"))
    watch = KvWatch(ring, "", 1)
    assert await watch.take() == [
        KvEvent(key="a", value=b"1", revision=1),
        KvEvent(key="b", value=b"2", revision=3),
        KvEvent(key="a", value=None, revision=4),
    ]
    assert watch.position == 4


async def test_only_the_prefix_and_only_from_the_revision_inside_a_batch() -> None:
    ring = ChangeRing()
    feed(ring, Put("a/1", b""), Put("b/1", b""), Put("a/2", b""), Put("a/3", b""))
    assert keys(await KvWatch(ring, "a/", 2).take()) == ["a/2@3", "a/3@4"]


async def test_what_changed_nothing_is_no_event() -> None:
    ring = ChangeRing()
    feed(ring, Put("a", b"", if_revision=7), result=PreconditionFailed("no"))
    feed(ring, Delete("absent"), result=WriteResult(revision=2, changed=False))
    feed(ring, Put("a", b""))
    assert keys(await KvWatch(ring, "", 1).take()) == ["a@3"]


async def test_without_a_revision_it_begins_with_the_next_change() -> None:
    ring = ChangeRing()
    feed(ring, Put("before", b""))
    watch = KvWatch(ring)
    feed(ring, Put("after", b""))
    assert keys(await watch.take()) == ["after@2"]


async def test_a_revision_in_the_future_is_waited_for() -> None:
    ring = ChangeRing()
    watch = KvWatch(ring, "", 3)
    taking = asyncio.ensure_future(watch.take())
    for name in ("a", "b", "c"):
        await asyncio.sleep(1)
        feed(ring, Put(name, b""))
    assert keys(await taking) == ["c@3"]


async def test_nothing_within_the_timeout_is_an_empty_answer_that_moves_the_place_on() -> None:
    ring = ChangeRing()
    watch = KvWatch(ring, "a/")
    feed(ring, Put("b", b""), None)
    assert await watch.take(timeout=5) == []
    assert watch.position == 2


async def test_below_the_ring_it_is_compacted_and_says_what_is_the_oldest() -> None:
    ring = ChangeRing(max_entries=3)
    for number in range(6):
        feed(ring, Put(str(number), b""))
    assert ring.oldest == 4
    with pytest.raises(Compacted) as caught:
        KvWatch(ring, "", 3)
    assert caught.value.oldest == 4
    assert keys(await KvWatch(ring, "", 4).take()) == ["3@4", "4@5", "5@6"]


async def test_a_reader_that_is_overtaken_ends_with_compacted_and_has_seen_no_gap() -> None:
    ring = ChangeRing(max_entries=4)
    watch = KvWatch(ring, "", 1)
    feed(ring, Put("a", b""), Put("b", b""))
    seen = keys(await watch.take(1))
    for number in range(5):
        feed(ring, Put(str(number), b""))
    with pytest.raises(Compacted, match="from revision 2 on"):
        await watch.take()
    assert seen == ["a@1"]
    assert watch.position == 1


async def test_the_ring_is_bounded_in_bytes_but_for_its_newest_batch() -> None:
    ring = ChangeRing(max_bytes=100)
    feed(ring, Put("a", b""), size=60)
    feed(ring, Put("b", b""), size=60)
    assert ring.oldest == 2
    feed(ring, Put("c", b""), size=1000)
    assert keys(await KvWatch(ring, "", 3).take()) == ["c@3"]


async def test_a_snapshot_ends_the_watches_that_have_not_seen_what_led_to_it() -> None:
    ring = ChangeRing()
    feed(ring, Put("a", b""))
    behind, waiting = KvWatch(ring, "", 1), KvWatch(ring, "", 101)
    taking = asyncio.ensure_future(behind.take())
    assert keys(await taking) == ["a@1"]
    taking = asyncio.ensure_future(behind.take())
    await asyncio.sleep(1)
    ring.continue_after(100)
    with pytest.raises(Compacted) as caught:
        await taking
    assert caught.value.oldest == 101
    feed(ring, Put("b", b""))
    assert keys(await waiting.take()) == ["b@101"]


async def test_iterating_gives_one_event_after_the_other_and_a_long_scan_lets_others_in() -> None:
    ring = ChangeRing()
    for _ in range(30):
        feed(ring, *(Put("other", b"") for _ in range(500)))
    feed(ring, Put("mine/1", b""), Put("mine/2", b""))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    found = []
    async for event in KvWatch(ring, "mine/", 1):
        found.append(event.revision)
        if len(found) == 2:
            break
    counting.cancel()
    assert found == [15001, 15002]
    assert turns >= 2


async def test_a_cancelled_reader_leaves_nothing_in_the_ring() -> None:
    ring = ChangeRing()
    readers = [asyncio.ensure_future(KvWatch(ring).take()) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(ring._waiters) == 3
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert ring._waiters == []


async def test_closing_ends_every_reader_with_stopped() -> None:
    ring = ChangeRing()
    taking = asyncio.ensure_future(KvWatch(ring).take())
    await asyncio.sleep(0)
    ring.close()
    with pytest.raises(Stopped):
        await taking
