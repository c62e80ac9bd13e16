"""The container ``raftkit-snapshot/1``: its bytes are pinned, and every damage is found."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.errors import StorageCorrupt
from raftkit_core.storage.snapshot_format import (
    MAX_SECTION_BYTES,
    SnapshotDecoder,
    SnapshotHeader,
    encode_snapshot,
    read_snapshot,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.vote import LeaderId

GOLDEN = Path(__file__).parent.parent / "golden" / "raftkit-snapshot-1.hex"

HEADER = SnapshotHeader(
    snapshot_id="0000002a-00ff",
    last_log_id=LogId(LeaderId(3, "n2"), 42),
    membership=StoredMembership(
        LogId(LeaderId(0, ""), 0),
        Membership.of([["n1", "n2"]], {"n1": Node("memory:n1", store_id="ab" * 16), "n2": Node("memory:n2")}),
    ),
    time_ms=123_456,
    cluster_id="cd" * 16,
    machine="kv/1",
)


async def _stream(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _encode(system: bytes = b"system", machine: Sequence[bytes] = (b"first", b"second")) -> list[bytes]:
    return [piece async for piece in encode_snapshot(HEADER, system, _stream(machine))]


def _decode(data: bytes, piece_bytes: int = 7) -> tuple[SnapshotHeader, bytes, list[bytes]]:
    decoder = SnapshotDecoder()
    chunks: list[bytes] = []
    for start in range(0, len(data), piece_bytes):
        chunks += decoder.feed(data[start : start + piece_bytes])
    return decoder.finish(), decoder.system, chunks


async def test_the_format_is_the_golden_file_s() -> None:
    golden = bytes.fromhex("".join(GOLDEN.read_text().split()))
    assert b"".join(await _encode()).hex(" ", 4) == golden.hex(" ", 4)
    assert _decode(golden) == (HEADER, b"system", [b"first", b"second"])


@pytest.mark.parametrize("piece_bytes", [1, 2, 13, 10_000_000])
async def test_the_cut_of_the_input_does_not_matter(piece_bytes: int) -> None:
    assert _decode(b"".join(await _encode()), piece_bytes) == (HEADER, b"system", [b"first", b"second"])


async def test_large_parts_are_cut_and_come_back_whole() -> None:
    system, machine = b"s" * (MAX_SECTION_BYTES + 1), b"m" * (2 * MAX_SECTION_BYTES + 5)
    pieces = await _encode(system, [machine])
    assert max(map(len, pieces)) <= MAX_SECTION_BYTES + 16
    header, found_system, chunks = _decode(b"".join(pieces), 300_000)
    assert (header, found_system, b"".join(chunks)) == (HEADER, system, machine)


async def test_empty_parts_make_no_sections() -> None:
    assert _decode(b"".join(await _encode(b"", [b"", b""]))) == (HEADER, b"", [])


async def test_a_reader_gives_header_and_system_before_the_machine() -> None:
    reader = await read_snapshot(_stream(await _encode()))
    assert (reader.header, reader.system) == (HEADER, b"system")
    assert [chunk async for chunk in reader.machine_chunks()] == [b"first", b"second"]


async def test_a_reader_of_an_empty_machine_ends_at_once() -> None:
    reader = await read_snapshot(_stream(await _encode(b"", [])))
    assert [chunk async for chunk in reader.machine_chunks()] == []


async def test_a_reader_raises_at_the_end_of_a_cut_off_container() -> None:
    pieces = await _encode()
    reader = await read_snapshot(_stream(pieces[:-1]))
    with pytest.raises(StorageCorrupt, match="cut off"):
        _ = [chunk async for chunk in reader.machine_chunks()]
    with pytest.raises(StorageCorrupt, match="cut off"):
        await read_snapshot(_stream([pieces[0][:-1]]))


async def test_every_truncation_is_found() -> None:
    data = b"".join(await _encode())
    for size in range(len(data)):
        with pytest.raises(StorageCorrupt):
            _decode(data[:size], 64)


async def test_every_flipped_bit_is_found() -> None:
    data = b"".join(await _encode())
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(StorageCorrupt):
            _decode(bytes(damaged), 64)


async def test_a_missing_repeated_or_exchanged_section_is_found() -> None:
    start, system, first, second, end = await _encode()
    for wrong in (
        [start, system, second, end],
        [start, system, second, first, end],
        [start, system, first, first, second, end],
        [start, first, system, second, end],
        [start, start, system, first, second, end],
        [start, system, first, second, end, end],
        [start, system, first, second, end, b"x"],
        [start, system, first, end, second],
        [start[:19], system, first, second, end],
    ):
        with pytest.raises(StorageCorrupt):
            _decode(b"".join(wrong))


async def test_a_header_that_would_name_another_file_is_refused() -> None:
    header = SnapshotHeader(
        snapshot_id="../../etc/x",
        last_log_id=None,
        membership=StoredMembership(),
        time_ms=0,
        cluster_id=None,
        machine="kv/1",
    )
    with pytest.raises(StorageCorrupt, match="no snapshot id"):
        _ = [piece async for piece in encode_snapshot(header, b"", _stream([]))]


@given(data=st.binary(max_size=200), keep_magic=st.booleans())
@settings(deadline=None)
def test_noise_is_damage_and_nothing_else(data: bytes, keep_magic: bool) -> None:
    with pytest.raises(StorageCorrupt):
        _decode(b"raftkit-snapshot/1\n" * keep_magic + data)


async def test_the_meta_of_a_header_describes_the_whole_container() -> None:
    data = b"".join(await _encode())
    meta = HEADER.meta(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert SnapshotHeader.of(meta, cluster_id=HEADER.cluster_id, machine=HEADER.machine) == HEADER
