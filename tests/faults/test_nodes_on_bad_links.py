"""Real nodes whose links are slow, one-way, breaking, repeat or garble what passes: a proxy stands on every link."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from nemeses import LinkNemesis, garbles, on, one_way, partitions, proxied, repeats, slow
from nodes import said, trial
from tcp_proxy import Frames

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="finding out who dialled needs Linux's /proc"),
]


@pytest.mark.parametrize(
    ("nemesis", "seed"),
    [
        pytest.param(slow, 31, id="slow"),
        pytest.param(one_way, 32, id="one way"),
        pytest.param(partitions, 33, id="partitions"),
        pytest.param(repeats, 34, id="repeats"),
        pytest.param(garbles, 35, id="garbage"),
    ],
)
async def test_bad_links_lose_nothing_and_show_nothing_stale(nemesis: LinkNemesis, seed: int, tmp_path: Path) -> None:
    async with proxied(tmp_path) as (cluster, links):
        result = await trial(cluster, on(links, nemesis), seed=seed, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 20


def test_the_proxy_finds_whole_frames() -> None:
    head = b"GET /x HTTP/1.1\r\nUpgrade: tcp\r\nRaftkit-Frames: 1\r\n\r\n"
    small, large = b"\0\0\0\x03abc", b"\0\0\x01\x2c" + b"x" * 300
    stream = head + small + large
    for size in (1, 7, len(stream)):
        frames = Frames()
        pieces = [piece for at in range(0, len(stream), size) for piece in frames.feed(stream[at : at + size])]
        assert pieces == [(head, False), (small, True), (large, True)]
    plain = Frames()
    assert plain.feed(b"PUT /x HTTP/1.1\r\n\r\nbody") == [(b"PUT /x HTTP/1.1\r\n\r\nbody", False)]
    assert plain.feed(b"more") == [(b"more", False)]
