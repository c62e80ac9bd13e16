"""``/ui`` in a real browser: a cluster is shown, a node that stops is missed, and no console says otherwise."""

from __future__ import annotations

import importlib.util
import os
import struct
import sys
import zlib
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from raftkit_core import Node, Raft, open_raft
from raftkit_core.errors import StorageFull
from raftkit_core.network.tokens import new_token
from raftkit_core.testing.ports import free_urls
from raftkit_core.types.kv import Put
from raftkit_core.types.security import Security


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("ui_browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ui = _load()
pytestmark = pytest.mark.skipif(ui.missing() is not None, reason=str(ui.missing()))
SHOTS = os.environ.get("RAFTKIT_UI_SHOTS")
"""A folder for whole screenshots: to look at."""
SCALE = 0.25


def pixels(png: bytes) -> tuple[int, int, Counter[bytes]]:
    """Width, height and how often each colour occurs, of an 8 bit RGB or RGBA picture without interlacing."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, header = 8, b"", b""
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        name, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        header, data = (content, data) if name == b"IHDR" else (header, data + content if name == b"IDAT" else data)
        at += 12 + size
    width, height, depth, kind = struct.unpack_from(">IIBB", header)
    assert depth == 8
    step = {2: 3, 6: 4}[kind]
    raw = zlib.decompress(data)
    found: Counter[bytes] = Counter()
    row, before = width * step, bytes(width * step)
    for line in range(height):
        start = line * (row + 1)
        before = unfiltered(raw[start], raw[start + 1 : start + 1 + row], before, step)
        found.update(before[x : x + 3] for x in range(0, row, step))
    return width, height, found


def unfiltered(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    if kind == 0:
        return line
    if kind == 2:
        return bytes((a + b) & 255 for a, b in zip(line, above, strict=True))
    out = bytearray(line)
    for at in range(len(out)):
        left = out[at - step] if at >= step else 0
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + above[at]) // 2
        else:
            corner = above[at - step] if at >= step else 0
            guess = min((left, above[at], corner), key=lambda value: abs(left + above[at] - corner - value))
        out[at] = (out[at] + guess) & 255
    return bytes(out)


async def picture(page: Any, name: str, small: dict[str, bytes]) -> None:
    """Keep a small one for ``check_pictures``, and the whole one where somebody wants to look."""
    if SHOTS:
        ui.save(await page.screenshot(), name, Path(SHOTS))
    small[name] = await page.screenshot(SCALE)


def check_pictures(small: dict[str, bytes]) -> None:
    """Not blank, as wide as the window, and with more than a few colours. (Slow: not while nodes run in this loop.)"""
    for name, shot in small.items():
        width, height, colours = pixels(shot)
        assert width == (360 if "narrow" in name else 1200) * SCALE, name
        assert height > 500 * SCALE, name
        assert colours.most_common(1)[0][1] < 0.92 * sum(colours.values()), name
        assert len(colours) > 40, name


FITS = "return document.documentElement.scrollWidth <= window.innerWidth"


async def started(stack: AsyncExitStack) -> tuple[dict[str, Raft], dict[str, str]]:
    urls = dict(zip(["n1", "n2", "n3"], free_urls(3), strict=True))
    rafts = {
        name: await stack.enter_async_context(open_raft(name, storage="memory:", network=url))
        for name, url in urls.items()
    }
    await rafts["n1"].initialize({name: Node(url) for name, url in urls.items()})
    await rafts["n1"].wait(10).metrics(lambda m: m.current_leader is not None, "a leader")
    for number in range(30):
        await rafts["n1"].write(Put(f"k{number}", b"v"))
    return rafts, urls


async def test_the_page_shows_a_cluster_and_what_becomes_of_it() -> None:
    small: dict[str, bytes] = {}
    async with AsyncExitStack() as stack:
        rafts, urls = await started(stack)
        page = await stack.enter_async_context(ui.browser())
        await page.size(1200, 900)
        await page.colours("light")
        await page.open(urls["n1"] + "/ui")
        await page.until("return document.getElementById('health').dataset.state === 'ok'", "a healthy cluster")
        assert await page.text("#health-state") == "Healthy"
        assert await page.text("#health-words") == "3 of 3 voters answer, tolerates 1 more failure."
        leader = rafts["n1"].current_leader()
        assert leader is not None
        assert await page.text("#f-leader") == leader
        cards = await page.run("return [...document.querySelectorAll('.member')].map(card => card.innerText)")
        assert len(cards) == 3
        assert [("Leader" in card, "answers" in card) for card in cards] == [
            (name == leader, True) for name in sorted(rafts)
        ]
        await page.until("return document.querySelectorAll('#rate-chart .series').length", "a point on the chart")
        assert f"{leader} won the election and leads" in await page.text("#events")
        assert await page.run(FITS)
        await picture(page, "wide.png", small)
        # The keyboard reaches everything in order, beginning with the way past the head.
        for wanted in ("skip", "pause", "token-open"):
            await page.press("\ue004")
            assert wanted in await page.run("return document.activeElement.id || document.activeElement.className")
        await page.press("\ue007")
        assert await page.run("return document.getElementById('token-dialog').open")
        assert await page.run("return document.activeElement.id") == "token"
        await page.press("\ue00c")
        # Narrow and dark: nothing sticks out.
        await page.size(360, 740)
        await page.colours("dark")
        assert await page.run(FITS)
        await picture(page, "narrow.png", small)
        # A node stops: the others are asked through the one that serves the page.
        gone = next(name for name in ("n3", "n2") if name != leader)
        await rafts[gone].shutdown()
        await page.until("return document.getElementById('health').dataset.state === 'warn'", "the loss of a node")
        assert f"{gone} does not answer" in await page.text("#health-words")
        assert await page.text("#health-next") == f"start {gone}"
        refused = "return document.querySelector('.member[data-state=down]').innerText.includes('connection refused')"
        await page.until(refused, "the reason")
        await page.size(1200, 900)
        await page.colours("light")
        await picture(page, "degraded.png", small)
        assert await page.console() == []
        # The serving node itself fails: it can say so, and nothing on the page claims that it is well.
        rafts["n1"].fail(StorageFull("no space is left"))
        await page.until(
            "return document.getElementById('health-state').innerText === 'n1 cannot answer'", "its failure"
        )
        assert "no space is left" in await page.text("#health-words")
        assert "live" not in await page.text("#pulse-text")
        assert await page.run("return 'stale' in document.querySelector('main').dataset")
        own = "return document.querySelectorAll('.member')[0].innerText"
        assert "cannot answer" in await page.run(own)
        # Then it stops: the page says so and names the way to the others.
        await rafts["n1"].shutdown()
        await page.until(
            "return document.getElementById('health-state').innerText === 'n1 does not answer'", "the end of n1"
        )
        assert "no answer" in await page.run(own)
        links = await page.run("return [...document.querySelectorAll('#others a')].map(link => link.href)")
        still = next(name for name in ("n2", "n3") if name != gone)
        assert links == [urls[still] + "/ui", urls[gone] + "/ui"], "who answered last comes first"
        await picture(page, "gone.png", small)
    check_pictures(small)


async def test_where_tokens_are_needed_the_page_asks_for_one_and_keeps_it_in_the_tab(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    secret = new_token(tokens, "reader", "read")
    (url,) = free_urls(1)
    async with (
        open_raft("n1", storage="memory:", network=url, security=Security(tokens=tokens)) as raft,
        ui.browser() as page,
    ):
        await raft.initialize({"n1": Node(url)})
        await page.open(url + "/ui")
        await page.until("return document.getElementById('token-dialog').open", "the question")
        assert await page.text("#health-state") == "A token is needed"
        assert await page.text("#members") == ""
        await page.run("document.getElementById('token').value = 'raftkit_wrong'")
        await page.press("\ue007")
        await page.until("return !document.getElementById('token').value && sessionStorage.length", "it to be tried")
        await page.until("return document.getElementById('token-dialog').open", "the question again")
        await page.run("document.getElementById('token').value = arguments[0]", secret)
        await page.press("\ue007")
        await page.until("return document.getElementById('health').dataset.state === 'ok'", "a healthy cluster")
        kept = await page.run("return [sessionStorage.getItem('raftkit-token'), localStorage.length, location.href]")
        assert kept == [secret, 0, url + "/ui"]
        assert secret not in await page.run("return document.documentElement.outerHTML")
